package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Part is a table, or a range of the keys of a large one, that was found equal on both sides. A comparison that was
// interrupted goes on, at a new position, with the parts that it has not found equal yet.
//
// That both sides were equal there at Part.LSN stays true of the part as long as the stream is applied exactly and nobody
// else writes at a shard: at any later position both sides have had the same changes. What it does not show is a fault that
// came after Part.LSN; so a result that was gathered at several positions is as old as its oldest part.
type Part struct {
	Table  string     `json:"table"`
	Shape  string     `json:"shape"` // of the table's columns, and of the placement, when it was compared
	Number int        `json:"number"`
	Bounds []string   `json:"bounds,omitempty"` // of the key's first column, between the table's parts; none: the table is one part
	LSN    tenant.LSN `json:"lsn"`
	At     time.Time  `json:"at"`
	Rows   int64      `json:"rows"`
	Digest string     `json:"digest"`
}

const (
	// defaultUnit is how much of a large table is compared as one part, so that an interruption loses minutes at most.
	defaultUnit = 1 << 30
	// maxUnits bounds the parts of one table; each costs a round trip or two.
	maxUnits = 256
	// sampleRows is about how many rows the bounds between parts are chosen from.
	sampleRows = 20_000
)

// unit is what is compared as a whole: its sums on both sides must agree.
type unit struct {
	table  int // in the catalogue
	shape  string
	number int
	bounds []string
	where  string // condition on t; "" for a whole table
}

// shapeOf says what a part's comparison depended on: the columns that were compared, what names a row, and whose it is.
func shapeOf(t *catalog.Table, p tenant.Placement) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %s\n", p.Epoch, t.Name.Quoted(), t.RealmKey)
	for _, c := range append(identityColumns(t), t.Columns...) {
		fmt.Fprintf(&b, "%s %s\n", c.Name, c.TypeMod)
	}
	return hexSum([]byte(b.String()))[:16]
}

// rangeColumn is the column by whose ranges a table can be divided alike on both sides: the first of its key, if its order
// does not depend on a collation.
func rangeColumn(t *catalog.Table) (catalog.Column, bool) {
	key := identityColumns(t)
	if len(key) == 0 {
		return catalog.Column{}, false
	}
	switch key[0].BaseOID {
	case oidInt2, oidInt4, oidInt8, oidUUID:
		return key[0], true
	}
	return catalog.Column{}, false
}

// chooseBounds divides the large tables by quantiles of a sample of their keys at the source. Tables of which parts are
// known to be equal keep the bounds of those.
func (f *schemaFindings) chooseBounds(ctx context.Context, s *side, sizes tableSizes) error {
	f.bounds = map[tenant.TableName][]string{}
	for i := range f.in.Catalogue.Tables {
		t := &f.in.Catalogue.Tables[i]
		if k := slices.IndexFunc(f.in.Done, func(p Part) bool { return p.Table == t.Name.String() && p.Shape == shapeOf(t, f.in.Placement) }); k >= 0 {
			f.bounds[t.Name] = f.in.Done[k].Bounds
			continue
		}
		column, ok := rangeColumn(t)
		n := min(sizes.blocks[t.Name]*sizes.blockSize/f.in.UnitBytes, maxUnits)
		if !ok || n < 2 || f.skip[t.Name] != "" {
			continue
		}
		shares := make([]float64, n-1)
		for k := range shares {
			shares[k] = float64(k+1) / float64(n)
		}
		percent := min(100, max(0.001, 100*sampleRows/float64(max(t.Rows, 1))))
		var bounds []*string
		err := s.conn.QueryRow(ctx, fmt.Sprintf(`SELECT (percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY t.%s))::text[] FROM %s t TABLESAMPLE SYSTEM (%f) REPEATABLE (1)`,
			tenant.QuoteIdent(column.Name), fromTable(t), percent), shares).Scan(&bounds)
		if err != nil {
			return fmt.Errorf("%s: divide table %s: %w", s, t.Name, err)
		}
		for _, b := range bounds {
			if list := f.bounds[t.Name]; b != nil && (len(list) == 0 || list[len(list)-1] != *b) {
				f.bounds[t.Name] = append(list, *b)
			}
		}
	}
	return f.findScattered(ctx, s)
}

// unitsOf lists a table's units. Ranges are half open; the last one has what is not in any other, NULLs included, which a
// side may have whose key is broken.
func unitsOf(table int, t *catalog.Table, p tenant.Placement, bounds []string) []unit {
	shape := shapeOf(t, p)
	if len(bounds) == 0 {
		return []unit{{table: table, shape: shape}}
	}
	out := make([]unit, len(bounds)+1)
	for i := range out {
		out[i] = unit{table: table, shape: shape, number: i, bounds: bounds, where: keysOf(t, bounds, i, i)}
	}
	return out
}

// keysOf is the condition for the keys of units from first to last.
func keysOf(t *catalog.Table, bounds []string, first, last int) string {
	column, _ := rangeColumn(t)
	name := "t." + tenant.QuoteIdent(column.Name)
	value := func(i int) string { return tenant.QuoteLiteral(bounds[i]) + "::" + column.Type }
	switch {
	case first == 0 && last == len(bounds):
		return ""
	case first == 0:
		return name + " < " + value(last)
	case last == len(bounds):
		return name + " >= " + value(first-1) + " OR " + name + " IS NULL"
	}
	return name + " >= " + value(first-1) + " AND " + name + " < " + value(last)
}

// done finds a unit among the parts that were found equal before.
func (u unit) done(t *catalog.Table, parts []Part) *Part {
	for i := range parts {
		p := &parts[i]
		if p.Table == t.Name.String() && p.Shape == u.shape && p.Number == u.number && slices.Equal(p.Bounds, u.bounds) {
			return p
		}
	}
	return nil
}

// tableResult gathers a table's units.
type tableResult struct {
	v       tenant.TableVerification
	left    int      // units that are not compared yet
	digests []string // by unit
	limit   int      // rows named
}

func newTableResult(t *catalog.Table, units, limit int) *tableResult {
	return &tableResult{v: tenant.TableVerification{Table: t.Name.String(), Equal: true}, left: units, digests: make([]string, units), limit: limit}
}

// add takes note of a unit at a position, and reports whether it was the table's last.
func (r *tableResult) add(number int, v tenant.TableVerification, at tenant.LSN) (last bool) {
	r.v.SourceRows += v.SourceRows
	r.v.TargetRows += v.TargetRows
	r.v.Misplaced += v.Misplaced
	for _, name := range v.ShardsDiffer {
		if !slices.Contains(r.v.ShardsDiffer, name) {
			r.v.ShardsDiffer = append(r.v.ShardsDiffer, name)
		}
	}
	r.v.MoreDiffs += v.MoreDiffs
	r.v.Equal = r.v.Equal && v.Equal
	if v.Skipped != "" {
		r.v.Skipped = v.Skipped
	}
	for _, d := range v.Differences {
		if len(r.v.Differences) < 2*r.limit { // misplaced rows come beside the others
			r.v.Differences = append(r.v.Differences, d)
		} else {
			r.v.MoreDiffs++
		}
	}
	if r.v.LSN == 0 || at < r.v.LSN {
		r.v.LSN = at
	}
	r.digests[number] = v.Digest
	r.left--
	if len(r.digests) > 1 {
		r.v.Digest = hexSum([]byte(strings.Join(r.digests, "\n")))
	} else {
		r.v.Digest = v.Digest
	}
	return r.left == 0
}

func fromTable(t *catalog.Table) string {
	if t.Partitioned {
		return t.Name.Quoted()
	}
	return "ONLY " + t.Name.Quoted()
}
