package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

func connect(t testing.TB, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func run(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func lines(t testing.TB, conn *pgx.Conn, sql string) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// bench is a source database and targets with the same schema.
type bench struct {
	t       testing.TB
	admin   *pgx.Conn // at the source, outside the copy
	source  *pgx.Conn
	targets []*pgx.Conn
	dsns    []tenant.DSN
}

func newBench(t testing.TB, targets int, schema string) *bench {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	b := &bench{t: t, admin: connect(t, dsn), source: connect(t, dsn)}
	run(t, b.admin, schema)
	for range targets {
		dsn := pgcluster.NewDatabase(t, cluster)
		conn := connect(t, dsn)
		run(t, conn, schema)
		b.targets, b.dsns = append(b.targets, conn), append(b.dsns, dsn)
	}
	return b
}

// spec describes a table as the catalogue does and opens the transactions.
func (b *bench) spec(table, realmKey string, freeze bool) Spec {
	b.t.Helper()
	s := Spec{
		Table: tenant.TableName{Schema: "public", Name: table}, Leaf: catalog.Leaf{Name: tenant.TableName{Schema: "public", Name: table}},
		RealmKey: realmKey, Source: b.source.PgConn(), Freeze: freeze,
		Route: func(realm []byte) int { return tenant.BucketBytes(realm) % len(b.targets) },
	}
	if err := b.admin.QueryRow(b.t.Context(), `SELECT pg_relation_filenode($1::regclass)`, s.Leaf.Name.Quoted()).Scan(&s.Leaf.Filenode); err != nil {
		b.t.Fatal(err)
	}
	rows, err := b.admin.Query(b.t.Context(), `
		SELECT attname, attnum, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, t.oid, t.typname !~ '^reg' FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, s.Leaf.Name.Quoted())
	if err != nil {
		b.t.Fatal(err)
	}
	if s.Columns, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (c catalog.Column, err error) {
		return c, r.Scan(&c.Name, &c.Num, &c.BaseOID, &c.TypeOID, &c.Binary)
	}); err != nil {
		b.t.Fatal(err)
	}
	run(b.t, b.source, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
	run(b.t, b.source, `SELECT 1`)
	for _, conn := range b.targets {
		run(b.t, conn, `BEGIN`)
		if freeze {
			run(b.t, conn, `TRUNCATE ONLY `+s.Leaf.Name.Quoted())
		}
		s.Targets = append(s.Targets, conn.PgConn())
	}
	return s
}

func (b *bench) copyAndCommit(s Spec) Result {
	b.t.Helper()
	res, err := CopyLeaf(b.t.Context(), s)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, conn := range b.targets {
		run(b.t, conn, `COMMIT`)
	}
	run(b.t, b.source, `COMMIT`)
	return res
}

// same compares the source's rows with those of all targets together, or with each's.
func (b *bench) same(query string, each bool) {
	b.t.Helper()
	want := lines(b.t, b.admin, query)
	slices.Sort(want)
	var got []string
	for i, conn := range b.targets {
		part := lines(b.t, conn, query)
		if each {
			slices.Sort(part)
			if diff := cmp.Diff(want, part); diff != "" {
				b.t.Errorf("target %d (-source +target):\n%s", i, diff)
			}
		}
		got = append(got, part...)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); !each && diff != "" {
		b.t.Errorf("rows (-source +targets):\n%s", diff)
	}
}

const manyTypes = `
	CREATE TYPE mood AS ENUM ('sad', 'glad');
	CREATE TYPE pair AS (a int, b text);
	CREATE DOMAIN realm_name AS text CHECK (length(value) < 100);
	CREATE TABLE "odd ""name" (
		gone text, id bigint GENERATED ALWAYS AS IDENTITY, "re.alm" realm_name NOT NULL, m mood, arr text[][], j jsonb, js json, b bytea, n numeric, f float8, ts timestamptz,
		d date, i interval, u uuid, p pair, r int4range, mr int8multirange, inet inet, bits varbit, mon money, tv tsvector, c char(7), x xml, upper text GENERATED ALWAYS AS (upper("re.alm")) STORED);
	ALTER TABLE "odd ""name" DROP COLUMN gone`

const manyRows = `
	INSERT INTO "odd ""name" ("re.alm", m, arr, j, js, b, n, f, ts, d, i, u, p, r, mr, inet, bits, mon, tv, c, x)
	SELECT 'réalm ' || g % 13 || E'\t\\\n', CASE WHEN g % 3 > 0 THEN 'glad'::mood END, ARRAY[['a', NULL], ['\N', '"x"']], '{"k": "\t"}', '{"a" : 1}', '\x00ff', 'NaN', '-0', '4713-01-01 BC', 'infinity',
		'1 mon -3 days 04:05:06', gen_random_uuid(), ROW(g, E'tab\there')::pair, '[1,5)', '{[1,3),[7,9)}', '10.0.0.1/8', B'101', 12.5, 'a:1 b', 'c', '<a>é</a>' FROM generate_series(1, 500) g;
	INSERT INTO "odd ""name" ("re.alm") VALUES ('')`

func TestCopyTypes(t *testing.T) {
	t.Parallel()
	for _, text := range []bool{false, true} {
		for _, targets := range []int{1, 3} {
			t.Run(fmt.Sprintf("text=%v targets=%d", text, targets), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, targets, manyTypes)
				run(t, b.admin, manyRows)
				var counters Counters
				s := b.spec(`odd "name`, "re.alm", true)
				s.Text, s.Counters = text, &counters
				res := b.copyAndCommit(s)
				if res.Rows != 501 || res.Text != text || counters.Rows.Load() != 501 || res.Bytes != counters.Bytes.Load() || res.Bytes < 10000 {
					t.Errorf("%+v, counters %d rows %d bytes", res, counters.Rows.Load(), counters.Bytes.Load())
				}
				b.same(`SELECT t::text FROM "odd ""name" t`, false)
				for i, conn := range b.targets {
					if n := lines(t, conn, fmt.Sprintf(`SELECT count(*)::text FROM "odd ""name" WHERE %s %% %d <> %d`, bucketSQL(`"re.alm"`), targets, i)); n[0] != "0" {
						t.Errorf("%s rows of target %d belong elsewhere", n[0], i)
					}
					if want := fmt.Sprint(res.PerTarget[i]); lines(t, conn, `SELECT count(*)::text FROM "odd ""name"`)[0] != want {
						t.Errorf("target %d has not the %s rows that were reported", i, want)
					}
				}
			})
		}
	}
}

func bucketSQL(expr string) string {
	return fmt.Sprintf(`((get_byte(sha256(convert_to(%[1]s::text,'UTF8')),0)*256+get_byte(sha256(convert_to(%[1]s::text,'UTF8')),1)) & 16383)`, expr)
}

// TestRealmTypes has every type that a realm key may have; SQL agrees with Go on each row's shard.
func TestRealmTypes(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3, ``)
	for typ, value := range map[string]string{
		"smallint": "g - 50", "integer": "(g - 50) * 70001", "bigint": "(g - 50) * 7000000000001", "uuid": "md5(g::text)::uuid", "text": "'ü ' || g || ' '",
		"varchar(20)": "E'\\\\' || g || ' '", "char(12)": "'é' || g", "character(3)": "g % 9",
	} {
		for _, text := range []bool{false, true} {
			for _, conn := range append([]*pgx.Conn{b.admin}, b.targets...) {
				run(t, conn, `DROP TABLE IF EXISTS t; CREATE TABLE t (v text, realm `+typ+` NOT NULL)`)
			}
			run(t, b.admin, `INSERT INTO t SELECT 'v' || g, `+value+` FROM generate_series(1, 100) g`)
			s := b.spec("t", "realm", false)
			s.Text = text
			b.copyAndCommit(s)
			b.same(`SELECT t::text FROM t`, false)
			for i, conn := range b.targets {
				if n := lines(t, conn, fmt.Sprintf(`SELECT count(*)::text FROM t WHERE %s %% 3 <> %d`, bucketSQL("realm"), i)); n[0] != "0" {
					t.Errorf("%s text=%v: %s rows of target %d belong elsewhere", typ, text, n[0], i)
				}
			}
		}
	}
}

func TestReferenceTable(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3, `CREATE TABLE t (id int, v text)`)
	run(t, b.admin, `INSERT INTO t SELECT g, repeat('v', g) FROM generate_series(1, 2000) g`)
	res := b.copyAndCommit(b.spec("t", "", true))
	if diff := cmp.Diff([]int64{2000, 2000, 2000}, res.PerTarget); diff != "" || res.Rows != 2000 {
		t.Errorf("%+v", res)
	}
	b.same(`SELECT t::text FROM t`, true)
}

func TestNoColumns(t *testing.T) {
	t.Parallel()
	for _, text := range []bool{false, true} {
		b := newBench(t, 2, `CREATE TABLE t (); CREATE TABLE g (x int GENERATED ALWAYS AS (7) STORED)`)
		run(t, b.admin, `INSERT INTO t SELECT FROM generate_series(1, 3); INSERT INTO g SELECT FROM generate_series(1, 4)`)
		for table, rows := range map[string]int64{"t": 3, "g": 4} {
			s := b.spec(table, "", true)
			s.Text = text
			if res := b.copyAndCommit(s); res.Rows != rows {
				t.Errorf("%s text=%v: %+v", table, text, res)
			}
			b.same(`SELECT count(*)::text FROM `+table, true)
		}
	}
}

// TestOIDTypes has columns whose binary form means something else on another server.
func TestOIDTypes(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1, `CREATE TABLE a (); CREATE TABLE t (id int, c regclass)`)
	run(t, b.targets[0], `DROP TABLE a; CREATE TABLE filler (); CREATE TABLE a ()`)
	run(t, b.admin, `INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, 'pg_class')`)
	if res := b.copyAndCommit(b.spec("t", "id", false)); !res.Text {
		t.Error("the copy went in binary")
	}
	b.same(`SELECT t::text FROM t`, true)
}

// TestLargeValues has rows larger than all buffers together.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3, `CREATE TABLE t (big text, realm int NOT NULL, other bytea); ALTER TABLE t ALTER big SET STORAGE EXTERNAL`)
	run(t, b.admin, `INSERT INTO t SELECT repeat(md5(g::text), 40000), g, decode(repeat('00ff', 500000), 'hex') FROM generate_series(1, 12) g`)
	for _, text := range []bool{false, true} {
		s := b.spec("t", "realm", true)
		s.Text = text
		b.copyAndCommit(s)
		b.same(`SELECT realm || md5(big) || md5(other) FROM t`, false)
	}
}

func TestLeafOtherColumnOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2, `CREATE TABLE t (realm int, a text, b text)`)
	for _, conn := range b.targets {
		run(t, conn, `DROP TABLE t; CREATE TABLE t (b text, x int, realm int, a text); ALTER TABLE t DROP COLUMN x`)
	}
	run(t, b.admin, `INSERT INTO t SELECT g, 'a' || g, 'b' || g FROM generate_series(1, 50) g`)
	b.copyAndCommit(b.spec("t", "realm", false))
	b.same(`SELECT ROW(realm, a, b)::text FROM t`, false)
}

func TestNullRealm(t *testing.T) {
	t.Parallel()
	for _, targets := range []int{1, 2} {
		b := newBench(t, targets, `CREATE TABLE t (id int, realm int)`)
		run(t, b.admin, `INSERT INTO t VALUES (1, 1), (2, NULL)`)
		_, err := CopyLeaf(t.Context(), b.spec("t", "realm", false))
		if !errors.Is(err, ErrNullRealm) || !strings.Contains(err.Error(), "public.t") {
			t.Errorf("%d targets: %v", targets, err)
		}
		b.nothingCommitted("t")
	}
}

// nothingCommitted rolls back, which shows also that the targets' sessions are in order, and looks.
func (b *bench) nothingCommitted(table string) {
	b.t.Helper()
	for i, conn := range b.targets {
		if !conn.IsClosed() {
			run(b.t, conn, `ROLLBACK`)
		}
		if n := lines(b.t, connect(b.t, b.dsns[i]), `SELECT count(*)::text FROM `+table); n[0] != "0" {
			b.t.Errorf("target %d has %s rows", i, n[0])
		}
	}
}

func TestRewritten(t *testing.T) {
	t.Parallel()
	for _, rewrite := range []string{`VACUUM FULL t`, `TRUNCATE t`, `ALTER TABLE t ALTER id TYPE bigint`} {
		b := newBench(t, 1, `CREATE TABLE t (id int)`)
		run(t, b.admin, `INSERT INTO t SELECT generate_series(1, 100)`)
		s := b.spec("t", "id", false)
		run(t, b.admin, rewrite)
		if _, err := CopyLeaf(t.Context(), s); !errors.Is(err, ErrRewritten) {
			t.Errorf("%s: %v", rewrite, err)
		}
		b.nothingCommitted("t")
	}
}
