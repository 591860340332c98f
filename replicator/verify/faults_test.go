package verify

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehomedb/rehome/tenant"
)

// TestFaults breaks one thing at a time and wants it named.
func TestFaults(t *testing.T) {
	t.Parallel()
	p := pinned(placement("a", "b", "c")) // realm 3 is at c, 4 at a, 7 at b
	base := newPair(t, p, schema, otherSchema, fill, realmKeys)
	row := func(kind, shard, key string, columns ...string) tenant.RowDiff {
		return tenant.RowDiff{Kind: kind, Shard: shard, Key: key, Columns: columns}
	}
	base.in.PartBytes = 1 // as small as they come: one block
	for i, tt := range []struct {
		name  string
		sql   map[string]string // by shard; "" is the source
		table string
		want  []tenant.RowDiff
		moved int64
	}{
		{"changed value", map[string]string{"a": `UPDATE account SET name = 'name x' WHERE id = 4`}, "account", []tenant.RowDiff{row(Different, "a", "realm=4, id=4", "name", "up")}, 0},
		{"changed at the source", map[string]string{"": `UPDATE account SET name = 'name x' WHERE id = 4`}, "account", []tenant.RowDiff{row(Different, "a", "realm=4, id=4", "name", "up")}, 0},
		{"deleted row", map[string]string{"b": `DELETE FROM account WHERE id = 7`}, "account", []tenant.RowDiff{row(Missing, "b", "realm=7, id=7")}, 0},
		{"extra row", map[string]string{"b": `INSERT INTO account (realm, id) VALUES (7, 777777)`}, "account", []tenant.RowDiff{row(Extra, "b", "realm=7, id=777777")}, 0},
		{
			"another key",
			map[string]string{"b": `UPDATE account SET id = -7 WHERE id = 7`},
			"account",
			[]tenant.RowDiff{row(Missing, "b", "realm=7, id=7"), row(Extra, "b", "realm=7, id=-7")},
			0,
		},
		{"row on the wrong shard", map[string]string{
			"a": `INSERT INTO account (realm, id, name, code, f, doc, plain, at, n) VALUES (3, 3, 'name 3', 'c3', 3 / 7.0, '{"g": 3}', '{"a" : 3}', timestamptz '2026-01-01 03:00' , 0.75000000000000000000)`,
			"c": `DELETE FROM account WHERE id = 3`,
		}, "account", []tenant.RowDiff{row(Misplaced, "a", "realm=3, id=3")}, 1},
		{
			"duplicate on two shards",
			map[string]string{
				"a": `INSERT INTO account (realm, id, name, code, f, doc, plain, at, n) VALUES (3, 3, 'name 3', 'c3', 3 / 7.0, '{"g": 3}', '{"a" : 3}', timestamptz '2026-01-01 03:00', 0.75000000000000000000)`,
			},
			"account",
			[]tenant.RowDiff{row(Extra, "a", "realm=3, id=3"), row(Misplaced, "a", "realm=3, id=3")},
			1,
		},
		{
			"values of two rows swapped",
			map[string]string{"c": `UPDATE account SET name = CASE id WHEN 3 THEN 'name 23' ELSE 'name 3' END WHERE id IN (3, 23)`},
			"account",
			[]tenant.RowDiff{row(Different, "c", "realm=3, id=23", "name", "up"), row(Different, "c", "realm=3, id=3", "name", "up")},
			0,
		},
		{"NULL became empty", map[string]string{"c": `UPDATE account SET name = '' WHERE id = 100000`}, "account", []tenant.RowDiff{row(Different, "c", "realm=3, id=100000", "name", "up")}, 0},
		{"empty became NULL", map[string]string{"a": `UPDATE account SET name = NULL WHERE id = 100001`}, "account", []tenant.RowDiff{row(Different, "a", "realm=4, id=100001", "name", "up")}, 0},
		{"trailing space", map[string]string{"b": `UPDATE account SET name = name || ' ' WHERE id = 7`}, "account", []tenant.RowDiff{row(Different, "b", "realm=7, id=7", "name", "up")}, 0},
		{"zero lost its sign", map[string]string{"c": `UPDATE account SET f = 0 WHERE id = 100000`}, "account", []tenant.RowDiff{row(Different, "c", "realm=3, id=100000", "f")}, 0},
		{"last bit of a float", map[string]string{"c": `UPDATE account SET f = f + 5.5e-17::float8 WHERE id = 3`}, "account", []tenant.RowDiff{row(Different, "c", "realm=3, id=3", "f")}, 0},
		{"scale of a numeric", map[string]string{"a": `UPDATE account SET n = 1.5 WHERE id = 100001`}, "account", []tenant.RowDiff{row(Different, "a", "realm=4, id=100001", "n")}, 0},
		{"blanks in json", map[string]string{"c": `UPDATE account SET plain = '{"a": 3}' WHERE id = 3`}, "account", []tenant.RowDiff{row(Different, "c", "realm=3, id=3", "plain")}, 0},
		{"a microsecond", map[string]string{"c": `UPDATE account SET at = at + interval '1 us' WHERE id = 3`}, "account", []tenant.RowDiff{row(Different, "c", "realm=3, id=3", "at")}, 0},
		{
			"reference table on one shard",
			map[string]string{"b": `UPDATE country SET name = 'other' WHERE code = 'c7'; DELETE FROM country WHERE code = 'c9'`},
			"country",
			[]tenant.RowDiff{row(Different, "b", "code='c7'", "name"), row(Missing, "b", "code='c9'")},
			0,
		},
		{"reference table with too much", map[string]string{"c": `INSERT INTO country (code) VALUES ('zz')`}, "country", []tenant.RowDiff{row(Extra, "c", "code='zz'")}, 0},
		{
			"one of several equal rows lost",
			map[string]string{"c": `DELETE FROM log WHERE ctid = (SELECT ctid FROM log WHERE realm = 3 AND line = 'line 3' LIMIT 1)`},
			"log",
			[]tenant.RowDiff{row(Missing, "c", `row (3,"line 3")`)},
			0,
		},
		{
			"one of several equal rows doubled",
			map[string]string{"c": `INSERT INTO log VALUES ('line 3', 3), ('line 3', 3)`},
			"log",
			[]tenant.RowDiff{row(Extra, "c", `row (3,"line 3")`), row(Extra, "c", `row (3,"line 3")`)},
			0,
		},
		{
			"row without realm",
			map[string]string{"c": `INSERT INTO log VALUES ('new', NULL)`, "": `INSERT INTO log VALUES (NULL, 'new')`},
			"log",
			[]tenant.RowDiff{row(Misplaced, "c", "row (,new)")},
			1,
		},
		{"row of no columns", map[string]string{"c": `INSERT INTO nothing DEFAULT VALUES`}, "nothing", []tenant.RowDiff{row(Extra, "c", "row ()")}, 0},
		{"partition", map[string]string{"b": `UPDATE visit SET v = 'w' WHERE realm = 7 AND day = 70`}, "visit", []tenant.RowDiff{row(Different, "b", "realm=7, day=70", "v")}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for shard, sql := range tt.sql {
				conn := base.source
				if shard != "" {
					conn = base.shards[shard]
				}
				run(t, conn, sql)
			}
			defer base.mend(tt.table)
			base.in.Jobs = 2 + i%2*2 // every other time there are more workers than help one scan: then tables are divided
			v := base.compare()
			if v.Clean {
				t.Error("it is called clean")
			}
			for _, tab := range v.Tables {
				if tab.Table != "public."+tt.table {
					if !tab.Equal || tab.Misplaced > 0 {
						t.Errorf("another table: %+v", tab)
					}
					continue
				}
				less := func(a, b tenant.RowDiff) bool { return a.Kind+a.Key < b.Kind+b.Key }
				if diff := cmp.Diff(tt.want, tab.Differences, cmpopts.SortSlices(less)); diff != "" || tab.Misplaced != tt.moved || tab.MoreDiffs != 0 {
					t.Errorf("misplaced %d, more %d (-want +got):\n%s", tab.Misplaced, tab.MoreDiffs, diff)
				}
				if content := len(tt.want) > int(tt.moved); tab.Equal == content {
					t.Errorf("equal is %v", tab.Equal)
				}
			}
		})
	}
	if v := base.compare(); !v.Clean {
		t.Errorf("after all is mended: %+v", v)
	}
}

// mend makes a table as it was, from the start.
func (p *pair) mend(table string) {
	p.t.Helper()
	run(p.t, p.source, `TRUNCATE `+table)
	for sql := range strings.SplitSeq(fill, ";") {
		if strings.Contains(sql, "INSERT INTO "+table+" ") {
			run(p.t, p.source, sql)
		}
	}
	for i := range p.in.Catalogue.Tables {
		if tab := &p.in.Catalogue.Tables[i]; tab.Name.Name == table {
			for name, conn := range p.shards {
				run(p.t, conn, `TRUNCATE `+table)
				p.copy(tab, name)
			}
		}
	}
}
