package torture

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// closeSQL is a fence as simple as can be; the witness only knows its SQLSTATE.
const closeSQL = `CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'closed'; END $$;
	CREATE TRIGGER no BEFORE INSERT OR UPDATE ON witness FOR EACH STATEMENT EXECUTE FUNCTION no();`

// A witness of two databases of which one is a closed shard; then everything goes wrong that it is there for.
func TestWitness(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	source, shard := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	src, dst := dial(t, source), dial(t, shard)
	run := func(c *pgx.Conn, sql string) {
		t.Helper()
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(src, WitnessSQL)
	run(dst, WitnessSQL+closeSQL)
	w := NewWitness(source, map[string]tenant.DSN{"s1": shard}, func(string) string { return "s1" }, 2*time.Millisecond)
	wctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(wctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	more := func() {
		t.Helper()
		from, _ := w.Acknowledged()
		for limit := time.Now().Add(20 * time.Second); ; pause(ctx, 10*time.Millisecond) {
			if n, _ := w.Acknowledged(); n > from+20 {
				return
			}
			if time.Now().After(limit) {
				t.Fatalf("the witness does not write: %v", w.Mishaps())
			}
		}
	}
	check := func(want string) {
		t.Helper()
		err := w.Check(ctx, false, false)
		if (want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	more()
	check("")
	if len(w.refused) == 0 {
		t.Error("the closed side refused nothing")
	}

	run(src, `UPDATE tally SET n = n + 1 WHERE realm_id = 'realm3'`) // a count that was applied twice
	check("the tally of realm realm3")
	run(src, `UPDATE tally SET n = n - 1 WHERE realm_id = 'realm3'`)
	check("")
	var realm string
	var id int64
	if err := src.QueryRow(ctx, `DELETE FROM witness WHERE id = (SELECT min(id) FROM witness) RETURNING realm_id, id`).Scan(&realm, &id); err != nil {
		t.Fatal(err)
	}
	run(src, `UPDATE tally SET n = n - 1 WHERE realm_id = '`+realm+`'`)
	check("it is there 0 times")
	if _, err := src.Exec(ctx, `INSERT INTO witness VALUES ($1, $2, -1)`, realm, id); err != nil {
		t.Fatal(err)
	}
	run(src, `UPDATE tally SET n = n + 1 WHERE realm_id = '`+realm+`'`)
	check("")
	run(src, `INSERT INTO witness VALUES ('realm1', 1000000000, -2); UPDATE tally SET n = n + 1 WHERE realm_id = 'realm1'`)
	check("nobody tried it")
	run(src, `DELETE FROM witness WHERE id = 1000000000; UPDATE tally SET n = n - 1 WHERE realm_id = 'realm1'`)
	check("")

	run(dst, `DROP TRIGGER no ON witness`) // now both are open
	more()
	check("both sides were open")
}

func dial(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}
