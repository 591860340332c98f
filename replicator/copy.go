package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/snapshot"
	"github.com/rehomedb/rehome/tenant"
)

// rewrittenPause is how soon a relation that was rewritten is tried again: whatever rewrote it may do it once more.
const rewrittenPause = 200 * time.Millisecond

// copyTables copies what is not copied yet, under one snapshot, the largest units first. It reports whether relations are
// left that were rewritten since the snapshot, which does not see their rows: what else is being copied, perhaps for hours,
// is not given up for them. build, if there is one, is told of what every shard has.
func (e *Engine) copyTables(ctx context.Context, snap *view, notes copyNotes, build *early) (rewritten bool, err error) {
	if err := e.settleAgain(ctx, notes); err != nil {
		return false, err
	}
	jobs, err := e.planCopy(ctx, snap, notes)
	if err != nil {
		return false, err
	}
	var mu sync.Mutex
	next := func() (unit, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(jobs) == 0 {
			return unit{}, false
		}
		j := jobs[0]
		jobs = jobs[1:]
		return j, true
	}
	book := newLedger(e)
	g, ctx := errgroup.WithContext(ctx)
	var workers sync.WaitGroup
	for i := range min(maxCopyJobs, len(jobs)) {
		workers.Add(1)
		g.Go(func() error {
			defer workers.Done()
			w := copyWorker{e: e, snap: snap, book: book, build: build}
			defer w.close()
			for {
				if !e.throttle.allows(i) { // the operator may allow more or fewer workers meanwhile
					w.close()
					mu.Lock()
					left := len(jobs)
					mu.Unlock()
					if left == 0 {
						return nil
					}
					if err := wait(ctx, admitEvery); err != nil {
						return err
					}
					continue
				}
				if err := e.throttle.wait(ctx, 0); err != nil {
					return err
				}
				j, ok := next()
				if !ok {
					return nil
				}
				err := w.copy(ctx, j)
				if errors.Is(err, snapshot.ErrRewritten) {
					e.log.Info("a relation was rewritten since the snapshot; it is copied under a later one", "relation", j.relation())
					mu.Lock()
					rewritten = true
					mu.Unlock()
					continue
				}
				if err != nil {
					return err
				}
			}
		})
	}
	done := make(chan struct{})
	g.Go(func() error {
		workers.Wait()
		close(done)
		return nil
	})
	g.Go(func() error { return book.run(ctx, done) })
	err = g.Wait()
	return rewritten, err
}

// copyRewritten copies what was rewritten since the snapshot, under a new one each time, until nothing of it is left. Nothing
// comes between such a snapshot and the copy that could take long: a table that is truncated every other second would
// never be copied otherwise.
func (e *Engine) copyRewritten(ctx context.Context) error {
	for again := true; again; {
		if err := wait(ctx, rewrittenPause); err != nil {
			return err
		}
		snap, err := e.src.temporarySnapshot(ctx, "copy")
		if err != nil {
			return err
		}
		again, err = e.copyLeft(ctx, snap)
		snap.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// copyLeft copies what is left under a snapshot that was just made.
func (e *Engine) copyLeft(ctx context.Context, snap *view) (rewritten bool, err error) {
	if err := e.noteCopied(ctx); err != nil {
		return false, err
	}
	if err := e.refreshLeaves(ctx, snap); err != nil {
		return false, err
	}
	notes, err := e.takeNotes(ctx)
	if err != nil {
		return false, err
	}
	return e.copyTables(ctx, snap, notes, nil)
}

// planCopy lists the units of all tables that are not copied yet.
func (e *Engine) planCopy(ctx context.Context, snap *view, notes copyNotes) ([]unit, error) {
	p := &planner{e: e, snap: snap, notes: notes}
	defer p.close()
	var jobs []unit
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		if _, done := e.copyOf(t); done {
			continue
		}
		units, err := p.units(ctx, t)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, units...)
	}
	slices.SortStableFunc(jobs, func(a, b unit) int { return cmp.Compare(b.size, a.size) })
	return jobs, nil
}

// copyWorker copies one unit after another on sessions of its own.
type copyWorker struct {
	e      *Engine
	snap   *view
	book   *ledger
	build  *early // nil: indexes are created behind the copy only
	source *pgx.Conn
	shards []*pgx.Conn
}

func (w *copyWorker) close() {
	closeSoon(w.source)
	for _, c := range w.shards {
		closeSoon(c)
	}
	w.source, w.shards = nil, nil
}

func (w *copyWorker) open(ctx context.Context) (err error) {
	if w.source != nil {
		return nil
	}
	if w.source, err = w.e.src.reader(ctx, w.snap.name, "copy"); err != nil {
		return err
	}
	for _, sh := range w.e.cfg.Shards {
		c, err := w.e.shardSession(ctx, sh, "copy")
		if err != nil {
			return err
		}
		w.shards = append(w.shards, c)
	}
	return nil
}

// copy brings one unit to all shards: at each shard the rows, the removal of what an earlier try left there, and the note
// that it is done commit together. A shard that committed while another failed is emptied of it later, since only
// agreement counts.
func (w *copyWorker) copy(ctx context.Context, j unit) (err error) {
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.open(ctx); err != nil {
		return err
	}
	targets := make([]*pgconn.PgConn, len(w.shards))
	for i, c := range w.shards {
		if err := w.begin(ctx, c, j, i); err != nil {
			return fmt.Errorf("copy %s: shard %s: %w", j, w.e.cfg.Shards[i].Name, err)
		}
		targets[i] = c.PgConn()
	}
	j.stat.begin()
	counters := w.book.begin(j)
	undo := j.stat.count(counters)
	res, err := snapshot.CopyLeaf(ctx, snapshot.Spec{
		Table: j.table.Name, Leaf: j.leaf, Part: j.part(), Columns: j.table.Copied(), RealmKey: j.table.RealmKey,
		Source: w.source.PgConn(), Targets: targets, Route: w.e.router.lane, Freeze: j.chunk == nil, Counters: counters,
		Pace: w.e.throttle.wait, Text: slices.ContainsFunc(w.shards, needsText),
	})
	if err != nil {
		undo()
		return copyError(err)
	}
	for i, c := range w.shards {
		bytes := res.Bytes
		if j.table.Sharded() && i > 0 {
			bytes = 0 // the stream was one; its bytes are counted once
		}
		if err := w.commit(ctx, c, j, res.PerTarget[i], bytes); err != nil {
			undo()
			return fmt.Errorf("copy %s: shard %s: %w", j, w.e.cfg.Shards[i].Name, err)
		}
	}
	j.stat.finishUnit(counters, res.Rows, res.Bytes)
	if err := w.book.finish(ctx, j, w.shards[0]); err != nil {
		return err
	}
	if err := w.e.cfg.Journal.CopiedTable(ctx, j.relation(), j.number(), w.snap.lsn, res.Rows, res.Bytes); err != nil {
		return err
	}
	w.build.add(j)
	return nil
}

func copyError(err error) error {
	if errors.Is(err, snapshot.ErrNullRealm) {
		return stop("row-without-realm", "give every row a realm at the source, or declare the table with --reference; then start again", "%v", err)
	}
	return err
}

func (w *copyWorker) begin(ctx context.Context, c *pgx.Conn, j unit, shard int) error {
	if _, err := c.Exec(ctx, "BEGIN"); err != nil {
		return err
	}
	if err := w.e.ownShared(ctx, c); err != nil {
		return err
	}
	var err error
	switch {
	case j.chunk == nil:
		_, err = c.Exec(ctx, "TRUNCATE ONLY "+j.leaf.Name.Quoted())
	case j.redo != nil && j.redo[shard]:
		target := "ONLY "
		if j.table.Partitioned {
			target = "" // a chunk of keys lies in all the leaves
		}
		_, err = c.Exec(ctx, "DELETE FROM "+target+j.leaf.Name.Quoted()+" WHERE "+j.chunk.where())
	}
	return err
}

func (w *copyWorker) commit(ctx context.Context, c *pgx.Conn, j unit, rows, bytes int64) error {
	if j.chunk != nil {
		tag, err := c.Exec(ctx, `UPDATE rehome.chunks SET watermark = $4::pg_lsn, rows = $5, bytes = $6 WHERE replication = $1 AND relation = $2 AND chunk = $3`,
			w.e.cfg.Replication, j.relation(), j.chunk.number, w.snap.lsn.String(), rows, bytes)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("%w: the plan of %s is gone", ErrFenced, j) // only who owns the shard changes it
		}
	} else {
		_, err := c.Exec(ctx, `INSERT INTO rehome.copied (replication, relation, watermark, rows, bytes) VALUES ($1, $2, $3::pg_lsn, $4, $5)
			ON CONFLICT (replication, relation) DO UPDATE SET watermark = excluded.watermark, rows = excluded.rows, bytes = excluded.bytes`,
			w.e.cfg.Replication, j.relation(), w.snap.lsn.String(), rows, bytes)
		if err != nil {
			return err
		}
	}
	_, err := c.Exec(ctx, "COMMIT")
	return err
}

// freeze does for tables that came in chunks what COPY FREEZE did for the others: vacuum would otherwise write all their
// rows again later, when the shard is in use.
func (e *Engine) freeze(ctx context.Context, sh Shard, relations []tenant.TableName) error {
	if len(relations) == 0 {
		return nil
	}
	c, err := e.shardSession(ctx, sh, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	for _, r := range relations {
		e.stats.setStep(fmt.Sprintf("freezing the rows of %s on %s", r, sh.Name))
		if _, err := c.Exec(ctx, "VACUUM (FREEZE) "+r.Quoted()); err != nil {
			return fmt.Errorf("vacuum %s: %w", r, err)
		}
	}
	return nil
}

// refreshLeaves reads the leaves' storage again: what was rewritten since the catalogue was read is copied as it is now. A
// table that was dropped has no rows under the snapshot, and that is its copy: the stream drops it later. One that is still
// to be copied must otherwise be what was described: rows of a partition that came meanwhile would be
// neither in the copy nor, before the new snapshot, in the stream.
func (e *Engine) refreshLeaves(ctx context.Context, snap *view) error {
	now, err := e.describeUnder(ctx, snap)
	if err != nil {
		return err
	}
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		if _, done := e.copyOf(t); done {
			continue
		}
		fresh := now.Table(t.OID)
		what := fmt.Sprintf("table %s is not replicated any more as it was", t.Name)
		if fresh == nil {
			gone, err := e.isGone(ctx, snap, t)
			if err != nil {
				return err
			}
			if gone {
				if err := e.copyNothing(ctx, snap, t); err != nil {
					return err
				}
				continue
			}
		} else {
			what = changedTable(t, fresh)
		}
		if what != "" {
			return stop("schema-changed", "cancel the replication and start it again", "%s before it was copied", what)
		}
		for k := range t.Leaves {
			for _, l := range fresh.Leaves {
				if l.OID == t.Leaves[k].OID {
					t.Leaves[k].Filenode = l.Filenode
				}
			}
		}
	}
	return nil
}

// needsText says that a shard may not take every type in binary: before 14 arrays and composites of custom types are
// refused unless their OIDs are the source's (array_recv, record_recv).
func needsText(c *pgx.Conn) bool {
	const binaryFrom = 14
	major, _, _ := strings.Cut(c.PgConn().ParameterStatus("server_version"), ".")
	v, err := strconv.Atoi(major)
	return err != nil || v < binaryFrom
}
