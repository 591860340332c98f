package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Kinds of tenant.RowDiff.
const (
	Missing   = "missing"   // at the source only; Shard is where it should be
	Extra     = "extra"     // on a shard only
	Different = "different" // on both, with other values
	Misplaced = "misplaced" // on a shard that does not own its realm
)

// drillRows bounds how many rows are read again to name what differs: sorting them is the databases' work, and of a
// table that differs everywhere the first rows say enough.
const drillRows = 2_000_000

// findings gathers the differences of one table: some by name, the rest by number.
type findings struct {
	v         *tenant.TableVerification
	limit     int
	different map[rowAt]int64 // key hashes of the rows named as different, whose columns are still to be named

	table *catalog.Table
	keyed bool
	tell  func(Diff) // nil: nobody wants to know
}

// say tells of a row that differs, whether it is named or not.
func (f *findings) say(e entry) {
	switch {
	case f.tell == nil:
	case f.keyed && e.values != nil:
		f.tell(Diff{Table: f.table, Key: e.values})
	default:
		f.tell(Diff{Table: f.table, Hash: e.h1})
	}
}

// addAlways names a row beyond the limit of the others.
func (f *findings) addAlways(d tenant.RowDiff) { f.v.Differences = append(f.v.Differences, d) }

func (f *findings) add(d tenant.RowDiff, n int64) {
	for ; n > 0 && len(f.v.Differences) < f.limit; n-- {
		f.v.Differences = append(f.v.Differences, d)
	}
	f.more(n)
}

func (f *findings) more(n int64) { f.v.MoreDiffs += n }

// named is how many rows differ as far as is known.
func (f *findings) named() int64 { return int64(len(f.v.Differences)) + f.v.MoreDiffs }

func (f *findings) addDifferent(e entry, n int64) {
	if n > 0 && len(f.v.Differences) < f.limit {
		f.different[rowAt{e.shard, e.key}] = e.keyHash
	}
	f.add(tenant.RowDiff{Key: e.key, Kind: Different, Shard: e.shard}, n)
}

// findDifferences names the rows in which sides differ that do not add up to the same: first it finds out in which classes.
// Target is the sum over the shards given.
func findDifferences(ctx context.Context, st statements, in Input, f *findings, source *side, shards []*side) error {
	f.v.Equal = false
	all := append([]*side{source}, shards...)
	found := make([]digest, len(all))
	group, gctx := errgroup.WithContext(ctx)
	for i, one := range all {
		group.Go(func() (err error) {
			found[i], err = one.scan(gctx, st.classes)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	target := digest{}
	for _, d := range found[1:] {
		target.add(d)
	}
	named := f.named()
	if err := drill(ctx, st, in, f, source, shards, found[0], target); err != nil {
		return err
	}
	if f.named() == named {
		f.more(1) // the first scan saw a difference that reading again does not: never call that equal
	}
	return nil
}

// drill reads the classes that differ again and names their rows. Target is the sum over the shards given.
func drill(ctx context.Context, st statements, in Input, f *findings, source *side, shards []*side, left, right digest) error {
	differing := left.differing(right)
	if len(differing) == 0 {
		return nil
	}
	var rows int64
	var chosen []int64
	for _, id := range differing {
		n := left[id].rows + right[id].rows
		if len(chosen) > 0 && rows+n > drillRows {
			f.more(max(1, abs(left[id].rows-right[id].rows))) // at least so many
			continue
		}
		rows += n
		chosen = append(chosen, id)
	}
	m := &merge{in: in, keyed: st.keyed, findings: f, only: ""}
	if len(shards) == 1 {
		m.only = shards[0].name
	}
	for _, one := range append([]*side{source}, shards...) {
		c, err := openCursor(ctx, one, st.drill, chosen)
		if err != nil {
			m.close()
			return err
		}
		m.cursors = append(m.cursors, c)
	}
	defer m.close()
	return m.run()
}

func abs(n int64) int64 { return max(n, -n) }

// entry is a row, or several that are the same, as a drill-down reads it.
type entry struct {
	keyHash int64
	key     string
	realm   *string
	h1, h2  int64
	rows    int64
	shard   string // empty at the source
	values  keyValues
}

// keyValues are the texts of a key's columns; nil where one of them is NULL, as on a side whose key is broken.
type keyValues []string

func (v *keyValues) set(list []*string) {
	*v = nil
	for _, s := range list {
		if s == nil {
			*v = nil
			return
		}
		*v = append(*v, *s)
	}
}

// cursor reads one side's entries in the order of their key hashes.
type cursor struct {
	side *side
	rows pgx.Rows
	head entry
	ok   bool
}

func openCursor(ctx context.Context, s *side, sql string, classes []int64) (*cursor, error) {
	rows, err := s.conn.Query(ctx, sql, classes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	c := &cursor{side: s, rows: rows}
	if err := c.next(); err != nil {
		rows.Close()
		return nil, err
	}
	return c, nil
}

func (c *cursor) next() error {
	if c.ok = c.rows.Next(); !c.ok {
		if err := c.rows.Err(); err != nil {
			return fmt.Errorf("%s: %w", c.side, err)
		}
		return nil
	}
	c.head = entry{shard: c.side.name}
	e := &c.head
	var values []*string
	if err := c.rows.Scan(&e.keyHash, &e.key, &e.realm, &e.h1, &e.h2, &e.rows, &values); err != nil {
		return fmt.Errorf("%s: %w", c.side, err)
	}
	e.values.set(values)
	return nil
}

// merge joins the source's entries (the first cursor) with the shards' by key hash.
type merge struct {
	in       Input
	keyed    bool
	only     string // the one shard that is compared, if it is but one
	findings *findings
	cursors  []*cursor
}

func (m *merge) close() {
	for _, c := range m.cursors {
		c.rows.Close()
	}
}

func (m *merge) run() error {
	var source, target []entry
	for {
		first := true
		var lowest int64
		for _, c := range m.cursors {
			if c.ok && (first || c.head.keyHash < lowest) {
				first, lowest = false, c.head.keyHash
			}
		}
		if first {
			return nil
		}
		source, target = source[:0], target[:0]
		for i, c := range m.cursors {
			for c.ok && c.head.keyHash == lowest {
				if i == 0 {
					source = append(source, c.head)
				} else {
					target = append(target, c.head)
				}
				if err := c.next(); err != nil {
					return err
				}
			}
		}
		m.reconcile(source, target)
	}
}

// reconcile compares the entries of one key hash: equal rows go first, on the shard that owns them if there is a choice;
// then rows of the same key are different; the rest is missing or extra.
func (m *merge) reconcile(source, target []entry) {
	take := func(i, j int) int64 {
		n := min(source[i].rows, target[j].rows)
		source[i].rows -= n
		target[j].rows -= n
		return n
	}
	for _, atOwner := range []bool{true, false} {
		for i := range source {
			owner := m.owner(source[i])
			for j := range target {
				same := source[i].h1 == target[j].h1 && source[i].h2 == target[j].h2 && (!m.keyed || source[i].key == target[j].key)
				if same && (!atOwner || target[j].shard == owner) {
					take(i, j)
				}
			}
		}
	}
	if m.keyed {
		for i := range source {
			for j := range target {
				if source[i].key == target[j].key {
					n := take(i, j)
					if n > 0 {
						m.findings.say(target[j])
					}
					m.findings.addDifferent(target[j], n)
				}
			}
		}
	}
	for _, e := range slices.Concat(source, target) {
		if e.rows > 0 {
			m.findings.say(e)
		}
	}
	for _, e := range source {
		m.findings.add(tenant.RowDiff{Key: e.key, Kind: Missing, Shard: m.owner(e)}, e.rows)
	}
	for _, e := range target {
		m.findings.add(tenant.RowDiff{Key: e.key, Kind: Extra, Shard: e.shard}, e.rows)
	}
}

// owner names the shard where a row should be.
func (m *merge) owner(e entry) string {
	if m.only != "" {
		return m.only
	}
	if e.realm == nil {
		return ""
	}
	return m.in.Placement.ShardOf(*e.realm)
}
