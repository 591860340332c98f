package notify

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/progress"
)

// cursorEvery is how many events may lie between the cursor and what was looked through without finding news: what a
// server that starts has to look through again.
const cursorEvery = 1000

// step looks through the events that are new to this server, and returns how many there were. What is news is made into
// deliveries and mails together with the cursor.
func (n *Notifier) step(ctx context.Context) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var cursor int64
	if err := n.cfg.Pool.QueryRow(ctx, `SELECT after_id FROM rehome_control.news_cursor`).Scan(&cursor); err != nil {
		return 0, fmt.Errorf("read the cursor of news: %w", err)
	}
	n.seen = max(n.seen, cursor)
	events, err := n.cfg.Log.AfterID(ctx, n.seen, 0)
	if err != nil || len(events) == 0 {
		return 0, err
	}
	var found []progress.Stored
	for _, e := range events {
		if _, ok := newsOf(e); ok {
			found = append(found, e)
		}
	}
	last := events[len(events)-1].ID
	if len(found) > 0 || last-cursor >= cursorEvery {
		if err := n.publish(ctx, found, last); err != nil {
			return 0, err
		}
	}
	n.seen = last
	return len(events), nil
}

// publish makes, once, what follows from the news up to an event. Other servers wait at the cursor's row, and find it moved.
func (n *Notifier) publish(ctx context.Context, found []progress.Stored, last int64) error {
	err := pgx.BeginFunc(ctx, n.cfg.Pool, func(tx pgx.Tx) error {
		var cursor int64
		if err := tx.QueryRow(ctx, `SELECT after_id FROM rehome_control.news_cursor FOR UPDATE`).Scan(&cursor); err != nil {
			return err
		}
		if cursor >= last {
			return nil
		}
		for _, e := range found {
			if e.ID <= cursor {
				continue
			}
			if x, ok := newsOf(e); ok {
				if err := n.tell(ctx, tx, x); err != nil {
					return fmt.Errorf("tell of event %s: %w", e.Event.ID, err)
				}
			}
		}
		_, err := tx.Exec(ctx, `UPDATE rehome_control.news_cursor SET after_id = $1`, last)
		return err
	})
	if err != nil {
		return fmt.Errorf("make news of events: %w", err)
	}
	return nil
}

// tell makes the deliveries and mails of one event.
func (n *Notifier) tell(ctx context.Context, tx pgx.Tx, x news) error {
	switch x.topic {
	case CutoverTakenBack, RollbackTakenBack:
		if ok, err := takenBack(ctx, tx, x); err != nil || !ok {
			return err
		}
	case Paused:
		// Once it is in sync again that is worth telling.
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.told WHERE thing = $1 AND topic = $2`, x.replication, string(InSync)); err != nil {
			return err
		}
	case InSync:
		// A replication under load falls behind and catches up all the time: told the first time, and after a pause.
		if ok, err := n.firstTime(ctx, tx, x); err != nil || !ok {
			return err
		}
	}
	if err := n.deliver(ctx, tx, x); err != nil {
		return err
	}
	return n.mail(ctx, tx, x)
}

// takenBack reports whether what a phase says was taken back was an attempt of that kind. A rehearsal takes itself back: that
// is its end, and no news.
func takenBack(ctx context.Context, tx pgx.Tx, x news) (ok bool, err error) {
	if x.facts.Attempt == "" { // of a server that did not name it yet: the newest
		err = tx.QueryRow(ctx, `SELECT coalesce((SELECT direction <> 'rehearsal' FROM rehome_control.cutovers WHERE replication = $1 ORDER BY started_at DESC LIMIT 1), true)`, x.replication).Scan(&ok)
		return ok, err
	}
	direction := "cutover"
	if x.topic == RollbackTakenBack {
		direction = "rollback"
	}
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.cutovers WHERE attempt = $1 AND direction = $2)`, x.facts.Attempt, direction).Scan(&ok)
	return ok, err
}

func (n *Notifier) firstTime(ctx context.Context, tx pgx.Tx, x news) (bool, error) {
	tag, err := tx.Exec(ctx, `INSERT INTO rehome_control.told (thing, topic, at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, x.replication, string(x.topic), x.event.Time)
	return tag.RowsAffected() == 1, err
}

// deliver makes a delivery and its job for each webhook that wants the event.
func (n *Notifier) deliver(ctx context.Context, tx pgx.Tx, x news) error {
	body, err := json.Marshal(x.event)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `INSERT INTO rehome_control.webhook_deliveries (webhook, event_id, topic, database, body, created_at, next_at)
		SELECT id, $1, $2, $3, $4, $5, $5 FROM rehome_control.webhooks
		 WHERE disabled_at IS NULL AND after_id < $6 AND (cardinality(topics) = 0 OR $2 = ANY (topics)) AND (cardinality(databases) = 0 OR $3 = ANY (databases))
		ON CONFLICT (webhook, event_id) DO NOTHING RETURNING id, webhook`,
		x.event.ID, string(x.topic), x.database, string(body), n.cfg.Now(), x.id)
	if err != nil {
		return err
	}
	type made struct {
		ID      int64
		Webhook string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[made])
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := n.enqueue(ctx, tx, d.Webhook, d.ID); err != nil {
			return err
		}
	}
	return nil
}
