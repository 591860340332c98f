package replicator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

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
	next := func() []unit {
		mu.Lock()
		defer mu.Unlock()
		if len(jobs) == 0 {
			return nil
		}
		j := jobs[0]
		jobs = jobs[1:]
		return j
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
				j := next()
				if j == nil {
					return nil
				}
				left, err := w.copy(ctx, j)
				if err != nil {
					return err
				}
				if left {
					mu.Lock()
					rewritten = true
					mu.Unlock()
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
	g.Go(func() error {
		book.run(ctx, done)
		return nil
	})
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

// planCopy lists the units of all tables that are not copied yet, in the portions that a worker takes at once.
func (e *Engine) planCopy(ctx context.Context, snap *view, notes copyNotes) ([][]unit, error) {
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
	return portions(jobs, e.throttle.workers()), nil
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
