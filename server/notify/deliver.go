package notify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/rehomedb/rehome/progress"
)

// settleTimeout bounds the record of a try.
const settleTimeout = 10 * time.Second

// jobTries is for what goes wrong here, such as a control database that is away; River counts tries that the record of a
// delivery does not know of.
const jobTries = 25

// deliveryArgs asks for the next try of a delivery.
type deliveryArgs struct {
	Delivery int64 `json:"delivery"`
}

// Kind implements river.JobArgs.
func (deliveryArgs) Kind() string { return "webhook-delivery" }

func deliveryOpts(webhook string) *river.InsertOpts {
	return &river.InsertOpts{Queue: queueOf(webhook), MaxAttempts: jobTries}
}

type deliveryWorker struct {
	river.WorkerDefaults[deliveryArgs]
	n *Notifier
}

// Timeout implements river.Worker.
func (w *deliveryWorker) Timeout(*river.Job[deliveryArgs]) time.Duration {
	return w.n.cfg.Options.Timeout + 2*settleTimeout
}

// Work implements river.Worker: one try. What is to be tried again is snoozed until the time that its record says.
func (w *deliveryWorker) Work(ctx context.Context, job *river.Job[deliveryArgs]) error {
	n := w.n
	d, err := n.claimed(ctx, job.Args.Delivery, job.ID)
	if err != nil || d == nil {
		return err
	}
	e, err := n.endpoint(ctx, n.cfg.Pool, d.webhook)
	if err != nil {
		return err
	}
	var a attempt
	if e.disabled {
		a = attempt{err: "the webhook is disabled"}
	} else {
		a = n.sender.send(ctx, e.url, d.event, []byte(d.body), e.secrets)
	}
	if a.cut { // this server stops: another one goes on, or this one after its start
		return river.JobSnooze(0)
	}
	again, err := n.settle(ctx, d, a, e.disabled)
	if err != nil || again == 0 {
		return err
	}
	return river.JobSnooze(again)
}

// pendingDelivery is a delivery that is to be sent.
type pendingDelivery struct {
	id, job        int64
	webhook, event string
	topic          Topic
	database       string
	body           string
	attempts       int
	created        time.Time
}

// claimed reads a delivery that this job may send; nil if there is nothing to do for it any more.
func (n *Notifier) claimed(ctx context.Context, id, job int64) (*pendingDelivery, error) {
	d := &pendingDelivery{id: id, job: job}
	err := n.cfg.Pool.QueryRow(ctx, `SELECT webhook, event_id, topic, database, body, attempts, created_at FROM rehome_control.webhook_deliveries
		WHERE id = $1 AND job = $2 AND state = 'pending'`, id, job).Scan(&d.webhook, &d.event, &d.topic, &d.database, &d.body, &d.attempts, &d.created)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the delivery: %w", err)
	}
	return d, nil
}

// settle records a try, and returns when the next one is; 0: none.
func (n *Notifier) settle(ctx context.Context, d *pendingDelivery, a attempt, disabled bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	now, tries := n.cfg.Now(), d.attempts+1
	again, more := n.cfg.Options.Webhooks.next(tries, now.Sub(d.created), a.after)
	state := stateDead
	switch {
	case a.ok():
		state = stateDelivered
	case disabled:
		tries--
	case !a.gone() && more:
		state = statePending
	}
	ours := false
	err := pgx.BeginFunc(ctx, n.cfg.Pool, func(tx pgx.Tx) error {
		var status *int
		if a.status != 0 {
			status = &a.status
		}
		text := a.err
		if a.answer != "" && text != "" {
			text += ": " + a.answer
		}
		var finished, next *time.Time
		if state == statePending {
			at := now.Add(again)
			next = &at
		} else {
			finished = &now
		}
		tag, err := tx.Exec(ctx, `UPDATE rehome_control.webhook_deliveries SET state = $3, attempts = $4, status = coalesce($5, status), error = $6, last_at = $7, next_at = $8, finished_at = $9
			WHERE id = $1 AND job = $2 AND state = 'pending'`, d.id, d.job, state, tries, status, text, now, next, finished)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		ours = true
		if a.gone() {
			if _, err := tx.Exec(ctx, `UPDATE rehome_control.webhooks SET disabled_at = $2, disabled_reason = 'the receiver answered 410 (gone)' WHERE id = $1 AND disabled_at IS NULL`, d.webhook, now); err != nil {
				return err
			}
		}
		if state != stateDead || disabled {
			return nil
		}
		// The last thing of the transaction: it holds the stream.
		_, err = n.cfg.Log.Append(ctx, tx, progress.Entry{
			Stream: progress.StreamInstallation, Database: d.database, Kind: "webhook", ID: d.webhook, Event: deathEvent(a),
			Data: map[string]any{"webhook": d.webhook, "delivery": d.id, "event_id": d.event, "event": d.topic, "attempts": tries, "status": a.status, "error": a.err},
		})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("record the try of delivery %d: %w", d.id, err)
	}
	if !ours { // it was asked for again meanwhile: another job sends it
		return 0, nil
	}
	n.tellOf(ctx, d, a, state, tries)
	if state == statePending {
		return again, nil
	}
	return 0, nil
}

func deathEvent(a attempt) string {
	if a.gone() {
		return "disabled"
	}
	return "delivery-dead"
}

// tellOf leaves the traces of a try in log and audit.
func (n *Notifier) tellOf(ctx context.Context, d *pendingDelivery, a attempt, state string, tries int) {
	if a.ok() {
		n.cfg.Logger.DebugContext(ctx, "webhook delivered", "webhook", d.webhook, "delivery", d.id, "tries", tries, "took_ms", a.took.Milliseconds())
		return
	}
	n.cfg.Logger.WarnContext(ctx, "webhook was not delivered", "webhook", d.webhook, "delivery", d.id, "tries", tries, "state", state, "error", a.err)
	if state != stateDead || a.err == "" {
		return
	}
	detail := map[string]any{"delivery": d.id, "event_id": d.event, "event": d.topic, "attempts": tries, "error": a.err}
	if err := n.cfg.Audit(ctx, AuditEntry{Action: "webhook-" + deathEvent(a), Object: d.webhook, Outcome: "failed", Detail: detail}); err != nil {
		n.cfg.Logger.ErrorContext(ctx, "write audit row", "action", "webhook-"+deathEvent(a), "error", err)
	}
}
