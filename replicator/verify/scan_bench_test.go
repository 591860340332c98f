package verify

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// BenchmarkScan compares the scan of a table with the least that a scan of its rows' texts costs. One iteration reads
// 200,000 rows of about 120 bytes.
func BenchmarkScan(b *testing.B) {
	const table = `CREATE TABLE t (aid int PRIMARY KEY, bid int NOT NULL, abalance int, filler char(84))`
	const rows = `INSERT INTO t SELECT g, g / 100000, 0, '' FROM generate_series(1, 200000) g; ANALYZE t`
	p := newPair(b, placement("a"), table, table, rows, map[string]string{"t": "bid"})
	run(b, p.source, `VACUUM t`)
	st := newStatements(&p.in.Catalogue.Tables[0], false)
	least := `SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM t`
	for _, bb := range []struct{ name, sql string }{{"least", least}, {"totals", st.totals}, {"classes", st.classes}, {"placement", misplaced("sum(n)", st.byRealm, placement("a", "b"), "a")}} {
		for _, workers := range []string{"0", "2"} {
			b.Run(bb.name+"/workers="+workers, func(b *testing.B) {
				run(b, p.source, `SET jit = off; SET max_parallel_workers_per_gather = `+workers)
				for b.Loop() {
					var args []any
					if bb.name == "placement" {
						args = []any{[]string{}, []string{}}
					}
					r, err := p.source.Query(b.Context(), bb.sql, args...)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := pgx.CollectRows(r, func(pgx.CollectableRow) (struct{}, error) { return struct{}{}, nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
