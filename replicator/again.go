package replicator

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/snapshot"
)

const (
	// recordEvery bounds how much of an interrupted unit is missing from the count of what was copied again.
	recordEvery = time.Second
	// recordPatience is how long the figures may take to be written; that they are not when the shard hangs delays the end
	// of an interrupted copy by no more.
	recordPatience = 5 * time.Second
)

// ledger records at the first shard how far each unit is that is under way. When a crash makes the work lost, the record
// says how much it was; a unit that is done leaves no record.
//
// The figures are for people only, so nothing waits for them or fails because of them: a shard that is slow to write them has
// them later, or not at all. A record that a unit leaves behind is not counted, see settleAgain.
type ledger struct {
	e               *Engine
	every, patience time.Duration

	conn    *pgx.Conn // of run; nil: none yet, or it broke
	failing bool      // of run: the last figures could not be written

	mu       sync.Mutex // not held while anything is asked of the shard
	active   map[unitName]*snapshot.Counters
	recorded map[unitName]bool // of those that are under way; settleAgain took away what there was before
	done     map[unitName]bool // they have a record that is to be removed
}

type unitName struct {
	relation string
	number   int
}

func (u unit) name() unitName { return unitName{u.relation(), u.number()} }

func newLedger(e *Engine) *ledger {
	return &ledger{
		e: e, every: recordEvery, patience: recordPatience,
		active: map[unitName]*snapshot.Counters{}, recorded: map[unitName]bool{}, done: map[unitName]bool{},
	}
}

// begin opens the counters of units. Those of units that fail stay, for the last record.
func (b *ledger) begin(units []unit) []*snapshot.Counters {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*snapshot.Counters, len(units))
	for i, u := range units {
		out[i] = new(snapshot.Counters)
		b.active[u.name()] = out[i]
	}
	return out
}

// finish has the records of units removed that every shard has. Most are done before there is one.
func (b *ledger) finish(units []unit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range units {
		delete(b.active, u.name())
		if b.recorded[u.name()] {
			delete(b.recorded, u.name())
			b.done[u.name()] = true
		}
	}
}

// run writes the figures until all units are done or the copy fails. It is the only writer, so that no figures come after
// their unit's record was removed.
func (b *ledger) run(ctx context.Context, done <-chan struct{}) {
	ctx = context.WithoutCancel(ctx) // also after a failure: the last figures are those of work that is lost
	defer func() { closeSoon(b.conn) }()
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if b.record(ctx) {
				continue
			}
			select {
			case <-done:
				return // the shard had its time
			default:
			}
		case <-done:
			b.record(ctx) // the workers have ended, so these are the last figures
			return
		}
	}
}

// record writes the figures as they are, and reports whether it could. The first failure of several is logged.
func (b *ledger) record(ctx context.Context) (ok bool) {
	err := b.write(ctx)
	if err != nil {
		closeSoon(b.conn)
		b.conn = nil // nobody knows what it still waits for
		if !b.failing {
			b.e.log.Warn("the progress of the copy is not recorded; the copy goes on", "shard", b.e.cfg.Shards[0].Name, "error", err)
		}
	}
	b.failing = err != nil
	return err == nil
}

func (b *ledger) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.patience)
	defer cancel()
	batch, removed := b.statements()
	if batch.Len() == 0 {
		return nil
	}
	if b.conn == nil {
		// A crash of the shard may lose the latest figures, so they do not wait for its disk.
		var err error
		b.conn, err = connect(ctx, b.e.cfg.Shards[0].DSN, "rehome-ledger-"+b.e.cfg.Replication, map[string]string{"synchronous_commit": "off"})
		if err != nil {
			return err
		}
	}
	if err := b.conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range removed {
		delete(b.done, u)
	}
	return nil
}

// statements are what brings the records up to date, and the units whose records they remove.
func (b *ledger) statements() (batch *pgx.Batch, removed []unitName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch = &pgx.Batch{}
	if len(b.done) > 0 {
		var relations []string
		var numbers []int
		for u := range b.done {
			removed = append(removed, u)
			relations, numbers = append(relations, u.relation), append(numbers, u.number)
		}
		batch.Queue(`DELETE FROM rehome.unfinished f USING unnest($2::text[], $3::int[]) u(relation, chunk)
			WHERE f.replication = $1 AND f.relation = u.relation AND f.chunk = u.chunk`, b.e.cfg.Replication, relations, numbers)
	}
	for u, c := range b.active {
		b.recorded[u] = true
		batch.Queue(`INSERT INTO rehome.unfinished (replication, relation, chunk, rows, bytes)
			SELECT $1, $2, $3, $4, $5 WHERE EXISTS (SELECT FROM rehome.applier WHERE replication = $1 AND epoch = $6)
			ON CONFLICT (replication, relation, chunk) DO UPDATE SET rows = excluded.rows, bytes = excluded.bytes`,
			b.e.cfg.Replication, u.relation, u.number, c.Rows.Load(), c.Bytes.Load(), b.e.cfg.Epoch)
	}
	return batch, removed
}

// settleAgain counts what an earlier try copied in vain: units that were under way, and those that are done at some shards
// or under a snapshot that no longer serves. It does so once for each.
func (e *Engine) settleAgain(ctx context.Context, notes copyNotes) error {
	lost := map[unitName]copied{}
	first := notes[0]
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		if _, done := e.copyOf(t); done {
			continue
		}
		names := []string{t.Name.String()}
		for _, l := range t.Leaves {
			if l.Name != t.Name {
				names = append(names, l.Name.String())
			}
		}
		for _, n := range names {
			if c, ok := first.leaves[n]; ok {
				lost[unitName{n, 0}] = c
			}
			plan := notes.plan(n)
			for k, p := range first.chunks[n] {
				if p.watermark == 0 {
					continue
				}
				if plan != nil && p.kind == chunkOfKeys {
					if _, ok := notes.chunk(n, k, t.Sharded()); ok {
						continue // it counts
					}
				}
				lost[unitName{n, p.number}] = p.copied
			}
		}
	}
	c, err := e.shardSession(ctx, e.cfg.Shards[0], "ledger")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	var again againNote
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if err := e.ownShared(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `DELETE FROM rehome.unfinished WHERE replication = $1 RETURNING relation, chunk, rows, bytes`, e.cfg.Replication)
		if err != nil {
			return err
		}
		var u unitName
		var under copied
		_, err = pgx.ForEachRow(rows, []any{&u.relation, &u.number, &under.rows, &under.bytes}, func() error {
			if _, twice := lost[u]; !twice && !notes.counts(e, u) {
				lost[u] = under
			}
			return nil
		})
		if err != nil {
			return err
		}
		var sum copied
		for u, c := range lost {
			sum.rows += c.rows
			sum.bytes += c.bytes
			// The note stays, so that its rows are removed; what it says is counted now.
			for _, sql := range [...]string{
				`UPDATE rehome.chunks SET rows = 0, bytes = 0 WHERE replication = $1 AND relation = $2 AND chunk = $3`,
				`UPDATE rehome.copied SET rows = 0, bytes = 0 WHERE replication = $1 AND relation = $2 AND $3 = 0`,
			} {
				if _, err := tx.Exec(ctx, sql, e.cfg.Replication, u.relation, u.number); err != nil {
					return err
				}
			}
		}
		if sum != (copied{}) {
			_, err = tx.Exec(ctx, `INSERT INTO rehome.copied_again AS a (replication, rows, bytes) VALUES ($1, $2, $3)
				ON CONFLICT (replication) DO UPDATE SET rows = a.rows + excluded.rows, bytes = a.bytes + excluded.bytes`, e.cfg.Replication, sum.rows, sum.bytes)
			if err != nil {
				return err
			}
		}
		again, err = readAgain(ctx, tx, e.cfg.Replication)
		return err
	})
	if err != nil {
		return fmt.Errorf("shard %s: count what is copied again: %w", e.cfg.Shards[0].Name, err)
	}
	e.stats.again(again.rows, again.bytes)
	return nil
}

// counts reports whether a unit is done at every shard and stays so.
func (n copyNotes) counts(e *Engine, u unitName) bool {
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		if _, done := e.copyOf(t); done {
			if t.Name.String() == u.relation {
				return true
			}
			for _, l := range t.Leaves {
				if l.Name.String() == u.relation {
					return true
				}
			}
			continue
		}
		if plan := n.plan(u.relation); t.Name.String() == u.relation && plan != nil && plan[0].kind == chunkOfKeys && u.number >= 1 && u.number <= len(plan) {
			_, ok := n.chunk(u.relation, u.number-1, t.Sharded())
			return ok
		}
	}
	return false
}

// againNote is how much was copied more than once.
type againNote struct{ rows, bytes int64 }

func readAgain(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, replication string,
) (n againNote, err error) {
	err = q.QueryRow(ctx, `SELECT coalesce(sum(rows), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM rehome.copied_again WHERE replication = $1`, replication).Scan(&n.rows, &n.bytes)
	if err != nil {
		return n, fmt.Errorf("read what was copied again: %w", err)
	}
	return n, nil
}
