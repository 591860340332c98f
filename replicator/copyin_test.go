package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// copier writes to a table of public as a side does.
func copier(t *testing.T, dsn tenant.DSN, table string, columns ...catalog.Column) *replicator.Copier {
	t.Helper()
	c, err := replicator.NewCopier(t.Context(), dsn, tenant.TableName{Schema: "public", Name: table}, columns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var (
	intColumn  = catalog.Column{Name: "i", Type: "integer", Category: "N"}
	textColumn = catalog.Column{Name: `odd "name"`, Type: "text", Category: "S"}
)

// numberedRows are rows of a number and a text.
func numberedRows(from, to int, text func(int) *string) [][]*string {
	var out [][]*string
	for i := from; i < to; i++ {
		out = append(out, []*string{new(fmt.Sprint(i)), text(i)})
	}
	return out
}

// TestCopiedTexts writes every character that means something to a COPY, alone and beside others, NULLs and empty texts.
func TestCopiedTexts(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	admin := open(t, dsn)
	exec(t, admin, `CREATE TABLE texts (i int PRIMARY KEY, "odd ""name""" text)`)
	want := []*string{nil, new(""), new(`\N`), new(`\.`), new("\\."), new("a\n\\.\nb"), new("日本\\🦄"), new(strings.Repeat("\\\n\t\r", 40_000))}
	for b := 1; b < 128; b++ {
		c := string(rune(b))
		want = append(want, &c, new(`\`+c), new(c+`\`), new(c+c), new("é"+c+"é"), new(`\x`+c), new(`\`+c+"12"))
	}
	rows := numberedRows(0, len(want), func(i int) *string { return want[i] })
	n, err := copier(t, dsn, "texts", intColumn, textColumn).Write(t.Context(), rows[:600], rows[600:])
	if err != nil || n != int64(len(rows)) {
		t.Fatalf("%d of %d rows went by COPY: %v", n, len(rows), err)
	}
	got, err := pgx.CollectRows(must(admin.Query(t.Context(), `SELECT "odd ""name""" FROM texts ORDER BY i`)), pgx.RowTo[*string])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func must(rows pgx.Rows, err error) pgx.Rows {
	if err != nil {
		panic(err)
	}
	return rows
}

// TestCopiedTypes writes the values of every type, as the source's output functions write them, those too that no array can
// carry.
func TestCopiedTypes(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	admin := open(t, dsn)
	exec(t, admin, customTypesDDL)
	exec(t, admin, plain)
	for i, ty := range append(append([]typed{}, builtinTypes...), customTypes...) {
		var values strings.Builder
		for _, v := range ty.values {
			fmt.Fprintf(&values, "INSERT INTO public.from%d VALUES (%s);", i, lit(v, ty.typ))
		}
		exec(t, admin, fmt.Sprintf(`SET search_path = public; CREATE TABLE public.from%[1]d (v %[2]s); CREATE TABLE public.to%[1]d (v %[2]s);`, i, ty.typ)+values.String()+"SET search_path = ''")
		texts, err := pgx.CollectRows(must(admin.Query(t.Context(), fmt.Sprintf("SELECT format('%%s', v) FROM public.from%d", i))), pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		var rows [][]*string
		for len(rows) < 500 {
			for k := range texts {
				rows = append(rows, []*string{&texts[k]})
			}
		}
		n, err := copier(t, dsn, fmt.Sprintf("to%d", i), catalog.Column{Name: "v", Category: "A"}).Write(t.Context(), rows)
		if err != nil || n != int64(len(rows)) {
			t.Errorf("%s: %d of %d rows went by COPY: %v", ty.typ, n, len(rows), err)
		}
		if bad := scalar[int](t, admin, fmt.Sprintf(`WITH f AS (SELECT DISTINCT format('%%s', v) AS v FROM public.from%[1]d), t AS (SELECT DISTINCT format('%%s', v) AS v FROM public.to%[1]d)
			SELECT count(*)::int FROM f FULL JOIN t USING (v) WHERE f IS NULL OR t IS NULL`, i)); bad != 0 {
			t.Errorf("%s: %d values are others", ty.typ, bad)
		}
	}
}

// TestCopyThatFails has rows refused within a COPY, at its beginning, in its midst and at its end: nothing stays, and the session
// goes on.
func TestCopyThatFails(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	admin := open(t, dsn)
	exec(t, admin, `CREATE TABLE texts (i int PRIMARY KEY, "odd ""name""" text CHECK ("odd ""name""" <> 'wrong'))`)
	c := copier(t, dsn, "texts", intColumn, textColumn)
	for _, bad := range []int{0, 700, 1999} {
		long := strings.Repeat("long", 300)
		text := func(i int) *string {
			if i == bad {
				return new("wrong")
			}
			return &long
		}
		rows := numberedRows(0, 2000, text)
		_, err := c.Write(t.Context(), rows[:1000], rows[1000:])
		if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != "23514" {
			t.Fatalf("row %d: %v", bad, err)
		}
		if n := scalar[int](t, admin, `SELECT count(*)::int FROM texts`); n != 0 {
			t.Fatalf("%d rows of a transaction that failed are there", n)
		}
	}
	ok := func(int) *string { return nil }
	if n, err := c.Write(t.Context(), numberedRows(0, 600, ok), numberedRows(600, 610, ok)); n != 610 || err != nil {
		t.Errorf("%d rows went by COPY behind it: %v", n, err)
	}
}

// TestCopyCountsItsRows has a trigger of the shard keep a row back, of which a COPY tells by its count only.
func TestCopyCountsItsRows(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	admin := open(t, dsn)
	exec(t, admin, `CREATE TABLE texts (i int PRIMARY KEY, "odd ""name""" text); CREATE FUNCTION keep_back() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN NEW.i <> 777 THEN NEW END; END';
		CREATE TRIGGER keep_back BEFORE INSERT ON texts FOR EACH ROW EXECUTE FUNCTION keep_back(); ALTER TABLE texts ENABLE ALWAYS TRIGGER keep_back`)
	c := copier(t, dsn, "texts", intColumn, textColumn)
	long := strings.Repeat("x", 3000)
	var groups [][][]*string
	for g := range 3 { // the COPY that has it is over when another is open
		groups = append(groups, numberedRows(g*1500, (g+1)*1500, func(int) *string { return &long }))
	}
	if _, err := c.Write(t.Context(), groups...); err == nil {
		t.Error("a row is missing, and nobody was told")
	}
	if n := scalar[int](t, admin, `SELECT count(*)::int FROM texts`); n != 0 {
		t.Errorf("%d rows are there", n)
	}
	if n, err := c.Write(t.Context(), numberedRows(1000, 2000, func(int) *string { return nil })); n != 1000 || err != nil {
		t.Errorf("%d rows went by COPY behind it: %v", n, err)
	}
}

// TestCopyableRows takes no row whose message the protocol could not have, however small its values are.
func TestCopyableRows(t *testing.T) {
	t.Parallel()
	v := make([]byte, 20<<20)
	for n, want := range map[int]bool{0: true, 1: true, 3: true, 4: false, 50: false} {
		if got := replicator.Copyable(slices.Repeat([][]byte{v}, n)...); got != want {
			t.Errorf("a row of %d values of 20 MB: %t", n, got)
		}
	}
}

// TestLongCopiesAreSeveral has so many rows that one COPY ends and another begins.
func TestLongCopiesAreSeveral(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	admin := open(t, dsn)
	exec(t, admin, `CREATE TABLE texts (i int PRIMARY KEY, "odd ""name""" text); CREATE TABLE begun (n int); CREATE FUNCTION begin_copy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.begun VALUES (1); RETURN NULL; END';
		CREATE TRIGGER begin_copy BEFORE INSERT ON texts EXECUTE FUNCTION begin_copy(); ALTER TABLE texts ENABLE ALWAYS TRIGGER begin_copy`)
	c := copier(t, dsn, "texts", intColumn, textColumn)
	long := strings.Repeat("x", 3000)
	var groups [][][]*string
	for g := range 6 {
		groups = append(groups, numberedRows(g*600, (g+1)*600, func(int) *string { return &long }))
	}
	if n, err := c.Write(t.Context(), groups...); n != 3600 || err != nil {
		t.Fatalf("%d rows went by COPY: %v", n, err)
	}
	if n := scalar[int](t, admin, `SELECT count(*)::int FROM begun`); n != 2 {
		t.Errorf("%d COPYs, want 2", n)
	}
	if n := scalar[int](t, admin, `SELECT count(*)::int FROM texts`); n != 3600 {
		t.Errorf("%d rows are there", n)
	}
}

// TestCopyIsRefused has a table with row level security, which takes no COPY: once that is known its rows come by INSERT.
func TestCopyIsRefused(t *testing.T) {
	t.Parallel()
	srv := cluster
	dsn := pgcluster.NewDatabase(t, srv)
	admin := open(t, dsn)
	role := "guarded_" + scalar[string](t, admin, `SELECT current_database()::text`)
	exec(t, admin, `CREATE ROLE `+tenant.QuoteIdent(role)+` LOGIN PASSWORD 'secret'; GRANT SET ON PARAMETER session_replication_role TO `+tenant.QuoteIdent(role)+`;
		CREATE TABLE texts (i int PRIMARY KEY, "odd ""name""" text); ALTER TABLE texts ENABLE ROW LEVEL SECURITY;
		CREATE POLICY all_of_it ON texts USING (true) WITH CHECK (true); GRANT ALL ON texts TO `+tenant.QuoteIdent(role))
	t.Cleanup(func() {
		_, _ = admin.Exec(context.Background(), `REVOKE SET ON PARAMETER session_replication_role FROM `+tenant.QuoteIdent(role)+`; DROP OWNED BY `+tenant.QuoteIdent(role)+`; DROP ROLE `+tenant.QuoteIdent(role))
	})
	c := copier(t, srv.DSNAs(role, "secret", scalar[string](t, admin, `SELECT current_database()::text`)), "texts", intColumn, textColumn)
	rows := numberedRows(0, 1000, func(int) *string { return new("x") })
	_, err := c.Write(t.Context(), rows)
	if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != "0A000" {
		t.Fatal(err)
	}
	if n, err := c.Write(t.Context(), rows); n != 0 || err != nil {
		t.Errorf("%d rows went by COPY: %v", n, err)
	}
	if n := scalar[int](t, admin, `SELECT count(*)::int FROM texts`); n != 1000 {
		t.Errorf("%d rows are there", n)
	}
}

const copiedTables = `; CREATE TABLE odd (realm_id int NOT NULL, id int NOT NULL GENERATED ALWAYS AS IDENTITY, twice int GENERATED ALWAYS AS (id * 2) STORED, tags text[], at point, PRIMARY KEY (realm_id, id)) PARTITION BY HASH (realm_id);
	CREATE TABLE odd_0 PARTITION OF odd FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE odd_1 PARTITION OF odd FOR VALUES WITH (MODULUS 2, REMAINDER 1);`

// TestAheadCopies applies inserts of transactions that run ahead by COPY, among changes of other kinds and of other tables: into
// a partitioned table with identities and generated columns and with types that no array carries.
func TestAheadCopies(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	exec(t, r.srcDB, copiedTables)
	e, tx := r.startAhead(2, fillBig(10_000, 40_000))
	exec(t, tx, `INSERT INTO odd (realm_id, tags, at) SELECT i % 50, ARRAY['a', NULL, '"', E'\\'||i, E'\n'], CASE WHEN i % 3 = 0 THEN point(i, 1) END FROM generate_series(1, 20000) i`)
	exec(t, tx, `UPDATE odd SET tags = NULL WHERE id % 100 = 0; DELETE FROM big WHERE id BETWEEN 20000 AND 20100`)
	exec(t, tx, `DO $$ BEGIN FOR i IN 50001..56000 LOOP INSERT INTO big VALUES (i % 50, i, 'x'); INSERT INTO small VALUES (i % 50, i); END LOOP; END $$`)
	exec(t, tx, fillBig(60_000, 80_000))
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	r.ranAhead(e, 1)
	r.sameRows()
	if n := e.CopiedRows(); n < 10_000 { // of 76,000: not those of groups of several tables, nor of the small groups that a slow source brings
		t.Errorf("%d rows were copied", n)
	}
}

// TestAheadMeetsARowInItsCopy has a row in the way of one in the midst of a COPY: the pause names it, and nothing of the
// transaction is there.
func TestAheadMeetsARowInItsCopy(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	r.start()
	r.waitPhase(tenant.InSync)
	shard := open(t, r.shards[0].DSN)
	exec(t, shard, `SET rehome.pass = '`+string(pass)+`'; SET session_replication_role = replica; INSERT INTO big VALUES (17, 25067, 'in the way')`)
	exec(t, r.srcDB, fillBig(10_000, 40_000))
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "(realm_id=17, id=25067)") {
		t.Errorf("paused with %q", st.Reason)
	}
	if n := scalar[int](t, shard, `SELECT count(*)::int FROM big WHERE id >= 10000`); n != 1 {
		t.Errorf("%d rows are at the shard", n)
	}
}

// moreBig is a group of a COPY, and some more.
const moreBig = `INSERT INTO big SELECT 1, i, 'more' FROM generate_series((SELECT max(id) + 1 FROM big), (SELECT max(id) + 5000 FROM big)) i`

// TestAheadRestsWithoutACopy looks at a side that waits for rows: its COPY is over before it looks whether anybody waits for it,
// so that the shard counts the time that it is idle.
func TestAheadRestsWithoutACopy(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	e, tx := r.startAhead(1, fillBig(10_000, 20_000))
	eventually(t, "it is idle behind a COPY", func() bool {
		is := scalar[string](t, r.looks()[0], `SELECT coalesce((SELECT state || ': ' || query FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()), '')`, "rehome-ahead-"+r.id)
		if strings.HasPrefix(is, "idle in transaction: SELECT EXISTS") { // it has looked since
			exec(t, tx, moreBig)
		}
		return strings.HasPrefix(is, "idle in transaction: COPY ")
	})
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	r.ranAhead(e, 1)
}

// TestTakeoverEndsACopy has a server that was stopped in the midst of a COPY hold the lock of a row that the next one has to write.
func TestTakeoverEndsACopy(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	former := openAs(t, r.shards[0].DSN, "rehome-ahead-"+r.id)
	exec(t, former, `SET rehome.pass = '`+string(pass)+`'; SET session_replication_role = replica; BEGIN; UPDATE big SET body = 'theirs' WHERE id = 7`)
	rows, more := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := former.PgConn().CopyFrom(context.WithoutCancel(t.Context()), rows, "COPY big FROM STDIN")
		ended <- errors.Join(err, rows.Close())
	}()
	if _, err := more.Write([]byte("17\t999999\ttheirs\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shard waits for rows", func() bool {
		return scalar[bool](t, r.looks()[0], `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event = 'ClientRead')`, former.PgConn().PID())
	})
	exec(t, r.srcDB, `UPDATE big SET body = 'ours' WHERE id = 7`)
	e, _ := r.start()
	eventually(t, "the former session is ended", func() bool { return r.sides() == 0 })
	_ = more.Close()
	if err := <-ended; err == nil {
		t.Error("the former session's COPY goes on")
	}
	r.verifyClean2(&e)
	if n := r.total(`SELECT count(*) FROM big WHERE body = 'ours'`); n != 1 {
		t.Errorf("%d rows are changed", n)
	}
}

// TestAheadLosesItsCopy ends the session, and the engine, in the midst of a COPY.
func TestAheadLosesItsCopy(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(t, r.source)
	copies := func() bool {
		return scalar[bool](t, r.looks()[0], `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database() AND query LIKE 'COPY %' AND state = 'active')`, "rehome-ahead-"+r.id)
	}
	goesOn := func() bool {
		exec(t, tx, moreBig)
		return copies()
	}
	exec(t, tx, "BEGIN")
	exec(t, tx, fillBig(10_000, 40_000))
	eventually(t, "a COPY is open", goesOn)
	r.endSides()
	eventually(t, "it runs ahead again", goesOn)
	stop()
	eventually(t, "the shard has ended the session", func() bool { return r.sides() == 0 })
	e, _ := r.start()
	exec(t, tx, "COMMIT")
	r.verifyClean2(&e)
	r.nothingLeft(e)
}
