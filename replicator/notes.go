package replicator

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// copied is what is known of a table, a leaf or a chunk that was copied.
type copied struct {
	watermark tenant.LSN // the position of its snapshot; of a table with several: the least
	last      tenant.LSN // of a table: the greatest
	marks     *marks     // of a table whose chunks have several: which
	rows      int64
	bytes     int64
}

// shardNotes is what one shard says of the copy.
type shardNotes struct {
	leaves map[string]copied  // copied as a whole
	chunks map[string][]piece // planned chunks, in their order, by relation
	again  againNote
}

// copyNotes is what all the shards say; only what they agree on counts.
type copyNotes []shardNotes

func (e *Engine) readNotes(ctx context.Context) (copyNotes, error) {
	notes := make(copyNotes, len(e.cfg.Shards))
	for i, sh := range e.cfg.Shards {
		conn, err := connect(ctx, sh.DSN, "rehome-setup-"+e.cfg.Replication, nil)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
		}
		notes[i], err = readShardNotes(ctx, conn, e.cfg.Replication)
		closeSoon(conn)
		if err != nil {
			return nil, fmt.Errorf("shard %s: read what is copied: %w", sh.Name, err)
		}
	}
	return notes, nil
}

func readShardNotes(ctx context.Context, conn *pgx.Conn, replication string) (shardNotes, error) {
	n := shardNotes{leaves: map[string]copied{}, chunks: map[string][]piece{}}
	rows, err := conn.Query(ctx, `SELECT relation, watermark::text, rows, bytes FROM rehome.copied WHERE replication = $1`, replication)
	if err != nil {
		return n, err
	}
	var rel string
	var c copied
	_, err = pgx.ForEachRow(rows, []any{&rel, &c.watermark, &c.rows, &c.bytes}, func() error {
		n.leaves[rel] = c
		return nil
	})
	if err != nil {
		return n, err
	}
	rows, err = conn.Query(ctx, `SELECT relation, chunk, kind::text, key, lo, hi, coalesce(watermark, '0/0')::text, rows, bytes
		FROM rehome.chunks WHERE replication = $1 ORDER BY relation, chunk`, replication)
	if err != nil {
		return n, err
	}
	var p piece
	var kind string
	_, err = pgx.ForEachRow(rows, []any{&rel, &p.number, &kind, &p.key, &p.lo, &p.hi, &p.watermark, &p.rows, &p.bytes}, func() error {
		p.kind = kind[0]
		n.chunks[rel] = append(n.chunks[rel], p)
		p.lo, p.hi = nil, nil // the next row's must be others
		return nil
	})
	if err != nil {
		return n, err
	}
	n.again, err = readAgain(ctx, conn, replication)
	return n, err
}

// plan is how a relation was cut, if all shards agree on it; nil otherwise.
func (n copyNotes) plan(relation string) []chunk {
	first := n[0].chunks[relation]
	for _, s := range n[1:] {
		if !slices.EqualFunc(first, s.chunks[relation], func(a, b piece) bool { return a.same(b.chunk) }) {
			return nil
		}
	}
	var out []chunk
	for i, p := range first {
		if p.number != i+1 {
			return nil
		}
		out = append(out, p.chunk)
	}
	return out
}

// planned reports whether any shard knows of chunks of a relation.
func (n copyNotes) planned(relation string) bool {
	return slices.ContainsFunc(n, func(s shardNotes) bool { return len(s.chunks[relation]) > 0 })
}

// chunk sums up one chunk of a plan; ok: every shard has it with the same watermark.
func (n copyNotes) chunk(relation string, i int, sharded bool) (sum copied, ok bool) {
	return n.agree(sharded, func(s shardNotes) (copied, bool) {
		p := s.chunks[relation][i]
		return p.copied, p.watermark != 0
	})
}

// leaf sums up a leaf that was copied as a whole, or in chunks of pages that are all there.
func (n copyNotes) leaf(relation string, sharded bool) (sum copied, ok bool) {
	if plan := n.plan(relation); plan != nil && plan[0].kind == chunkOfPages {
		for i := range plan {
			c, ok := n.chunk(relation, i, sharded)
			if !ok || (i > 0 && c.watermark != sum.watermark) {
				return copied{}, false
			}
			sum.watermark = c.watermark
			sum.rows += c.rows
			sum.bytes += c.bytes
		}
		return sum, true
	}
	return n.agree(sharded, func(s shardNotes) (copied, bool) {
		c, there := s.leaves[relation]
		return c, there
	})
}

func (n copyNotes) agree(sharded bool, of func(shardNotes) (copied, bool)) (sum copied, ok bool) {
	for i, s := range n {
		c, there := of(s)
		if !there || (i > 0 && c.watermark != sum.watermark) {
			return copied{}, false
		}
		sum.watermark = c.watermark
		if sharded || i == 0 {
			sum.rows += c.rows
			sum.bytes += c.bytes
		}
	}
	return sum, true
}

// table sums up a table that is copied. Chunks of keys may have watermarks of their own, since a row's key names its
// chunk. Leaves of a partition tree must have one, since the stream names only the root.
func (n copyNotes) table(t *catalog.Table) (sum copied, ok bool, err error) {
	name := t.Name.String()
	if plan := n.plan(name); plan != nil && plan[0].kind == chunkOfKeys {
		pieces := make([]piece, len(plan))
		for i := range plan {
			c, ok := n.chunk(name, i, t.Sharded())
			if !ok {
				return copied{}, false, nil
			}
			if i == 0 {
				sum.watermark = c.watermark
			}
			sum.watermark, sum.last = min(sum.watermark, c.watermark), max(sum.last, c.watermark)
			sum.rows += c.rows
			sum.bytes += c.bytes
			pieces[i] = piece{chunk: plan[i], copied: c}
		}
		if sum.watermark != sum.last {
			key := t.Column(plan[0].key)
			if key == nil {
				return copied{}, false, fmt.Errorf("table %s: its chunks are by column %s, which it does not have", t.Name, plan[0].key)
			}
			if sum.marks, err = newMarks(key.BaseOID, pieces); err != nil {
				return copied{}, false, fmt.Errorf("table %s: %w", t.Name, err)
			}
		}
		return sum, true, nil
	}
	for i, l := range t.Leaves {
		c, ok := n.leaf(l.Name.String(), t.Sharded())
		if !ok || (i > 0 && c.watermark != sum.watermark) {
			return copied{}, false, nil
		}
		sum.watermark, sum.last = c.watermark, c.watermark
		sum.rows += c.rows
		sum.bytes += c.bytes
	}
	return sum, true, nil
}

// noteCopied takes note of what is copied, for the watermarks and for showing.
func (e *Engine) noteCopied(ctx context.Context) error {
	_, err := e.takeNotes(ctx)
	return err
}

func (e *Engine) takeNotes(ctx context.Context) (copyNotes, error) {
	notes, err := e.readNotes(ctx)
	if err != nil {
		return nil, err
	}
	done := map[uint32]copied{}
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		c, ok, err := notes.table(t)
		if err != nil {
			return nil, err
		}
		if ok {
			done[t.OID] = c
			e.stats.table(t).finish(c.rows, c.bytes)
		}
	}
	e.mu.Lock()
	e.copied = done
	e.mu.Unlock()
	e.stats.again(notes[0].again.rows, notes[0].again.bytes) // the first shard counts for all
	return notes, nil
}

// copyOf is what is known of a table's copy; nothing while it is not whole.
func (e *Engine) copyOf(t *catalog.Table) (c copied, done bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, done = e.copied[t.OID]
	return c, done
}

// watermarks are the least and the greatest position of all that was copied; they differ when a copy was interrupted.
func (e *Engine) watermarks() (least, greatest tenant.LSN) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.copied {
		if c.watermark == 0 {
			continue // a table without leaves
		}
		if least == 0 || c.watermark < least {
			least = c.watermark
		}
		greatest = max(greatest, c.last)
	}
	return least, greatest
}
