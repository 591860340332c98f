package replicator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/snapshot"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// scatteredChunks bounds the chunks of a table whose rows do not lie in the order of its key: reading one range of such
	// a key touches nearly every page, so that each chunk costs the source about one reading of the table.
	scatteredChunks = 8
	// inOrder is the correlation (pg_stats) from which rows count as lying in the order of their key.
	inOrder = 0.9
	// samplePages is how much of a table is looked at to find keys that cut it into even parts: 24 MB, hundreds of
	// thousands of rows, read within a second.
	samplePages = 3000
	blockSize   = 8192
)

// unit is the least that a transaction per shard copies: a leaf, or a chunk.
type unit struct {
	table *catalog.Table
	leaf  catalog.Leaf // of a chunk of keys only its name counts: the table's
	chunk *chunk       // nil: the whole leaf
	redo  []bool       // of a chunk: shards that committed it although not all did
	size  int64        // estimate, for the order
	stat  *tableStat
}

func (u unit) relation() string { return u.leaf.Name.String() }

func (u unit) number() int {
	if u.chunk == nil {
		return 0
	}
	return u.chunk.number
}

func (u unit) String() string {
	if u.chunk == nil {
		return "table " + u.relation()
	}
	return fmt.Sprintf("chunk %d of table %s", u.chunk.number, u.relation())
}

// named names the units of a portion in an error that is not of one of them.
func named(units []unit) string {
	if len(units) == 1 {
		return units[0].String()
	}
	return fmt.Sprintf("%s and %d more", units[0], len(units)-1)
}

// frozen says that the rows come by COPY FREEZE, into a table that is truncated in the same transaction.
func (u unit) frozen() bool { return u.chunk == nil && !u.small() }

// leaves are the relations that are read.
func (u unit) leaves() []catalog.Leaf {
	if part := u.part(); part != nil {
		return part.Leaves
	}
	return []catalog.Leaf{u.leaf}
}

// part is what CopyLeaf must know of a chunk.
func (u unit) part() *snapshot.Part {
	switch {
	case u.chunk == nil:
		return nil
	case u.chunk.kind == chunkOfKeys:
		return &snapshot.Part{Leaves: u.table.Leaves, Where: u.chunk.where()}
	}
	return &snapshot.Part{Leaves: []catalog.Leaf{u.leaf}, Where: u.chunk.where()}
}

// planner decides, under one snapshot, how the tables that are not copied yet are cut.
type planner struct {
	e     *Engine
	snap  *view
	notes copyNotes
	conn  *pgx.Conn // sees the snapshot; nil until it is needed
}

func (p *planner) close() { closeSoon(p.conn) }

// units lists what is to be copied of a table. A plan that the shards have is kept, so that what was finished counts;
// else one is made and recorded at every shard, together with the truncation, before the first row comes.
func (p *planner) units(ctx context.Context, t *catalog.Table) ([]unit, error) {
	name := t.Name.String()
	stat := p.e.stats.table(t)
	if plan := p.notes.plan(name); plan != nil && plan[0].kind == chunkOfKeys {
		var out []unit
		var done copied
		for i := range plan {
			c, ok := p.notes.chunk(name, i, t.Sharded())
			if ok {
				done.rows += c.rows
				done.bytes += c.bytes
				continue
			}
			u := unit{table: t, leaf: catalog.Leaf{Name: t.Name}, chunk: &plan[i], stat: stat, size: t.Bytes / int64(len(plan))}
			for _, s := range p.notes {
				u.redo = append(u.redo, s.chunks[name][i].watermark != 0)
			}
			out = append(out, u)
		}
		stat.restart(len(plan), len(out), true, done.rows, done.bytes)
		return out, nil
	}
	if n := p.pieces(t, t.Bytes); n > 1 {
		key := chunkKey(t)
		if key != nil {
			bounds, err := p.cut(ctx, t, key, n)
			if err != nil {
				return nil, fmt.Errorf("cut table %s into chunks: %w", t.Name, err)
			}
			if len(bounds) > 0 {
				return p.record(ctx, t, catalog.Leaf{Name: t.Name, Bytes: t.Bytes}, cutAt(chunkOfKeys, key.Name, bounds))
			}
		}
	}
	if t.Partitioned && p.notes.planned(name) {
		// The shards do not agree on the chunks of the root: it is copied by leaf now.
		if err := p.write(ctx, t, name, nil); err != nil {
			return nil, err
		}
	}
	var out []unit
	for _, l := range t.Leaves {
		var chunks []chunk
		if n := p.pieces(t, l.Bytes); n > 1 && p.e.cat.Server.Version >= tidRanges {
			var err error
			if chunks, err = p.pages(ctx, l, n); err != nil {
				return nil, fmt.Errorf("cut table %s into chunks: %w", l.Name, err)
			}
		}
		switch {
		case len(chunks) > 1:
			units, err := p.record(ctx, t, l, chunks)
			if err != nil {
				return nil, err
			}
			out = append(out, units...)
			continue
		case p.notes.planned(l.Name.String()):
			if err := p.write(ctx, t, l.Name.String(), nil); err != nil {
				return nil, err
			}
		}
		out = append(out, unit{table: t, leaf: l, stat: stat, size: l.Bytes})
	}
	stat.restart(len(out), len(out), len(t.Leaves) == 1, 0, 0)
	return out, nil
}

// pieces is into how many chunks so many bytes should be cut.
func (p *planner) pieces(t *catalog.Table, bytes int64) int64 {
	if len(t.Copied()) == 0 {
		return 1
	}
	most := p.e.cfg.Options.ChunkBytes
	if t.Sharded() {
		most *= int64(len(p.e.cfg.Shards))
	}
	return (bytes + most - 1) / most
}

func (p *planner) session(ctx context.Context) (_ *pgx.Conn, err error) {
	if p.conn == nil {
		p.conn, err = p.e.src.reader(ctx, p.snap.name, "copy")
	}
	return p.conn, err
}

// cut finds keys that divide a table into about n even parts; fewer when it has few keys.
func (p *planner) cut(ctx context.Context, t *catalog.Table, key *catalog.Column, n int64) ([]string, error) {
	c, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	var correlation float64
	// Of a partition tree there are statistics of the whole, but they say nothing of the leaves' order: never analysed or
	// partitioned counts as scattered.
	err = c.QueryRow(ctx, `SELECT coalesce(max(abs(correlation)), 0) FROM pg_catalog.pg_stats WHERE schemaname = $1 AND tablename = $2 AND attname = $3 AND NOT inherited`,
		t.Name.Schema, t.Name.Name, key.Name).Scan(&correlation)
	if err != nil {
		return nil, err
	}
	if correlation < inOrder {
		n = min(n, scatteredChunks)
	}
	fractions := make([]float64, n-1)
	for i := range fractions {
		fractions[i] = float64(i+1) / float64(n)
	}
	percent := math.Min(100, 100*samplePages*blockSize/float64(max(t.Bytes, 1)))
	only := "ONLY "
	if t.Partitioned {
		only = ""
	}
	column := tenant.QuoteIdent(key.Name)
	sql := "SELECT pg_catalog.unnest(pg_catalog.percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY " + column + "))::text FROM " + only + t.Name.Quoted() +
		" TABLESAMPLE SYSTEM (" + strconv.FormatFloat(percent, 'f', -1, 64) + ") REPEATABLE (1)"
	rows, err := c.Query(ctx, sql, fractions)
	if err != nil {
		return nil, err
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[*string])
	if err != nil {
		return nil, err
	}
	var out []string
	var last keyPoint
	for _, text := range texts {
		if text == nil {
			continue // the sample was empty
		}
		k, err := parseKey(key.BaseOID, []byte(*text))
		if err != nil {
			return nil, err
		}
		if len(out) == 0 || last.less(k) {
			out, last = append(out, *text), k
		}
	}
	return out, nil
}

// pages divides a leaf by its pages; the last chunk takes what was added since.
func (p *planner) pages(ctx context.Context, l catalog.Leaf, n int64) ([]chunk, error) {
	c, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	var pages int64
	if err := c.QueryRow(ctx, `SELECT pg_relation_size($1::oid) / current_setting('block_size')::int`, l.OID).Scan(&pages); err != nil {
		return nil, err
	}
	n = min(n, pages)
	var bounds []string
	for i := int64(1); i < n; i++ {
		bounds = append(bounds, "("+strconv.FormatInt(pages*i/n, 10)+",0)")
	}
	if len(bounds) == 0 {
		return nil, nil
	}
	return cutAt(chunkOfPages, "", bounds), nil
}

// record makes a new plan and the units of it.
func (p *planner) record(ctx context.Context, t *catalog.Table, leaf catalog.Leaf, chunks []chunk) ([]unit, error) {
	name := leaf.Name.String()
	if err := p.write(ctx, t, name, chunks); err != nil {
		return nil, err
	}
	stat := p.e.stats.table(t)
	out := make([]unit, len(chunks))
	for i := range chunks {
		out[i] = unit{table: t, leaf: leaf, chunk: &chunks[i], stat: stat, size: leaf.Bytes / int64(len(chunks))}
	}
	stat.restart(len(out), len(out), true, 0, 0)
	return out, nil
}

// write records at every shard how a relation is cut, and empties it there: what an earlier plan brought does not count
// any more. A crash in between leaves shards that do not agree, and the next worker plans anew.
func (p *planner) write(ctx context.Context, t *catalog.Table, relation string, chunks []chunk) error {
	emptied := []string{relation}
	var truncate []string
	for _, l := range t.Leaves {
		if relation == t.Name.String() || relation == l.Name.String() {
			emptied = append(emptied, l.Name.String())
			truncate = append(truncate, "ONLY "+l.Name.Quoted())
		}
	}
	return p.e.eachShard(ctx, "copy", func(_ Shard, c *pgx.Conn) error {
		err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if err := p.e.ownShared(ctx, tx); err != nil {
				return err
			}
			if len(truncate) > 0 {
				if _, err := tx.Exec(ctx, "TRUNCATE "+strings.Join(truncate, ", ")); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, `DELETE FROM rehome.copied WHERE replication = $1 AND relation = ANY ($2)`, p.e.cfg.Replication, emptied); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `DELETE FROM rehome.chunks WHERE replication = $1 AND relation = ANY ($2)`, p.e.cfg.Replication, emptied); err != nil {
				return err
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"rehome", "chunks"}, []string{"replication", "relation", "chunk", "kind", "key", "lo", "hi"},
				pgx.CopyFromSlice(len(chunks), func(i int) ([]any, error) {
					ch := chunks[i]
					return []any{p.e.cfg.Replication, relation, ch.number, rune(ch.kind), ch.key, ch.lo, ch.hi}, nil
				}))
			return err
		})
		if err != nil {
			return fmt.Errorf("record the chunks of table %s: %w", relation, err)
		}
		return nil
	})
}

// ownShared makes sure, within a transaction, that this worker still owns the shard, and keeps it so until the end.
func (e *Engine) ownShared(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
},
) error {
	var owned int
	err := q.QueryRow(ctx, `SELECT 1 FROM rehome.applier WHERE replication = $1 AND epoch = $2 FOR SHARE`, e.cfg.Replication, e.cfg.Epoch).Scan(&owned)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrFenced
	}
	return err
}

// chunked lists the relations that were copied in chunks, largest first.
func (n copyNotes) chunked(cat *catalog.Catalogue) []tenant.TableName {
	var out []tenant.TableName
	for i := range cat.Tables {
		t := &cat.Tables[i]
		if n.planned(t.Name.String()) {
			out = append(out, t.Name)
			continue
		}
		for _, l := range t.Leaves {
			if n.planned(l.Name.String()) {
				out = append(out, l.Name)
			}
		}
	}
	return slices.Clip(out)
}
