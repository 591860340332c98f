package verify

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
)

// TestRowHashTellsApart has rows that are nearly alike, and pairs that a sloppier hash takes for each other; both chains
// tell all of them apart.
func TestRowHashTellsApart(t *testing.T) {
	t.Parallel()
	const columns = `a int, b int, small smallint, big bigint, u uuid, x text, y text, v varchar, c char(4), free bpchar, bin bytea, j json, jb jsonb, at timestamptz, ts timestamp, n numeric, f float8, ok bool, d date`
	rows := []string{
		`()`, `(a) VALUES (0)`, `(b) VALUES (0)`, `(a, b) VALUES (0, 0)`, `(a, b) VALUES (1, 2)`, `(a, b) VALUES (2, 1)`, `(a) VALUES (-1)`, `(small) VALUES (0)`, `(small) VALUES (-1)`,
		// hashint8 takes these for 0 and each other
		`(big) VALUES (0)`, `(big) VALUES (4294967297)`, `(big) VALUES (8589934594)`, `(big) VALUES (-1)`, `(big) VALUES (-4294967296)`, `(big) VALUES (9223372036854775807)`, `(big) VALUES (-9223372036854775808)`, `(big) VALUES (4294967296)`, `(big) VALUES (1)`,
		`(u) VALUES ('00000000-0000-0000-0000-000000000000')`, `(u) VALUES ('00000000-0000-0000-0000-000000000001')`,
		`(x) VALUES ('')`, `(y) VALUES ('')`, `(x, y) VALUES ('', '')`, `(x, y) VALUES ('a', 'bc')`, `(x, y) VALUES ('ab', 'c')`, `(x, y) VALUES ('abc', '')`, `(x, y) VALUES ('', 'abc')`, `(x) VALUES ('abc')`, `(x) VALUES ('a ')`, `(x) VALUES ('a')`, `(x) VALUES ('NULL')`,
		`(v) VALUES ('')`, `(v) VALUES ('a ')`, `(v) VALUES ('a')`, `(c) VALUES ('')`, `(c) VALUES ('a')`, `(free) VALUES ('')`, `(free) VALUES ('a')`, `(free) VALUES ('a ')`,
		`(bin) VALUES ('')`, `(bin) VALUES ('\x00')`, `(bin) VALUES ('\x0000')`, `(bin) VALUES ('a')`,
		`(j) VALUES ('{"a":1}')`, `(j) VALUES ('{"a": 1}')`, `(j) VALUES ('null')`, `(jb) VALUES ('1.0')`, `(jb) VALUES ('1.00')`, `(jb) VALUES ('null')`, `(jb) VALUES ('{}')`, `(jb) VALUES ('[]')`,
		`(at) VALUES ('2026-01-01 00:00:00+00')`, `(at) VALUES ('2026-01-01 00:00:00.000001+00')`, `(at) VALUES ('infinity')`, `(ts) VALUES ('2026-01-01 00:00:00')`, `(ts) VALUES ('-infinity')`,
		`(n) VALUES (1.0)`, `(n) VALUES (1.00)`, `(n) VALUES ('NaN')`, `(f) VALUES (0)`, `(f) VALUES ('-0')`, `(ok) VALUES (false)`, `(ok) VALUES (true)`, `(d) VALUES ('2026-01-01')`, `(d) VALUES ('infinity')`,
	}
	var fill strings.Builder
	for _, r := range rows {
		if r == `()` {
			r = `DEFAULT VALUES`
		}
		fill.WriteString(`INSERT INTO t ` + r + `;`)
	}
	pair := newPair(t, placement("a"), `CREATE TABLE t (`+columns+`)`, `CREATE TABLE t (`+columns+`)`, fill.String(), nil)
	tab := &pair.in.Catalogue.Tables[0]
	for _, transcode := range []bool{false, true} {
		h := newRowHash(tab, transcode)
		var all, first, second, null int
		sql := `SELECT count(*), count(DISTINCT ` + h.over(1) + `), count(DISTINCT ` + h.over(2) + `), count(*) FILTER (WHERE ` + h.over(1) + ` IS NULL) FROM (SELECT ` + h.columns() + ` FROM t LIMIT ALL) x`
		if err := pair.source.QueryRow(t.Context(), sql).Scan(&all, &first, &second, &null); err != nil {
			t.Fatal(err)
		}
		if all != len(rows) || first != all || second != all || null != 0 {
			t.Errorf("transcode %v: of %d rows, %d and %d are told apart, %d have no hash", transcode, all, first, second, null)
		}
		var same int
		if err := pair.source.QueryRow(t.Context(), `SELECT count(*) FROM t JOIN (SELECT t.ctid AS id, `+h.columns()+` FROM t LIMIT ALL) x ON x.id = t.ctid WHERE `+h.over(1)+` = `+h.inline(1)).Scan(&same); err != nil {
			t.Fatal(err)
		}
		if same != all {
			t.Errorf("transcode %v: %d of %d rows have the same hash in both ways to write it", transcode, same, all)
		}
	}
}

// TestManyNumbers has more columns than one integer has bits.
func TestManyNumbers(t *testing.T) {
	t.Parallel()
	names := make([]string, 40)
	for i := range names {
		names[i] = "c" + string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	table := `CREATE TABLE t (` + strings.Join(names, ` int, `) + ` int)`
	fill := `INSERT INTO t DEFAULT VALUES;`
	for _, name := range names {
		fill += `INSERT INTO t (` + name + `) VALUES (0);`
	}
	pair := newPair(t, placement("a"), table, table, fill, nil)
	h := newRowHash(&pair.in.Catalogue.Tables[0], false)
	var n int
	if err := pair.source.QueryRow(t.Context(), `SELECT count(DISTINCT `+h.inline(1)+`) FROM t`).Scan(&n); err != nil || n != 41 {
		t.Errorf("%d of 41 rows are told apart: %v", n, err)
	}
}

// TestScansRunInParallel wants Postgres' own workers to do the work of a scan, sums included.
func TestScansRunInParallel(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE t (id bigint PRIMARY KEY, realm text, u uuid, c char(9), b bytea, at timestamptz, n numeric, doc jsonb)`
	pair := newPair(t, placement("a"), table, table, `INSERT INTO t (id) SELECT generate_series(1, 1000)`, map[string]string{"t": "realm"})
	run(t, pair.source, `SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET max_parallel_workers_per_gather = 2`)
	for name, unkeyed := range map[string]bool{"keyed": false, "without key": true} {
		tab := pair.in.Catalogue.Tables[0]
		if unkeyed {
			tab.Identity, tab.PrimaryKey = catalog.Identity{Kind: "f"}, nil
		}
		sql := newStatements(&tab, false).totals
		lines, err := pair.source.Query(t.Context(), "EXPLAIN "+sql)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(lines, pgx.RowTo[string])
		if text := strings.Join(plan, "\n"); err != nil || !strings.Contains(text, "Parallel Seq Scan") || !strings.Contains(text, "Partial ") {
			t.Errorf("%s: %v\n%s\n%s", name, err, sql, text)
		}
	}
}
