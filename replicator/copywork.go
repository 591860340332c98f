package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/snapshot"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// smallTable is up to what size in bytes, at the source, a table is small: what surrounds its copy then costs more than its
	// rows. Such tables are copied several in a transaction. They come without COPY FREEZE, and so without the TRUNCATE that it
	// needs: the new files of both cost far more than vacuum's later visit to so few pages.
	smallTable = 256 << 10
	// portionUnits and portionBytes bound what one transaction copies of small tables: enough that the transaction itself
	// counts for little, few enough that a crash costs little, and that the locks fit (max_locks_per_transaction is 64 by default).
	portionUnits = 64
	portionBytes = 4 << 20
	// portionsEach is how many portions each worker should find, so that all end at about the same time.
	portionsEach = 4
)

func (u unit) small() bool { return u.chunk == nil && u.size <= smallTable }

// portions puts small tables together, which are the last of the units; each of the others is by itself. Where there are
// but a few, they stay by themselves too, so that no worker is without one.
func portions(units []unit, workers int) [][]unit {
	var out [][]unit
	first := len(units)
	for first > 0 && units[first-1].small() {
		first--
	}
	for i := range units[:first] {
		out = append(out, units[i:i+1])
	}
	most := min(portionUnits, max(1, (len(units)-first)/(max(1, workers)*portionsEach)))
	for rest := units[first:]; len(rest) > 0; {
		n, bytes := 0, int64(0)
		for n < len(rest) && n < most && (n == 0 || bytes+rest[n].size <= portionBytes) {
			bytes += rest[n].size
			n++
		}
		out = append(out, rest[:n])
		rest = rest[n:]
	}
	return out
}

// copyWorker copies one portion of units after another on sessions of its own.
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
	w.source = nil
	w.closeShards()
}

// closeShards gives up the sessions at the shards, which it does after many tables too: the fence's trigger leaves each session
// a plan for each table, and whenever an index is made anywhere every session goes through all the plans that it has.
func (w *copyWorker) closeShards() {
	for _, c := range w.shards {
		closeSoon(c)
	}
	w.shards = nil
}

func (w *copyWorker) open(ctx context.Context) (err error) {
	if w.source == nil {
		if w.source, err = w.e.src.reader(ctx, w.snap.name, "copy"); err != nil {
			return err
		}
	}
	if len(w.shards) > 0 {
		return nil
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

// copy brings the units of a portion to all shards: at each shard the rows, the removal of what an earlier try left there, and
// the notes that they are done commit together. A shard that committed while another failed is emptied of them later, since
// only agreement counts. It reports whether units are left that were rewritten since the snapshot.
func (w *copyWorker) copy(ctx context.Context, units []unit) (rewritten bool, err error) {
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.open(ctx); err != nil {
		return false, err
	}
	units, rewritten, err = w.prepared(ctx, units)
	if err != nil || len(units) == 0 {
		return rewritten, err
	}
	targets := make([]*pgconn.PgConn, len(w.shards))
	for i, c := range w.shards {
		if err := w.begin(ctx, c, units, i); err != nil {
			return false, fmt.Errorf("copy %s: shard %s: %w", named(units), w.e.cfg.Shards[i].Name, err)
		}
		targets[i] = c.PgConn()
	}
	counters := w.book.begin(units)
	undo := make([]func(), 0, len(units))
	defer func() {
		if err != nil {
			for _, u := range undo {
				u()
			}
		}
	}()
	results := make([]snapshot.Result, len(units))
	for k, j := range units {
		if err := w.e.throttle.wait(ctx, 0); err != nil {
			return false, err
		}
		j.stat.begin()
		undo = append(undo, j.stat.count(counters[k]))
		results[k], err = snapshot.CopyLeaf(ctx, snapshot.Spec{
			Table: j.table.Name, Leaf: j.leaf, Part: j.part(), Columns: j.table.Copied(), RealmKey: j.table.RealmKey,
			Source: w.source.PgConn(), Targets: targets, Route: w.e.router.lane, Prepared: true, Freeze: j.frozen(), Counters: counters[k],
			Pace: w.e.throttle.wait, Text: slices.ContainsFunc(w.shards, needsText),
		})
		if err != nil {
			return false, copyError(err)
		}
	}
	for i, c := range w.shards {
		if err := w.commit(ctx, c, units, results, i); err != nil {
			return false, fmt.Errorf("copy %s: shard %s: %w", named(units), w.e.cfg.Shards[i].Name, err)
		}
	}
	undo = nil
	for k, j := range units {
		j.stat.finishUnit(counters[k], results[k].Rows, results[k].Bytes)
	}
	w.book.finish(units)
	if err := w.e.recordCopied(ctx, w.snap.lsn, units, results); err != nil {
		return false, err
	}
	for _, j := range units {
		w.build.add(j)
	}
	if len(units) > 1 {
		w.closeShards()
	}
	return rewritten, nil
}

// prepared makes the source's session ready for the units and leaves out those that were rewritten since the snapshot.
func (w *copyWorker) prepared(ctx context.Context, units []unit) (ready []unit, rewritten bool, err error) {
	var leaves []catalog.Leaf
	for _, j := range units {
		leaves = append(leaves, j.leaves()...)
	}
	errs := snapshot.Prepare(ctx, w.source.PgConn(), leaves)
	for _, j := range units {
		n := len(j.leaves())
		first := slices.IndexFunc(errs[:n], func(err error) bool { return err != nil })
		switch {
		case first < 0:
			ready = append(ready, j)
		case errors.Is(errs[first], snapshot.ErrRewritten):
			w.e.log.Info("a relation was rewritten since the snapshot; it is copied under a later one", "relation", j.relation())
			rewritten = true
		default:
			return nil, false, fmt.Errorf("copy %s: %w", named(units), errs[first])
		}
		errs = errs[n:]
	}
	return ready, rewritten, nil
}

func copyError(err error) error {
	if errors.Is(err, snapshot.ErrNullRealm) {
		return stop("row-without-realm", "give every row a realm at the source, or declare the table with --reference; then start again", "%v", err)
	}
	return err
}

// begin opens a shard's transaction and empties the units there.
func (w *copyWorker) begin(ctx context.Context, c *pgx.Conn, units []unit, shard int) error {
	var names, truncate []string
	for _, j := range units {
		if j.small() {
			names = append(names, tenant.QuoteLiteral(j.leaf.Name.Quoted()))
		} else if j.chunk == nil {
			truncate = append(truncate, "ONLY "+j.leaf.Name.Quoted())
		}
	}
	// One round trip, by the simple protocol; the epoch's row stays locked until the end, see ownShared.
	sql := "BEGIN; SELECT 1 FROM rehome.applier WHERE replication = " + tenant.QuoteLiteral(w.e.cfg.Replication) +
		" AND epoch = " + strconv.FormatInt(w.e.cfg.Epoch, 10) + " FOR SHARE; " + snapshot.Settings
	if len(names) > 0 {
		// Small tables have no rows unless an earlier try left some.
		sql += "; SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" +
			" WHERE c.oid = ANY (ARRAY[" + strings.Join(names, ", ") + "]::pg_catalog.regclass[]::pg_catalog.oid[]) AND pg_catalog.pg_relation_size(c.oid) > 0"
	}
	results, err := c.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return err
	}
	if len(results[1].Rows) == 0 {
		return ErrFenced
	}
	if len(names) > 0 {
		for _, row := range results[len(results)-1].Rows {
			truncate = append(truncate, "ONLY "+string(row[0]))
		}
	}
	if len(truncate) > 0 {
		if _, err := c.Exec(ctx, "TRUNCATE "+strings.Join(truncate, ", ")); err != nil {
			return err
		}
	}
	for _, j := range units {
		if j.chunk == nil || j.redo == nil || !j.redo[shard] {
			continue
		}
		target := "ONLY "
		if j.table.Partitioned {
			target = "" // a chunk of keys lies in all the leaves
		}
		if _, err := c.Exec(ctx, "DELETE FROM "+target+j.leaf.Name.Quoted()+" WHERE "+j.chunk.where()); err != nil {
			return err
		}
	}
	return nil
}

// commit notes at a shard that the units are done and ends its transaction.
func (w *copyWorker) commit(ctx context.Context, c *pgx.Conn, units []unit, results []snapshot.Result, shard int) error {
	var leaves []string
	var rows, bytes []int64
	for k, j := range units {
		size := results[k].Bytes
		if j.table.Sharded() && shard > 0 {
			size = 0 // the stream was one; its bytes are counted once
		}
		if j.chunk == nil {
			leaves, rows, bytes = append(leaves, j.relation()), append(rows, results[k].PerTarget[shard]), append(bytes, size)
			continue
		}
		tag, err := c.Exec(ctx, `UPDATE rehome.chunks SET watermark = $4::pg_lsn, rows = $5, bytes = $6 WHERE replication = $1 AND relation = $2 AND chunk = $3`,
			w.e.cfg.Replication, j.relation(), j.chunk.number, w.snap.lsn.String(), results[k].PerTarget[shard], size)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("%w: the plan of %s is gone", ErrFenced, j) // only who owns the shard changes it
		}
	}
	if len(leaves) > 0 {
		_, err := c.Exec(ctx, `INSERT INTO rehome.copied (replication, relation, watermark, rows, bytes)
			SELECT $1, u.relation, $3::pg_lsn, u.rows, u.bytes FROM unnest($2::text[], $4::bigint[], $5::bigint[]) u(relation, rows, bytes)
			ON CONFLICT (replication, relation) DO UPDATE SET watermark = excluded.watermark, rows = excluded.rows, bytes = excluded.bytes`,
			w.e.cfg.Replication, leaves, w.snap.lsn.String(), rows, bytes)
		if err != nil {
			return err
		}
	}
	_, err := c.Exec(ctx, "COMMIT")
	return err
}

// recordCopied tells the journal of units that every shard has: at once where it takes several.
func (e *Engine) recordCopied(ctx context.Context, watermark tenant.LSN, units []unit, results []snapshot.Result) error {
	made := make([]CopiedUnit, len(units))
	for k, j := range units {
		made[k] = CopiedUnit{Relation: j.relation(), Chunk: j.number(), Rows: results[k].Rows, Bytes: results[k].Bytes}
	}
	if several, ok := e.cfg.Journal.(JournalOfMany); ok {
		return several.CopiedTables(ctx, watermark, made)
	}
	for _, m := range made {
		if err := e.cfg.Journal.CopiedTable(ctx, m.Relation, m.Chunk, watermark, m.Rows, m.Bytes); err != nil {
			return err
		}
	}
	return nil
}
