package catalog_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

const someSequences = `
CREATE TABLE t (id serial PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY -2 MAXVALUE 100 MINVALUE -100000 START 100));
CREATE SEQUENCE "a.b ""c"" 🐘" INCREMENT 50; SELECT setval('"a.b ""c"" 🐘"', 4000);
CREATE SEQUENCE unused;
CREATE SEQUENCE wheel MAXVALUE 500 CYCLE; SELECT setval('wheel', 400);
SELECT nextval('t_id_seq') FROM generate_series(1, 77); SELECT nextval('t_n_seq') FROM generate_series(1, 5);`

func nextval(t *testing.T, conn *pgx.Conn, name string) int64 {
	t.Helper()
	var v int64
	if err := conn.QueryRow(t.Context(), "SELECT nextval($1::text::regclass)", name).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSequencesOfShardsNeverMeet(t *testing.T) {
	t.Parallel()
	source := connect(t, pgcluster.NewDatabase(t, cluster))
	execute(t, source, someSequences)
	values, err := catalog.ReadSequences(t.Context(), source, describe(t, source, tenant.ReplicationOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"t_id_seq", "t_n_seq", `"a.b ""c"" 🐘"`, "unused"}
	seen := map[string]map[int64]int{}
	for _, ordinal := range []int{0, 1, 63} {
		shard := connect(t, pgcluster.NewDatabase(t, cluster))
		execute(t, shard, someSequences)
		set, err := catalog.SetSequences(t.Context(), shard, values, ordinal, catalog.Step(3))
		if err != nil {
			t.Fatal(err)
		}
		again, err := catalog.SetSequences(t.Context(), shard, values, ordinal, catalog.Step(3))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(set, again); d != "" {
			t.Error(d)
		}
		for i, v := range values {
			if v.Name.Name == "t_id_seq" && (set[i].Value <= 77+catalog.SequenceHeadroom || set[i].Value%catalog.SequenceStep != int64(ordinal)) {
				t.Errorf("%+v", set[i])
			}
		}
		for _, n := range names {
			if seen[n] == nil {
				seen[n] = map[int64]int{}
			}
			for range 20 {
				// A block of 50 for the one that steps by 50, as hi/lo generators take it.
				v := nextval(t, shard, n)
				width := int64(1)
				if n == names[2] {
					width = 50
				}
				for k := range width {
					if was, dup := seen[n][v+k]; dup {
						t.Fatalf("%s: %d comes from shards %d and %d", n, v+k, was, ordinal)
					}
					seen[n][v+k] = ordinal
				}
			}
		}
		// Called again after ids were drawn: nothing goes back.
		before := nextval(t, shard, "t_id_seq")
		if _, err := catalog.SetSequences(t.Context(), shard, values, ordinal, catalog.Step(3)); err != nil {
			t.Fatal(err)
		}
		if after := nextval(t, shard, "t_id_seq"); after != before+catalog.SequenceStep {
			t.Errorf("%d follows %d", after, before)
		}
	}
}

func TestSequencesOfOneShardGoOn(t *testing.T) {
	t.Parallel()
	source, shard := connect(t, pgcluster.NewDatabase(t, cluster)), connect(t, pgcluster.NewDatabase(t, cluster))
	execute(t, source, someSequences)
	execute(t, shard, someSequences+"SELECT setval('t_id_seq', 3)")
	values, err := catalog.ReadSequences(t.Context(), source, describe(t, source, tenant.ReplicationOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalog.SetSequences(t.Context(), shard, values, 5, catalog.Step(1)); err != nil {
		t.Fatal(err)
	}
	if a, b := nextval(t, source, "t_id_seq"), nextval(t, shard, "t_id_seq"); a != 78 || b != 78 {
		t.Error(a, b)
	}
	if a, b := nextval(t, source, "t_n_seq"), nextval(t, shard, "t_n_seq"); a != b {
		t.Error(a, b)
	}
}

func TestExhaustedSequence(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgcluster.NewDatabase(t, cluster))
	execute(t, conn, "CREATE SEQUENCE first; CREATE SEQUENCE small AS smallint; SELECT setval('small', 32000)")
	values, err := catalog.ReadSequences(t.Context(), conn, describe(t, conn, tenant.ReplicationOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = catalog.SetSequences(t.Context(), conn, values, 1, catalog.SequenceStep)
	if !errors.Is(err, &tenant.Error{Code: "sequence-exhausted"}) {
		t.Fatal(err)
	}
	if v := nextval(t, conn, "first"); v != 1 {
		t.Errorf("changed although refused: %d", v)
	}
}

func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, dsn)
	execute(t, conn, someSequences)
	before := schemaDump(t, dsn)
	cat := describe(t, conn, tenant.ReplicationOptions{})
	values, err := catalog.ReadSequences(t.Context(), conn, cat)
	if err != nil {
		t.Fatal(err)
	}
	freeze := func(values []tenant.SequenceValue) error {
		return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return catalog.FreezeSequences(t.Context(), tx, values) })
	}
	nextval(t, conn, "t_id_seq") // drawn from since it was read
	var pg *pgconn.PgError
	if err := freeze(values); !errors.As(err, &pg) || pg.Code != "22023" {
		t.Fatal(err)
	}
	if before != schemaDump(t, dsn) {
		t.Error("a freeze that failed left something")
	}
	if values, err = catalog.ReadSequences(t.Context(), conn, cat); err != nil {
		t.Fatal(err)
	}
	if err := freeze(values); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"t_id_seq", "t_n_seq", `"a.b ""c"" 🐘"`, "wheel"} {
		var v int64
		if err := conn.QueryRow(t.Context(), "SELECT nextval($1::text::regclass)", n).Scan(&v); !errors.As(err, &pg) || pg.Code != "2200H" {
			t.Errorf("%s still gives %d, %v", n, v, err)
		}
	}
	if err := catalog.ThawSequences(t.Context(), conn, values); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, schemaDump(t, dsn)); d != "" {
		t.Error(d)
	}
	if v := nextval(t, conn, "t_id_seq"); v != 79 {
		t.Error(v)
	}
}
