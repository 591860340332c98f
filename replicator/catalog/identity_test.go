package catalog_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

var restrictKey = regexp.MustCompile(`(?m)^\\(un)?restrict .*$`)

// schemaDump is the whole schema as pg_dump tells it.
func schemaDump(t *testing.T, dsn tenant.DSN) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(cluster.BinDir(), "pg_dump"), "--schema-only", "-d", dsn.Reveal()).Output()
	if err != nil {
		t.Fatal(err)
	}
	return restrictKey.ReplaceAllString(string(out), "")
}

func keep(into *[]tenant.SourceChange) func(tenant.SourceChange) error {
	return func(c tenant.SourceChange) error {
		*into = append(*into, c)
		return nil
	}
}

const needsIdentities = `
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int) WITH (fillfactor = 100);
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int);
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int);
CREATE TABLE "o'd.d ""x"" 🐘" (id int, bid int NOT NULL, "u $rehome$ k" int NOT NULL);
CREATE UNIQUE INDEX odd_k ON "o'd.d ""x"" 🐘" ("u $rehome$ k"); ALTER TABLE "o'd.d ""x"" 🐘" REPLICA IDENTITY USING INDEX odd_k;
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, bid int NOT NULL);
CREATE TABLE nothing (id int PRIMARY KEY, bid int NOT NULL); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE fully (id int PRIMARY KEY, bid int); ALTER TABLE fully REPLICA IDENTITY FULL;
CREATE TABLE up (id int PRIMARY KEY, bid int); CREATE TABLE down (id int PRIMARY KEY) INHERITS (up);
CREATE TABLE ev (id int, bid int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE ev_a PARTITION OF ev FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY RANGE (at);
CREATE TABLE ev_a1 PARTITION OF ev_a FOR VALUES FROM ('2020-01-01') TO ('2020-06-01');
CREATE TABLE ev_a2 PARTITION OF ev_a DEFAULT;
CREATE TABLE ev_b PARTITION OF ev FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
ALTER TABLE ev_b ALTER bid SET NOT NULL; ALTER TABLE ev_a2 REPLICA IDENTITY FULL;
CREATE TABLE keyless (bid int, at date) PARTITION BY RANGE (at);
CREATE TABLE keyless_a PARTITION OF keyless DEFAULT;
CREATE TABLE ref (k text PRIMARY KEY, v text);
CREATE TABLE refless (k text);
CREATE TABLE good (bid int, id int, PRIMARY KEY (bid, id));
CREATE TABLE empty_tree (id int PRIMARY KEY, bid int) PARTITION BY RANGE (id);
INSERT INTO pgbench_accounts SELECT i, i % 5, 0 FROM generate_series(1, 1000) i;
INSERT INTO ev SELECT i, i % 5, '2020-03-01'::date + i FROM generate_series(1, 500) i;
`

var byBid = tenant.ReplicationOptions{RealmKey: "bid"}

func TestIdentityIsFixedAndUndoneExactly(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, dsn)
	execute(t, conn, needsIdentities)
	before, wasCat := schemaDump(t, dsn), describe(t, conn, byBid)

	changes, findings := catalog.PlanIdentity(wasCat, byBid)
	if tenant.Blocks(findings) {
		t.Fatalf("%+v", findings)
	}
	var full []string
	for _, f := range findings {
		full = append(full, f.Object)
	}
	slices.Sort(full)
	if d := cmp.Diff([]string{"public.deferred", "public.keyless", "public.pgbench_history", "public.refless"}, full); d != "" {
		t.Error(d)
	}

	// An earlier build that failed has left an invalid index behind.
	acc := table(t, wasCat, "public", "pgbench_accounts")
	execute(t, conn, `CREATE UNIQUE INDEX rehome_ident_`+itoa(acc.OID)+` ON pgbench_accounts (bid, aid);
		UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'rehome_ident_`+itoa(acc.OID)+`'::regclass`)

	var recorded []tenant.SourceChange
	if err := catalog.ApplyChanges(t.Context(), conn, changes, keep(&recorded)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(changes, recorded); d != "" {
		t.Error(d)
	}
	// Again, as after a crash that lost track of what was done.
	if err := catalog.ApplyChanges(t.Context(), conn, changes, keep(&recorded)); err != nil {
		t.Fatal(err)
	}
	cat := describe(t, conn, byBid)
	for i := range cat.Tables {
		tb := &cat.Tables[i]
		if ok, why := catalog.IdentityFits(tb, 2); !ok {
			t.Error(why)
		}
		if tb.Sharded() && !tb.Column("bid").NotNull {
			t.Errorf("%s: the realm key allows NULL", tb.Name)
		}
	}
	if more, _ := catalog.PlanIdentity(cat, byBid); len(more) != 0 {
		t.Errorf("planned again: %+v", more)
	}
	execute(t, conn, `CREATE PUBLICATION p FOR TABLE pgbench_accounts, ev, pgbench_history, keyless, "o'd.d ""x"" 🐘" WITH (publish_via_partition_root = true);
		UPDATE pgbench_accounts SET abalance = 1; UPDATE ev SET id = id + 10000; DELETE FROM pgbench_history; DROP PUBLICATION p;`)

	for range 2 {
		if err := catalog.UndoChanges(t.Context(), conn, changes); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(schemaDump(t, dsn), "\n")); d != "" {
			t.Fatal(d)
		}
		if d := cmp.Diff(wasCat.Tables, describe(t, conn, byBid).Tables, cmp.FilterPath(func(p cmp.Path) bool {
			f := p.Last().String()
			return f == ".Rows" || f == ".Bytes" || f == ".Filenode"
		}, cmp.Ignore()), cmp.Transformer("byName", func(in []catalog.Table) map[string]catalog.Table {
			m := map[string]catalog.Table{}
			for _, t := range in {
				m[t.Name.String()] = t
			}
			return m
		})); d != "" {
			t.Fatal(d)
		}
	}
}

// A plan that stops in the middle is undone as well.
func TestIdentityIsUndoneFromEveryStep(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, dsn)
	execute(t, conn, needsIdentities)
	before := schemaDump(t, dsn)
	changes, _ := catalog.PlanIdentity(describe(t, conn, byBid), byBid)
	for n := 1; n < len(changes); n += 4 {
		var did []tenant.SourceChange
		if err := catalog.ApplyChanges(t.Context(), conn, changes[:n], keep(&did)); err != nil {
			t.Fatal(err)
		}
		if err := catalog.UndoChanges(t.Context(), conn, did); err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
	}
	if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(schemaDump(t, dsn), "\n")); d != "" {
		t.Fatal(d)
	}
}

func TestIdentityForOneShard(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgcluster.NewDatabase(t, cluster))
	execute(t, conn, needsIdentities)
	changes, _ := catalog.PlanIdentityFor(describe(t, conn, byBid), byBid, 1)
	var objects []string
	for _, c := range changes {
		objects = append(objects, c.Description)
	}
	slices.Sort(objects)
	want := []string{
		"public.deferred: REPLICA IDENTITY FULL", "public.keyless: REPLICA IDENTITY FULL", "public.keyless_a: REPLICA IDENTITY FULL",
		"public.nothing: REPLICA IDENTITY DEFAULT", "public.pgbench_history: REPLICA IDENTITY FULL", "public.refless: REPLICA IDENTITY FULL",
	}
	if d := cmp.Diff(want, objects); d != "" {
		t.Error(d)
	}
}

func TestChangeWaitsForALockWithoutBlockingOthers(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn, other := connect(t, dsn), connect(t, dsn)
	execute(t, conn, "CREATE TABLE h (id int, bid int NOT NULL)")
	changes, _ := catalog.PlanIdentity(describe(t, conn, byBid), byBid)
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO h VALUES (1, 1)"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- catalog.ApplyChanges(t.Context(), conn, changes, keep(new([]tenant.SourceChange))) }()
	third := connect(t, dsn)
	for range 5 { // writers get through between the tries
		execute(t, third, "INSERT INTO h VALUES (2, 2)")
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
