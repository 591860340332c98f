package replicator

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// keyedRun is a run of rows of a realm and a number, in a random order that is the same each time.
func keyedRun(o op, n int) *changeRun {
	cols := []catalog.Column{{Name: "realm", Type: "text", Category: "S"}, {Name: "id", Type: "bigint", BaseOID: oidInt8, Category: "N"}}
	rel := &relation{table: &catalog.Table{OID: 1}, columns: cols, keys: []int{0, 1}, sorts: []int{0, 1}, arrays: true, realm: 0}
	r := &changeRun{rel: rel, op: o}
	for i := range n {
		row := pgoutput.Tuple{text(fmt.Sprint("r", i%7)), text(strconv.Itoa((i - n/2) * 31))}
		c := &change{op: o, rel: rel, row: row}
		if o == opDelete {
			c.row, c.old = nil, row
		}
		r.rows = append(r.rows, c)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { r.rows[i], r.rows[j] = r.rows[j], r.rows[i] })
	return r
}

func keysOf(r *changeRun) (out []string) {
	for _, c := range r.rows {
		row := c.row
		if r.op == opDelete {
			row = c.old
		}
		out = append(out, string(row[0].Data)+"/"+string(row[1].Data))
	}
	return out
}

// TestRunsAreSortedByKey: numbers by their value, texts by their bytes, all rows of them once, and again with the same memory.
func TestRunsAreSortedByKey(t *testing.T) {
	t.Parallel()
	var p runPlanner
	for _, o := range []op{opInsert, opUpdate, opDelete} {
		for _, n := range []int{sortFrom, 3 * sortFrom, sortFrom + 1} {
			r := keyedRun(o, n)
			was := r.rows[0].rel
			var want []string
			for realm := range 7 {
				for i := range n {
					if i%7 == realm {
						want = append(want, fmt.Sprintf("r%d/%d", realm, (i-n/2)*31))
					}
				}
			}
			p.sort(r)
			if diff := cmp.Diff(want, keysOf(r)); diff != "" || r.rows[0].rel != was {
				t.Errorf("%c, %d rows: (-want +got)\n%s", o, n, diff)
			}
		}
	}
}

// TestRunsThatKeepTheirOrder: few rows, rows without a key, and updates of a table where an order was needed.
func TestRunsThatKeepTheirOrder(t *testing.T) {
	t.Parallel()
	none := func(r *changeRun) { r.rel.sorts = nil }
	cases := map[string]struct {
		o      op
		n      int
		needed bool
		change func(*changeRun)
		sorted bool
	}{
		"few":                               {o: opInsert, n: sortFrom - 1},
		"no key":                            {o: opInsert, n: 2 * sortFrom, change: none},
		"inserts with other indexes":        {o: opInsert, n: 2 * sortFrom, change: func(r *changeRun) { r.rel.table.Indexes = 2 }},
		"updates with other indexes":        {o: opUpdate, n: 2 * sortFrom, change: func(r *changeRun) { r.rel.table.Indexes = 2 }, sorted: true},
		"deletes with other indexes":        {o: opDelete, n: 2 * sortFrom, change: func(r *changeRun) { r.rel.table.Indexes = 2 }, sorted: true},
		"updates that needed an order":      {o: opUpdate, n: 2 * sortFrom, needed: true},
		"inserts beside them":               {o: opInsert, n: 2 * sortFrom, needed: true, sorted: true},
		"updates of which nothing is known": {o: opUpdate, n: 2 * sortFrom, sorted: true},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c := cases[name]
		r := keyedRun(c.o, c.n)
		if c.change != nil {
			c.change(r)
		}
		before := keysOf(r)
		run := &pipelineRun{l: &lane{inOrder: new(tableSet)}}
		if c.needed {
			run.l.inOrder.add(r.rel.table.OID)
		}
		said := run.arrange(r)
		if sorted := !slices.Equal(before, keysOf(r)); sorted != c.sorted || said != sorted {
			t.Errorf("%s: sorted %v, want %v, and it said %v", name, sorted, c.sorted, said)
		}
	}
}

// TestWhatNeedsTheSourcesOrder: a table whose sorted updates met a constraint, and no other.
func TestWhatNeedsTheSourcesOrder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		o      op
		sorted bool
		code   string
		want   bool
	}{
		{"sorted updates, unique", opUpdate, true, "23505", true},
		{"sorted updates, exclusion", opUpdate, true, "23P01", true},
		{"sorted updates, not null", opUpdate, true, "23502", false},
		{"updates in the source's order", opUpdate, false, "23505", false},
		{"sorted inserts", opInsert, true, "23505", false},
	} {
		run := &pipelineRun{l: &lane{inOrder: new(tableSet)}}
		of := keyedRun(c.o, minSet).rows[0]
		_ = run.explain(expected{change: of, set: minSet, sorted: c.sorted}, &pgconn.PgError{Code: c.code})
		if got := run.l.inOrder.has(of.rel.table.OID); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestSortColumns: the order is the index's, and not that of the table's columns.
func TestSortColumns(t *testing.T) {
	t.Parallel()
	columns := []catalog.Column{{Name: "id"}, {Name: "note"}, {Name: "realm"}}
	for _, c := range []struct {
		name string
		rel  relation
		id   []string
		want []int
	}{
		{"the realm leads", relation{columns: columns, keys: []int{0, 2}}, []string{"realm", "id"}, []int{2, 0}},
		{"the id leads", relation{columns: columns, keys: []int{0, 2}}, []string{"id", "realm"}, []int{0, 2}},
		{"another identity than the catalogue's", relation{columns: columns, keys: []int{0, 2}}, []string{"id"}, []int{0, 2}},
		{"the whole row", relation{columns: columns, keys: []int{0, 1, 2}, full: true}, []string{"id", "note", "realm"}, nil},
	} {
		if diff := cmp.Diff(c.want, c.rel.sortColumns(catalog.Identity{Columns: c.id})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
	}
}

// TestRowsOfALongRealmStayInOrder: realms that are alike in what is compared first do not mix up the rest of their keys.
func TestRowsOfALongRealmStayInOrder(t *testing.T) {
	t.Parallel()
	cols := []catalog.Column{{Name: "id", Type: "bigint", BaseOID: oidInt8}, {Name: "realm", Type: "text"}}
	rel := &relation{table: &catalog.Table{OID: 1}, columns: cols, keys: []int{0, 1}, sorts: []int{1, 0}, arrays: true, realm: 1}
	const n = 900
	r := &changeRun{rel: rel, op: opInsert}
	var want []string
	for i := range n {
		realm := fmt.Sprintf("one-and-the-same-beginning-%d", i%3)
		r.rows = append(r.rows, &change{op: opInsert, rel: rel, row: pgoutput.Tuple{text(strconv.Itoa(i)), text(realm)}})
	}
	for realm := range 3 {
		for i := realm; i < n; i += 3 {
			want = append(want, fmt.Sprintf("%d/one-and-the-same-beginning-%d", i, realm))
		}
	}
	new(runPlanner).sort(r)
	if diff := cmp.Diff(want, keysOf(r)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestPlaceOfALongKey: a key of one long text is placed by its first sixteen bytes, then by the rest; a text that begins another comes before it.
func TestPlaceOfALongKey(t *testing.T) {
	t.Parallel()
	rel := &relation{columns: []catalog.Column{{Name: "k", Type: "text"}}, keys: []int{0}, sorts: []int{0}}
	keys := []string{"", "a", "aa", "aaaaaaaa", "aaaaaaaab", "aaaaaaaabbbbbbb", "aaaaaaaabbbbbbbb", "aaaaaaaabbbbbbbbb", "aaaaaaab", "b"}
	var last placed
	for i, k := range keys {
		now := placed{key: pgoutput.Tuple{text(k)}}
		now.a, now.b = rel.place(now.key)
		if i > 0 && last.compare(&now, rel) != -1 {
			t.Errorf("%q does not come before %q", keys[i-1], k)
		}
		last = now
	}
}
