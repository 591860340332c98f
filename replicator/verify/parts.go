package verify

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// tidRangeVersion is the first server_version_num that reads a range of ctids without reading the whole table.
const tidRangeVersion = 140000

// tableSizes is how one side stores the tables.
type tableSizes struct {
	version   int
	workers   int                        // that help one scan
	blockSize int64                      // bytes
	blocks    map[tenant.TableName]int64 // of a table's largest partition
}

func (s *side) readSizes(ctx context.Context, in Input) (tableSizes, error) {
	out := tableSizes{blocks: map[tenant.TableName]int64{}}
	err := s.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('max_parallel_workers_per_gather')::int, current_setting('block_size')::bigint`).
		Scan(&out.version, &out.workers, &out.blockSize)
	if err != nil {
		return out, fmt.Errorf("%s: read the sizes of tables: %w", s, err)
	}
	schemas, names := make([]string, 0, len(in.Catalogue.Tables)), make([]string, 0, len(in.Catalogue.Tables))
	for i := range in.Catalogue.Tables {
		schemas, names = append(schemas, in.Catalogue.Tables[i].Name.Schema), append(names, in.Catalogue.Tables[i].Name.Name)
	}
	rows, err := s.conn.Query(ctx, `SELECT w.schema, w.name, coalesce(greatest(pg_relation_size(c.oid), (SELECT max(pg_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p)), 0)
		FROM unnest($1::text[], $2::text[]) w(schema, name)
		JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')`, schemas, names)
	if err != nil {
		return out, fmt.Errorf("%s: read the sizes of tables: %w", s, err)
	}
	var name tenant.TableName
	var bytes int64
	if _, err := pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &bytes}, func() error {
		out.blocks[name] = bytes / out.blockSize
		return nil
	}); err != nil {
		return out, fmt.Errorf("%s: read the sizes of tables: %w", s, err)
	}
	return out, nil
}

// cut is how one side's storage of a table is divided: parts of so many blocks, the last one without end. All sessions of
// a side divide alike, so each row is in exactly one part; how other sides divide does not matter, because sums add up.
type cut struct{ parts, blocks int64 }

// cutTables divides the tables that are worth it, for the source and the shards in their order.
func cutTables(in Input, sizes []tableSizes) map[tenant.TableName][]cut {
	out := map[tenant.TableName][]cut{}
	for i := range in.Catalogue.Tables {
		name := in.Catalogue.Tables[i].Name
		cuts, divided := make([]cut, len(sizes)), false
		for k, s := range sizes {
			cuts[k] = cut{parts: partsOf(in, s, s.blocks[name])}
			cuts[k].blocks = s.blocks[name] / cuts[k].parts
			divided = divided || cuts[k].parts > 1
		}
		if divided {
			out[name] = cuts
		}
	}
	return out
}

// partsOf says in how many parts a side reads a table. One scan that Postgres itself runs in parallel is as good as parts
// unless there are more workers here than it would use; and rests need something to come between.
func partsOf(in Input, s tableSizes, blocks int64) int64 {
	if s.version < tidRangeVersion || (in.Jobs <= 1+s.workers && in.Pause == 0) {
		return 1
	}
	return max(1, min(blocks, blocks*s.blockSize/in.PartBytes))
}

// where is the condition for one part, and whether there is such a part.
func (c cut) where(part int64) (string, bool) {
	switch {
	case part >= c.parts:
		return "", false
	case c.parts == 1:
		return "", true
	case part == c.parts-1:
		return fmt.Sprintf("t.ctid >= '(%d,0)'::pg_catalog.tid", part*c.blocks), true
	}
	return fmt.Sprintf("t.ctid >= '(%d,0)'::pg_catalog.tid AND t.ctid < '(%d,0)'::pg_catalog.tid", part*c.blocks, (part+1)*c.blocks), true
}

// tableSums gathers what the scans of a piece's parts found, for each of its units.
type tableSums struct {
	mu     sync.Mutex
	left   int // parts
	source []class
	shards [][]class
	moved  []int64 // rows on shards that do not own them, in all units
}

// piece is one part of a unit, or of several that are read together, on all sides.
type piece struct {
	units []unit
	part  int64
	cuts  []cut // nil: the whole
	sums  *tableSums
}

func newPieces(units []unit, cuts []cut, shards int) []piece {
	n := int64(1)
	for _, c := range cuts {
		n = max(n, c.parts)
	}
	sums := &tableSums{left: int(n), source: make([]class, len(units)), shards: make([][]class, shards), moved: make([]int64, shards)}
	for i := range sums.shards {
		sums.shards[i] = make([]class, len(units))
	}
	out := make([]piece, n)
	for i := range out {
		out[i] = piece{units: units, part: int64(i), cuts: cuts, sums: sums}
	}
	return out
}

// where is the condition for the keys that the piece reads.
func (p piece) where(t *catalog.Table) string {
	if len(p.units) == 1 {
		return p.units[0].where
	}
	return keysOf(t, p.units[0].bounds, p.units[0].number, p.units[len(p.units)-1].number)
}

// A range of ctids is read by one process only, and the planner must not take a scan of the whole table for it, nor one of all
// the keys of the piece.
const (
	partSettings = `SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off;
		SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off`
	wholeSettings = `SET LOCAL max_parallel_workers_per_gather TO DEFAULT; SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_indexscan TO DEFAULT;
		SET LOCAL enable_indexonlyscan TO DEFAULT; SET LOCAL enable_bitmapscan TO DEFAULT`
)

// scan reads the part on all sides at the same time, and reports whether it was the table's last to be read.
func (p piece) scan(ctx context.Context, in Input, s *sides, t *catalog.Table) (last bool, err error) {
	group, ctx := errgroup.WithContext(ctx)
	for i, one := range s.all() {
		where := ""
		if p.cuts != nil {
			there := false
			if where, there = p.cuts[i].where(p.part); !there {
				continue
			}
		}
		group.Go(func() error {
			found, err := p.read(ctx, one, in, t, where)
			if err != nil {
				return err
			}
			p.sums.mu.Lock()
			defer p.sums.mu.Unlock()
			into := p.sums.source
			if one.name != "" {
				into = p.sums.shards[i-1]
				p.sums.moved[i-1] += found.moved
			}
			for k := range found.sums {
				into[k] = into[k].plus(found.sums[k])
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	p.sums.mu.Lock()
	defer p.sums.mu.Unlock()
	p.sums.left--
	return p.sums.left == 0, nil
}
