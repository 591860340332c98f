package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/snapshot"
	"github.com/rehomedb/rehome/tenant"
)

// copied is what a shard says of a relation that was copied to it.
type copied struct {
	watermark tenant.LSN
	rows      int64
	bytes     int64
}

// readCopied asks every shard what is copied; a relation counts when all of them agree on its watermark. A table counts
// when all its leaves do with one watermark, since the stream names only the root of a partition tree.
func (e *Engine) readCopied(ctx context.Context) (map[uint32]copied, error) {
	perShard := make([]map[string]copied, len(e.cfg.Shards))
	for i, sh := range e.cfg.Shards {
		conn, err := connect(ctx, sh.DSN, "rehome-setup-"+e.cfg.Replication, nil)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
		}
		perShard[i] = map[string]copied{}
		rows, err := conn.Query(ctx, `SELECT relation, watermark::text, rows, bytes FROM rehome.copied WHERE replication = $1`, e.cfg.Replication)
		if err == nil {
			var rel string
			var c copied
			_, err = pgx.ForEachRow(rows, []any{&rel, &c.watermark, &c.rows, &c.bytes}, func() error {
				perShard[i][rel] = c
				return nil
			})
		}
		closeSoon(conn)
		if err != nil {
			return nil, fmt.Errorf("shard %s: read what is copied: %w", sh.Name, err)
		}
	}
	out := map[uint32]copied{}
	for ti := range e.cat.Tables {
		t := &e.cat.Tables[ti]
		if sum, ok := agreed(t, perShard); ok {
			out[t.OID] = sum
		}
	}
	return out, nil
}

// noteCopied takes note of what is copied, for the watermarks and for showing.
func (e *Engine) noteCopied(ctx context.Context) error {
	done, err := e.readCopied(ctx)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.copied = done
	e.mu.Unlock()
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		if c, ok := done[t.OID]; ok {
			e.stats.table(t).finish(c.rows, c.bytes)
		}
	}
	return nil
}

func agreed(t *catalog.Table, perShard []map[string]copied) (sum copied, ok bool) {
	first := true
	for _, leaf := range t.Leaves {
		for i, shard := range perShard {
			c, there := shard[leaf.Name.String()]
			if !there || (!first && c.watermark != sum.watermark) {
				return copied{}, false
			}
			first = false
			sum.watermark = c.watermark
			if t.Sharded() || i == 0 {
				sum.rows += c.rows
				sum.bytes += c.bytes
			}
		}
	}
	return sum, true
}

// watermark is the position of the snapshot that a table was copied under.
func (e *Engine) watermark(t *catalog.Table) tenant.LSN {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.copied[t.OID].watermark
}

// leafJob is one relation to copy.
type leafJob struct {
	table *catalog.Table
	leaf  catalog.Leaf
	stat  *tableStat
}

// copyTables copies what is not copied yet, under one snapshot, largest relation first.
func (e *Engine) copyTables(ctx context.Context, snap *view) error {
	var jobs []leafJob
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		e.mu.Lock()
		_, done := e.copied[t.OID]
		e.mu.Unlock()
		if done {
			continue
		}
		e.stats.table(t).restart(len(t.Leaves))
		for _, l := range t.Leaves {
			jobs = append(jobs, leafJob{table: t, leaf: l, stat: e.stats.table(t)})
		}
	}
	slices.SortStableFunc(jobs, func(a, b leafJob) int { return cmp.Compare(b.leaf.Bytes, a.leaf.Bytes) })
	var mu sync.Mutex
	next := func() (leafJob, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(jobs) == 0 {
			return leafJob{}, false
		}
		j := jobs[0]
		jobs = jobs[1:]
		return j, true
	}
	g, ctx := errgroup.WithContext(ctx)
	for range min(e.cfg.Options.CopyJobs, len(jobs)) {
		g.Go(func() error {
			w := copyWorker{e: e, snap: snap}
			defer w.close()
			for {
				j, ok := next()
				if !ok {
					return nil
				}
				if err := w.copy(ctx, j); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// copyWorker copies one relation after another on sessions of its own.
type copyWorker struct {
	e      *Engine
	snap   *view
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

// copy brings one relation to all shards: at each shard the truncation, the rows and the note that it is done commit
// together. A shard that committed while another failed is truncated again later, since only agreement counts.
func (w *copyWorker) copy(ctx context.Context, j leafJob) (err error) {
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
		if err := w.begin(ctx, c, j.leaf); err != nil {
			return fmt.Errorf("copy table %s: shard %s: %w", j.leaf.Name, w.e.cfg.Shards[i].Name, err)
		}
		targets[i] = c.PgConn()
	}
	j.stat.begin()
	var counters snapshot.Counters
	undo := j.stat.count(&counters)
	res, err := snapshot.CopyLeaf(ctx, snapshot.Spec{
		Table: j.table.Name, Leaf: j.leaf, Columns: j.table.Copied(), RealmKey: j.table.RealmKey,
		Source: w.source.PgConn(), Targets: targets, Route: w.e.router.lane, Freeze: true, Counters: &counters,
	})
	if err != nil {
		undo()
		return copyError(j, err)
	}
	for i, c := range w.shards {
		bytes := res.Bytes
		if j.table.Sharded() && i > 0 {
			bytes = 0 // the stream was one; its bytes are counted once
		}
		if err := w.commit(ctx, c, j.leaf, res.PerTarget[i], bytes); err != nil {
			undo()
			return fmt.Errorf("copy table %s: shard %s: %w", j.leaf.Name, w.e.cfg.Shards[i].Name, err)
		}
	}
	j.stat.finishLeaf(&counters, res.Rows, res.Bytes)
	return w.e.cfg.Journal.CopiedTable(ctx, j.leaf.Name.String(), w.snap.lsn, res.Rows, res.Bytes)
}

func copyError(j leafJob, err error) error {
	switch {
	case errors.Is(err, snapshot.ErrRewritten):
		// The next snapshot sees the rewritten table whole.
		return tenant.Errorf(tenant.KindUnavailable, "table-rewritten", "", "table %s was rewritten while it was being copied; it is copied again", j.leaf.Name)
	case errors.Is(err, snapshot.ErrNullRealm):
		return stop("row-without-realm", "give every row a realm at the source, or declare the table with --reference; then start again", "%v", err)
	}
	return err
}

func (w *copyWorker) begin(ctx context.Context, c *pgx.Conn, leaf catalog.Leaf) error {
	if _, err := c.Exec(ctx, "BEGIN"); err != nil {
		return err
	}
	var owned int
	err := c.QueryRow(ctx, `SELECT 1 FROM rehome.applier WHERE replication = $1 AND epoch = $2 FOR SHARE`, w.e.cfg.Replication, w.e.cfg.Epoch).Scan(&owned)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrFenced
	}
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, "TRUNCATE ONLY "+leaf.Name.Quoted())
	return err
}

func (w *copyWorker) commit(ctx context.Context, c *pgx.Conn, leaf catalog.Leaf, rows, bytes int64) error {
	_, err := c.Exec(ctx, `INSERT INTO rehome.copied (replication, relation, watermark, rows, bytes) VALUES ($1, $2, $3::pg_lsn, $4, $5)
		ON CONFLICT (replication, relation) DO UPDATE SET watermark = excluded.watermark, rows = excluded.rows, bytes = excluded.bytes`,
		w.e.cfg.Replication, leaf.Name.String(), w.snap.lsn.String(), rows, bytes)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, "COMMIT")
	return err
}

// refreshLeaves reads the leaves' storage again: what was rewritten since the catalogue was read is copied as it is now. A
// table that is still to be copied must otherwise be what was described: rows of a partition that came meanwhile would be
// neither in the copy nor, before the new snapshot, in the stream.
func (e *Engine) refreshLeaves(ctx context.Context, snap *view) error {
	now, err := e.describeUnder(ctx, snap)
	if err != nil {
		return err
	}
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		e.mu.Lock()
		_, done := e.copied[t.OID]
		e.mu.Unlock()
		if done {
			continue
		}
		fresh := now.Table(t.OID)
		what := fmt.Sprintf("table %s is gone from the source", t.Name)
		if fresh != nil {
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
