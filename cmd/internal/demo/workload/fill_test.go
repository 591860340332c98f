package workload_test

import (
	"context"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

func openPool(t *testing.T, dsn tenant.DSN) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// newSource is a filled database.
func newSource(t *testing.T, scale int, seed uint64) (tenant.DSN, *pgxpool.Pool, workload.Filled) {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	if err := workload.Create(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	filled, err := workload.Fill(t.Context(), dsn, scale, seed)
	if err != nil {
		t.Fatal(err)
	}
	return dsn, openPool(t, dsn), filled
}

func one[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestFillIsLargeSkewedAndTheSameForASeed(t *testing.T) {
	t.Parallel()
	_, a, filled := newSource(t, 1, 7)
	_, b, again := newSource(t, 1, 7)
	_, c, _ := newSource(t, 1, 8)
	if filled.Rows < 50_000 || filled.Rows > 75_000 {
		t.Errorf("%d rows at scale 1, want about 60,000: %v", filled.Rows, filled.Tables)
	}
	if diff := cmp.Diff(filled, again); diff != "" {
		t.Errorf("the same seed filled otherwise:\n%s", diff)
	}
	const digest = `SELECT md5(string_agg(d::text, '|' ORDER BY realm_id, id)) FROM (SELECT realm_id, id, title, body, attachment FROM documents) d`
	if one[string](t, a, digest) != one[string](t, b, digest) {
		t.Error("the same seed wrote other documents")
	}
	if one[string](t, a, digest) == one[string](t, c, digest) {
		t.Error("another seed wrote the same documents")
	}
	for table, n := range filled.Tables {
		if got := one[int64](t, a, "SELECT count(*) FROM "+table); got != n {
			t.Errorf("%s: reported %d rows, has %d", table, n, got)
		}
	}
	for _, name := range append(append(workload.ShardedTables(), workload.Partitions()...), workload.ReferenceTables()...) {
		empty := name.Name == "metrics_later"
		if got := one[bool](t, a, "SELECT NOT EXISTS (SELECT FROM "+name.Quoted()+")"); got != empty {
			t.Errorf("%s: empty is %v", name, got)
		}
	}
	largest := one[int64](t, a, "SELECT max(n) FROM (SELECT count(*) AS n FROM events GROUP BY realm_id) c")
	smallest := one[int64](t, a, "SELECT min(n) FROM (SELECT count(*) AS n FROM events GROUP BY realm_id) c")
	if largest < 20*smallest {
		t.Errorf("largest realm %d events, smallest %d: not skewed", largest, smallest)
	}
	if n := one[int64](t, a, "SELECT count(*) FROM documents WHERE pg_column_size(body) > 2000"); n < 50 {
		t.Errorf("%d big documents", n)
	}
	if wrong := one[int64](t, a, `SELECT count(*) FROM ledger.accounts a WHERE balance <> opening
		+ coalesce((SELECT sum(amount) FROM ledger.transfers t WHERE t.realm_id = a.realm_id AND to_account = a.id), 0)
		- coalesce((SELECT sum(amount) FROM ledger.transfers t WHERE t.realm_id = a.realm_id AND from_account = a.id), 0)`); wrong != 0 {
		t.Errorf("%d balances disagree with the transfers", wrong)
	}
}

func TestFillRefusesAScaleOfZero(t *testing.T) {
	t.Parallel()
	if _, err := workload.Fill(t.Context(), cluster.DSN("postgres"), 0, 1); err == nil {
		t.Error("scale 0 was accepted")
	}
}
