package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

const (
	scatteredTable = `CREATE TABLE uid (id uuid PRIMARY KEY, realm text, v text)`
	scatteredRows  = `INSERT INTO uid SELECT md5(g::text)::uuid, 'r' || g % 40, repeat('x', 100) FROM generate_series(1, 4000) g`
)

// TestSweep compares a table of random keys in many units, several of which one scan reads: in whole scans, and in parts of
// them with rests between.
func TestSweep(t *testing.T) {
	t.Parallel()
	for name, pause := range map[string]time.Duration{"whole": 0, "in parts": time.Microsecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pair := newPair(t, placement("a", "b"), scatteredTable, scatteredTable, scatteredRows, map[string]string{"uid": "realm"})
			pair.in.UnitBytes, pair.in.PartBytes, pair.in.Pause = 16<<10, 64<<10, pause
			var parts []Part
			pair.in.OnPart = func(p Part) error {
				parts = append(parts, p)
				return nil
			}
			v := pair.compare()
			var rows int64
			for _, p := range parts {
				rows += p.Rows
			}
			if !v.Clean || v.Rows != 4000 || rows != 4000 || len(parts) <= maxSwept || len(parts) != len(parts[0].Bounds)+1 {
				t.Fatalf("%d rows in %d parts: %+v", rows, len(parts), v)
			}
			all := parts
			slices.SortFunc(all, func(a, b Part) int { return a.Number - b.Number })

			// What is left of an interrupted comparison, in groups with holes between.
			pair.in.Done = slices.DeleteFunc(slices.Clone(all), func(p Part) bool { return p.Number%5 != 0 })
			parts = nil
			if v := pair.compare(); !v.Clean || v.Rows != 4000 || len(parts) != len(all)-len(pair.in.Done) {
				t.Errorf("%d parts after %d of %d: %+v", len(parts), len(pair.in.Done), len(all), v)
			}
			digests := map[int]string{}
			for _, p := range all {
				digests[p.Number] = p.Digest
			}
			for _, p := range parts {
				if p.Digest != digests[p.Number] {
					t.Errorf("part %d has another digest when it is read with others", p.Number)
				}
			}
			pair.in.Done = nil

			// A fault is its own unit's: the others are told as equal.
			low := all[7].Bounds[6] // the first key of unit 7
			for fault, c := range map[string]struct {
				shard, sql, mend string
				misplaced        int64
			}{
				"changed":   {"", `UPDATE uid SET v = 'y' WHERE id = '` + low + `'`, `UPDATE uid SET v = repeat('x', 100) WHERE id = '` + low + `'`, 0},
				"misplaced": {"b", `INSERT INTO uid VALUES ('` + low + `', '` + realmOf(pair.in.Placement, "a") + `', '') ON CONFLICT (id) DO UPDATE SET realm = excluded.realm`, ``, 1},
			} {
				conn := pair.source
				if c.shard != "" {
					conn = pair.shards[c.shard]
				}
				run(t, conn, `BEGIN`)
				run(t, conn, c.sql)
				run(t, conn, `COMMIT`)
				parts = nil
				v := pair.compare()
				if v.Clean || v.Tables[0].Equal || v.Tables[0].Misplaced != c.misplaced || len(parts) != len(all)-1 || slices.ContainsFunc(parts, func(p Part) bool { return p.Number == 7 }) {
					t.Errorf("%s: %d of %d parts are equal: %+v", fault, len(parts), len(all), v.Tables)
				}
				if c.mend != "" {
					run(t, conn, c.mend)
					continue
				}
				run(t, conn, `DELETE FROM uid`)
				pair.copy(&pair.in.Catalogue.Tables[0], c.shard)
			}
			if v := pair.compare(); !v.Clean {
				t.Errorf("after all is mended: %+v", v)
			}
		})
	}
}

// realmOf is a realm that a shard owns.
func realmOf(p tenant.Placement, shard string) string {
	for i := 0; ; i++ {
		if r := fmt.Sprintf("r%d", i); p.ShardOf(r) == shard {
			return r
		}
	}
}

// TestSweepReadsRanges wants parts of a scan of several units to be read as ranges of blocks, and rows without a key to belong to
// the last unit.
func TestSweepReadsRanges(t *testing.T) {
	t.Parallel()
	pair := newPair(t, placement("a"), scatteredTable, scatteredTable, scatteredRows, nil)
	tab := &pair.in.Catalogue.Tables[0]
	bounds := []string{"20000000-0000-0000-0000-000000000000", "80000000-0000-0000-0000-000000000000", "c0000000-0000-0000-0000-000000000000"}
	units := unitsOf(0, tab, pair.in.Placement, bounds)
	run(t, pair.source, `ALTER TABLE uid DROP CONSTRAINT uid_pkey; ALTER TABLE uid ALTER id DROP NOT NULL; INSERT INTO uid VALUES (NULL, 'r', ''); INSERT INTO uid (id) VALUES ('80000000-0000-0000-0000-000000000000'); CREATE INDEX ON uid (id); ANALYZE uid`)
	var sums []int64
	for _, u := range units {
		var rows int64
		var ignored *string
		if err := pair.source.QueryRow(t.Context(), newStatementsWithin(tab, false, u.where, "").totals).Scan(&rows, &ignored, &ignored); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, rows)
	}
	for _, group := range [][]unit{units, units[1:3], units[2:]} {
		found, err := (&side{conn: pair.source}).scan(t.Context(), sweepOf(tab, false, group, ""))
		if err != nil || len(found) != len(group) {
			t.Fatalf("%v: %v", found, err)
		}
		for _, u := range group {
			if c := found[int64(u.number)]; c.rows != sums[u.number] || c.rows == 0 {
				t.Errorf("unit %d has %d rows, with others %d", u.number, sums[u.number], c.rows)
			}
		}
	}
	if cluster.Version() < tidRangeVersion/10000 {
		return // there, tables are not divided by blocks
	}
	run(t, pair.source, strings.ReplaceAll(partSettings, "LOCAL", "SESSION"))
	where, _ := cut{parts: 3, blocks: 10}.where(1)
	lines, err := pair.source.Query(t.Context(), "EXPLAIN "+sweepOf(tab, false, units[:1], where))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(lines, pgx.RowTo[string])
	if text := strings.Join(plan, "\n"); err != nil || !strings.Contains(text, "Tid Range Scan") || strings.Contains(text, "Index") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestScattered tells tables in the order of their keys from others.
func TestScattered(t *testing.T) {
	t.Parallel()
	const tables = `CREATE TABLE up (id int PRIMARY KEY); CREATE TABLE down (id bigint PRIMARY KEY); CREATE TABLE mixed (id int PRIMARY KEY); CREATE TABLE uid (id uuid PRIMARY KEY); CREATE TABLE timed (id uuid PRIMARY KEY);
		CREATE TABLE unknown (id int PRIMARY KEY); CREATE TABLE unknown_uid (id uuid PRIMARY KEY); CREATE TABLE small (id uuid PRIMARY KEY)`
	const fill = `INSERT INTO up SELECT g FROM generate_series(1, 1000) g; INSERT INTO down SELECT -g FROM generate_series(1, 1000) g; INSERT INTO mixed SELECT g * 7919 % 1000 FROM generate_series(1, 1000) g;
		INSERT INTO uid SELECT md5(g::text)::uuid FROM generate_series(1, 1000) g; INSERT INTO timed SELECT (lpad(to_hex(g), 8, '0') || substr(md5(g::text), 9))::uuid FROM generate_series(1, 1000) g;
		ANALYZE up; ANALYZE down; ANALYZE mixed; ANALYZE uid; ANALYZE timed`
	pair := newPair(t, placement("a"), tables, tables, fill, nil)
	f := &schemaFindings{in: pair.in, bounds: map[tenant.TableName][]string{}}
	want := map[string]bool{"up": false, "down": false, "mixed": true, "uid": true, "timed": false, "unknown": false, "unknown_uid": true}
	for name := range want {
		f.bounds[tenant.TableName{Schema: "public", Name: name}] = []string{"1"}
	}
	if err := f.findScattered(t.Context(), &side{conn: pair.source}); err != nil {
		t.Fatal(err)
	}
	for name, scattered := range want {
		if f.scattered[tenant.TableName{Schema: "public", Name: name}] != scattered {
			t.Errorf("%s: scattered is %v", name, !scattered)
		}
	}
	if len(f.scattered) != len(want) {
		t.Errorf("%v", f.scattered)
	}
	units := unitsOf(0, &catalog.Table{}, pair.in.Placement, nil)
	if groups := groupsOf(units, true); len(groups) != 1 || len(groups[0]) != 1 {
		t.Errorf("%v", groups)
	}
}
