package replicator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/schema"
	"github.com/rehomedb/rehome/tenant"
)

// indexJobs is how many sessions at each shard create indexes; shards are servers of their own. While rows are still
// coming one of them works.
const indexJobs = 2

// early creates indexes of tables that every shard has while others are still being copied, so that the shards have
// something to do when the last large table has but one session at work. It takes tables that came as a whole under the
// slot's snapshot only, whose keys cannot fail for their rows.
//
// What it does not do, for whatever reason, RestorePost does behind it, and RestorePost is who tells of errors.
type early struct {
	e       *Engine
	archive *schema.Archive
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex
	ready    [][]buildTask // of each shard
	busy     []int         // sessions of each shard whose work may bring more
	analysed []map[tenant.TableName]bool
	ended    bool
	changed  chan struct{} // closed when anything changes, and made anew
}

// buildTask is a table, or one of its indexes when its keys are there: those of a large table are created side by side, since
// the last ones would otherwise leave the shard's other cores without work.
type buildTask struct {
	table *catalog.Table
	index int
	left  *atomic.Int32 // indexes of the table that are not created yet; nil: the task is the table
}

func (t buildTask) small() bool { return t.left == nil && t.table.Bytes <= smallTable }

// buildEarly starts to create indexes; the caller stops it.
func (e *Engine) buildEarly(ctx context.Context, archive *schema.Archive) *early {
	b := &early{e: e, archive: archive, changed: make(chan struct{}), ready: make([][]buildTask, len(e.cfg.Shards)), busy: make([]int, len(e.cfg.Shards))}
	ctx, b.cancel = context.WithCancel(ctx)
	for i := range e.cfg.Shards {
		b.analysed = append(b.analysed, map[tenant.TableName]bool{})
		for n := range indexJobs {
			b.workers.Go(func() { b.work(ctx, i, n > 0) })
		}
	}
	return b
}

// stop gives up what is under way.
func (b *early) stop() {
	b.cancel()
	b.workers.Wait()
}

// add says that a unit is there at every shard. A nil early takes nothing.
func (b *early) add(u unit) {
	t := u.table
	if b == nil || u.chunk != nil || t.Partitioned || len(t.Leaves) != 1 || t.Leaves[0].Name != t.Name {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.ready {
		b.ready[i] = append(b.ready[i], buildTask{table: t})
	}
	b.signal()
}

// finish says that no more tables come, so that all sessions work on what is left, and waits for them. It tells for each
// shard which tables are analysed.
func (b *early) finish() map[string]map[tenant.TableName]bool {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	b.ended = true
	b.signal()
	b.mu.Unlock()
	b.workers.Wait()
	out := map[string]map[tenant.TableName]bool{}
	for i, sh := range b.e.cfg.Shards {
		out[sh.Name] = b.analysed[i]
	}
	return out
}

func (b *early) signal() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// next waits for a task and takes the largest, or several small tables: none when there will be none. The caller says with
// done when that is built.
func (b *early) next(ctx context.Context, shard int, last bool) []buildTask {
	for {
		b.mu.Lock()
		if ready := b.ready[shard]; len(ready) > 0 && (b.ended || !last) {
			slices.SortStableFunc(ready, func(x, y buildTask) int { return cmp.Compare(y.table.Bytes, x.table.Bytes) })
			n := 1
			for ready[0].small() && n < min(len(ready), portionUnits) {
				n++
			}
			out := slices.Clone(ready[:n])
			b.ready[shard] = slices.Delete(ready, 0, n)
			b.busy[shard]++
			b.mu.Unlock()
			return out
		}
		ended, changed := b.ended && b.busy[shard] == 0, b.changed
		b.mu.Unlock()
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// done says that what next gave is built, and what that brought: further tasks, or tables that are analysed.
func (b *early) done(shard int, more []buildTask, analysed []tenant.TableName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy[shard]--
	b.ready[shard] = append(b.ready[shard], more...)
	for _, n := range analysed {
		b.analysed[shard][n] = true
	}
	b.signal()
}

func (b *early) work(ctx context.Context, shard int, last bool) {
	sh := b.e.cfg.Shards[shard]
	var builder *schema.Builder
	defer func() {
		if builder != nil {
			builder.Close()
		}
	}()
	for {
		tasks := b.next(ctx, shard, last)
		if len(tasks) == 0 {
			return
		}
		var more []buildTask
		var analysed []tenant.TableName
		var err error
		if builder == nil {
			builder, err = b.archive.Builder(ctx, sh.DSN, b.e.cfg.Replication)
		}
		if err == nil {
			more, analysed, err = build(ctx, builder, tasks)
		}
		b.done(shard, more, analysed)
		if err != nil {
			if ctx.Err() == nil {
				b.e.log.Info("indexes are not created during the copy", "shard", sh.Name, "relation", tasks[0].table.Name.String(), "error", err)
			}
			return
		}
	}
}

// build does tasks: several small tables, a large one's keys, or one of its indexes, whose last one is followed by ANALYZE.
func build(ctx context.Context, builder *schema.Builder, tasks []buildTask) (more []buildTask, analysed []tenant.TableName, err error) {
	t := tasks[0]
	name := t.table.Name
	switch {
	case t.small():
		for _, t := range tasks {
			analysed = append(analysed, t.table.Name)
		}
		if err := builder.Tables(ctx, analysed); err != nil {
			return nil, nil, err
		}
		return nil, analysed, nil
	case t.left == nil:
		indexes, err := builder.Keys(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		if indexes > 0 {
			left := new(atomic.Int32)
			left.Store(int32(indexes))
			for i := range indexes {
				more = append(more, buildTask{table: t.table, index: i, left: left})
			}
			return more, nil, nil
		}
	default:
		if err := builder.Index(ctx, name, t.index); err != nil {
			return nil, nil, err
		}
		if t.left.Add(-1) > 0 {
			return nil, nil, nil
		}
	}
	// Behind its last index, whose expressions have figures of their own.
	if err := builder.Analyse(ctx, name); err != nil {
		return nil, nil, err
	}
	return nil, []tenant.TableName{name}, nil
}

// analyse gives the planner figures of all that was copied or filled, except of what has them.
func (e *Engine) analyse(ctx context.Context, c *pgx.Conn, done map[tenant.TableName]bool) error {
	rows, err := c.Query(ctx, `SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r','p','m') AND NOT c.relispartition AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
		ORDER BY 1, 2`)
	if err != nil {
		return fmt.Errorf("analyse: %w", err)
	}
	var names []string
	var name tenant.TableName
	_, err = pgx.ForEachRow(rows, []any{&name.Schema, &name.Name}, func() error {
		if !done[name] {
			names = append(names, name.Quoted())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("analyse: %w", err)
	}
	if len(names) == 0 {
		return nil
	}
	// Each table is a transaction of its own (manual, ANALYZE); partitions come with their roots.
	if _, err := c.Exec(ctx, "ANALYZE "+strings.Join(names, ", ")); err != nil {
		return fmt.Errorf("analyse: %w", err)
	}
	return nil
}
