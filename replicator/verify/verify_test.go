package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

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

func run(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// pair is a source with its shards a, b and c, all equal at first.
type pair struct {
	t      testing.TB
	source *pgx.Conn
	shards map[string]*pgx.Conn
	in     Input
}

func placement(names ...string) tenant.Placement {
	p := tenant.Placement{Epoch: 1, Home: names[0]}
	for i, name := range names {
		p.Ranges = append(p.Ranges, tenant.Range{From: i * tenant.Buckets / len(names), To: (i+1)*tenant.Buckets/len(names) - 1, Shard: name})
	}
	return p
}

func sessions(dsn tenant.DSN) Sessions {
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := pgx.Connect(ctx, dsn.Reveal())
		if err != nil {
			return nil, err
		}
		_, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
		return conn, err
	}
}

// newPair makes the databases. shardSchema may lay the same tables out in another way.
func newPair(t testing.TB, p tenant.Placement, schema, shardSchema, fill string, realms map[string]string) *pair {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	out := &pair{t: t, source: connect(t, dsn), shards: map[string]*pgx.Conn{}}
	run(t, out.source, schema)
	run(t, out.source, fill)
	out.in = Input{Placement: p, LSN: 0x1234, Source: sessions(dsn), Shards: map[string]Sessions{}, Jobs: 2}
	out.in.Catalogue = describe(t, out.source, realms)
	for _, name := range p.Shards() {
		dsn := pgcluster.NewDatabase(t, cluster)
		conn := connect(t, dsn)
		run(t, conn, shardSchema)
		out.shards[name], out.in.Shards[name] = conn, sessions(dsn)
		for i := range out.in.Catalogue.Tables {
			out.copy(&out.in.Catalogue.Tables[i], name)
		}
	}
	return out
}

// copy fills a shard's table with its rows.
func (p *pair) copy(tab *catalog.Table, shard string) {
	p.t.Helper()
	var cols []string
	for _, c := range tab.Copied() {
		cols = append(cols, tenant.QuoteIdent(c.Name))
	}
	list := strings.Join(cols, ", ")
	where := "true"
	if tab.Sharded() {
		var ranges []string
		for _, r := range p.in.Placement.Ranges {
			if r.Shard == shard {
				ranges = append(ranges, fmt.Sprintf("b BETWEEN %d AND %d", r.From, r.To))
			}
		}
		realm := tenant.QuoteIdent(tab.RealmKey)
		here, there := pins(p.in.Placement, shard)
		where = fmt.Sprintf(`(SELECT CASE WHEN r = ANY (%s) THEN true WHEN r = ANY (%s) THEN false ELSE %s END FROM
			(SELECT %s::text AS r, ((get_byte(sha256(convert_to(%[4]s::text,'UTF8')),0)*256 + get_byte(sha256(convert_to(%[4]s::text,'UTF8')),1)) & 16383) AS b) z)`,
			array(here), array(there), strings.Join(append(ranges, "false"), " OR "), realm)
	}
	if list == "" {
		run(p.t, p.shards[shard], `INSERT INTO `+tab.Name.Quoted()+` SELECT FROM generate_series(1, 3)`)
		return
	}
	var data bytes.Buffer
	from := fmt.Sprintf(`COPY (SELECT %s FROM %s WHERE %s) TO STDOUT (FORMAT binary)`, list, tab.Name.Quoted(), where)
	if _, err := p.source.PgConn().CopyTo(p.t.Context(), &data, from); err != nil {
		p.t.Fatalf("%s: %v", from, err)
	}
	to := fmt.Sprintf(`COPY %s (%s) FROM STDIN (FORMAT binary)`, tab.Name.Quoted(), list)
	if _, err := p.shards[shard].PgConn().CopyFrom(p.t.Context(), &data, to); err != nil {
		p.t.Fatalf("%s: %v", to, err)
	}
}

func array(s []string) string {
	quoted := make([]string, len(s))
	for i := range s {
		quoted[i] = tenant.QuoteLiteral(s[i])
	}
	return "ARRAY[" + strings.Join(quoted, ",") + "]::text[]"
}

// describe reads the tables of schema public as the catalogue describes them.
func describe(t testing.TB, conn *pgx.Conn, realms map[string]string) *catalog.Catalogue {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT oid, relname, relkind = 'p', relreplident::text, greatest(reltuples, 0)::bigint,
			coalesce((SELECT array_agg(attname::text ORDER BY ord) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, ord), pg_attribute a
				WHERE i.indrelid = c.oid AND indisprimary AND a.attrelid = c.oid AND a.attnum = k.num), '{}')
		FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname`)
	if err != nil {
		t.Fatal(err)
	}
	cat := &catalog.Catalogue{Server: catalog.Server{Encoding: "UTF8"}}
	cat.Tables, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (tab catalog.Table, err error) {
		tab.Name.Schema = "public"
		err = r.Scan(&tab.OID, &tab.Name.Name, &tab.Partitioned, &tab.Identity.Kind, &tab.Rows, &tab.Identity.Columns)
		tab.RealmKey = realms[tab.Name.Name]
		return tab, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range cat.Tables {
		rows, err := conn.Query(t.Context(), `
			SELECT attname, attnum, t.oid, CASE WHEN typtype = 'd' THEN typbasetype ELSE t.oid END, typcategory::text, attgenerated <> '', format_type(t.oid, -1)
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, cat.Tables[i].OID)
		if err != nil {
			t.Fatal(err)
		}
		if cat.Tables[i].Columns, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (c catalog.Column, err error) {
			return c, r.Scan(&c.Name, &c.Num, &c.TypeOID, &c.BaseOID, &c.Category, &c.Generated, &c.Type)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return cat
}

func (p *pair) compare() tenant.Verification {
	p.t.Helper()
	v, err := Compare(p.t.Context(), p.in)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

const schema = `
	CREATE TABLE account (realm int NOT NULL, id int NOT NULL, name text, code char(6), f float8, doc jsonb, plain json, at timestamptz, n numeric, up text GENERATED ALWAYS AS (upper(name)) STORED, PRIMARY KEY (realm, id));
	CREATE TABLE country (code text PRIMARY KEY, name text);
	CREATE TABLE log (realm int, line text);
	ALTER TABLE log REPLICA IDENTITY FULL;
	CREATE TABLE nothing ();
	ALTER TABLE nothing REPLICA IDENTITY FULL;
	CREATE TABLE visit (realm int NOT NULL, day int NOT NULL, v text, PRIMARY KEY (realm, day)) PARTITION BY RANGE (day);
	CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (50);
	CREATE TABLE visit_2 PARTITION OF visit FOR VALUES FROM (50) TO (1000)`

// otherSchema is the same to a reader: other column order, dropped columns, other partitions.
const otherSchema = `
	CREATE TABLE account (gone text, up text GENERATED ALWAYS AS (upper(name)) STORED, id int NOT NULL, n numeric, at timestamptz, plain json, doc jsonb, f float8, code char(6), name text, realm int NOT NULL, PRIMARY KEY (realm, id));
	ALTER TABLE account DROP COLUMN gone;
	CREATE TABLE country (name text, code text PRIMARY KEY);
	CREATE TABLE log (line text, realm int);
	CREATE TABLE nothing ();
	CREATE TABLE visit (realm int NOT NULL, day int NOT NULL, v text, PRIMARY KEY (realm, day))`

const fill = `
	INSERT INTO account SELECT g % 20, g, 'name ' || g, 'c' || g % 7, g / 7.0, jsonb_build_object('g', g), ('{"a" : ' || g || '}')::json, timestamptz '2026-01-01' + g * interval '1 hour', g / 4.0 FROM generate_series(1, 3000) g;
	INSERT INTO account VALUES (3, 100000, NULL, NULL, '-0', NULL, NULL, '-infinity', 'NaN'), (4, 100001, '', '', 'NaN', '"x"', 'null', '4713-01-01 BC', 1.50);
	INSERT INTO country SELECT 'c' || g, 'Country ' || g FROM generate_series(1, 200) g;
	INSERT INTO log SELECT g % 11, 'line ' || g % 30 FROM generate_series(1, 900) g;
	INSERT INTO nothing SELECT FROM generate_series(1, 3);
	INSERT INTO visit SELECT g % 9, g, 'v' FROM generate_series(1, 900) g`

var realmKeys = map[string]string{"account": "realm", "log": "realm", "visit": "realm"}

func TestEqual(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]tenant.Placement{"one shard": placement("a"), "three shards": pinned(placement("a", "b", "c"))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pair := newPair(t, p, schema, otherSchema, fill, realmKeys)
			run(t, pair.shards["a"], `UPDATE account SET name = name; CLUSTER account USING account_pkey`)
			if name == "three shards" {
				pair.in.Jobs, pair.in.PartBytes = 4, 3*8192
			}
			var last Progress
			pair.in.OnProgress = func(p Progress) { last = p }
			v := pair.compare()
			rows := map[string]int64{}
			for _, tab := range v.Tables {
				if !tab.Equal || tab.Misplaced != 0 || len(tab.Differences) > 0 || tab.MoreDiffs != 0 || len(tab.Digest) != 64 || tab.SourceRows != tab.TargetRows {
					t.Errorf("%+v", tab)
				}
				rows[tab.Table] = tab.SourceRows
			}
			want := map[string]int64{"public.account": 3002, "public.country": 200, "public.log": 900, "public.nothing": 3, "public.visit": 900}
			if diff := cmp.Diff(want, rows); diff != "" {
				t.Error(diff)
			}
			if !v.Clean || v.Rows != 5005 || v.LSN != 0x1234 || len(v.Digest) != 64 || v.FinishedAt.Before(v.StartedAt) {
				t.Errorf("%+v", v)
			}
			if last.TablesDone != 5 || last.TablesTotal != 5 || last.Rows != 5005 || last.RowsTotal < last.Rows {
				t.Errorf("progress %+v", last)
			}
			if again := pair.compare(); again.Digest != v.Digest {
				t.Error("the digest of the same rows is another")
			}
			pair.in.LSN++
			if other := pair.compare(); other.Digest == v.Digest || other.Tables[0].Digest != v.Tables[0].Digest {
				t.Error("the digest does not depend on the position alone")
			}
		})
	}
}

// pinned pins realms away from their buckets.
func pinned(p tenant.Placement) tenant.Placement {
	p.Pins = map[string]string{"3": "c", "4": "a", "7": "b"}
	return p
}

// TestManyDifferences names the first and counts the rest.
func TestManyDifferences(t *testing.T) {
	t.Parallel()
	pair := newPair(t, placement("a", "b"), schema, otherSchema, fill, realmKeys)
	pair.in.MaxDiffs = 5
	for _, conn := range pair.shards {
		run(t, conn, `UPDATE account SET name = 'x'; DELETE FROM log; UPDATE country SET name = NULL WHERE code IN ('c1', 'c2', 'c3', 'c4')`)
	}
	v := pair.compare()
	got := map[string]string{}
	for _, tab := range v.Tables {
		got[tab.Table] = fmt.Sprint(tab.Equal, len(tab.Differences), tab.MoreDiffs, tab.SourceRows, tab.TargetRows)
	}
	want := map[string]string{
		"public.account": "false 5 2997 3002 3002", "public.country": "false 5 3 200 200", "public.log": "false 5 895 900 0",
		"public.nothing": "true 0 0 3 3", "public.visit": "true 0 0 900 900",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestKeyTypes has identities of many types: a changed row is named and its key reads well.
func TestKeyTypes(t *testing.T) {
	t.Parallel()
	types := map[string]struct{ value, key string }{
		"uuid":        {"'00112233-4455-6677-8899-aabbccddeeff'", "id=00112233-4455-6677-8899-aabbccddeeff"},
		"bigint":      {"-9000000000", "id=-9000000000"},
		"smallint":    {"-1", "id=-1"},
		"text":        {"'O''Brien, é'", "id='O''Brien, é'"},
		"varchar(9)":  {"'v '", "id='v '"},
		"char(4)":     {"'c'", "id='c'"},
		"numeric":     {"1.50", "id=1.50"},
		"bytea":       {`'\x00ff'`, `id=\x00ff`},
		"timestamptz": {"'2026-01-02 03:04:05.6+02'", "id=2026-01-02 01:04:05.6+00"},
		"date":        {"'infinity'", "id=infinity"},
		"boolean":     {"true", "id=true"},
		"inet":        {"'10.0.0.1'", "id='10.0.0.1/32'"},
		"int4range":   {"'[1,4]'", "id='[1,5)'"},
		"int[]":       {"'{1,2}'", "id='{1,2}'"},
	}
	var schema, fill, change string
	want := map[string]string{}
	for typ, tt := range types {
		table := tenant.QuoteIdent(typ)
		schema += `CREATE TABLE ` + table + ` (id ` + typ + ` PRIMARY KEY, v int);`
		fill += `INSERT INTO ` + table + ` VALUES (` + tt.value + `, 1);`
		change += `UPDATE ` + table + ` SET v = 2;`
		want[typ] = tt.key
	}
	pair := newPair(t, placement("a"), schema, schema, fill, nil)
	if v := pair.compare(); !v.Clean {
		t.Errorf("%+v", v)
	}
	run(t, pair.shards["a"], change)
	got := map[string]string{}
	for _, tab := range pair.compare().Tables {
		name, err := tenant.ParseTableName(tab.Table)
		if err != nil || len(tab.Differences) != 1 || tab.Differences[0].Kind != Different || tab.MoreDiffs != 0 {
			t.Fatalf("%+v: %v", tab, err)
		}
		got[name.Name] = tab.Differences[0].Key
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestTranscode compares a LATIN1 source with a UTF8 shard.
func TestTranscode(t *testing.T) {
	t.Parallel()
	admin := connect(t, cluster.DSN("postgres"))
	run(t, admin, `DROP DATABASE IF EXISTS latin`)
	run(t, admin, `CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	t.Cleanup(func() {
		_, _ = admin.Exec(context.Background(), `DROP DATABASE latin WITH (FORCE)`)
	})
	const table = `CREATE TABLE t (id text PRIMARY KEY, realm text, v text)`
	const rows = `INSERT INTO t SELECT 'clé ' || g, 'é' || g % 5, 'ÿ' FROM generate_series(1, 100) g`
	pair := newPair(t, placement("a", "b"), table, table, rows, map[string]string{"t": "realm"})
	latin := connect(t, cluster.DSN("latin"))
	run(t, latin, `SET client_encoding = 'UTF8'`)
	run(t, latin, table)
	run(t, latin, rows)
	pair.in.Source, pair.in.Catalogue.Server.Encoding = sessions(cluster.DSN("latin")), "LATIN1"
	if v := pair.compare(); !v.Clean || v.Rows != 100 {
		t.Errorf("%+v", v)
	}
	for _, conn := range pair.shards {
		run(t, conn, `UPDATE t SET v = 'y' WHERE id = 'clé 7'`)
	}
	v := pair.compare()
	if len(v.Tables[0].Differences) != 1 || v.Tables[0].Differences[0].Key != "id='clé 7'" {
		t.Errorf("%+v", v)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	pair := newPair(t, placement("a", "b"), `CREATE TABLE t (id int PRIMARY KEY)`, `CREATE TABLE t (id int PRIMARY KEY)`, ``, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, pair.in); err == nil {
		t.Error("it compares after its context ended")
	}
	good := pair.in.Shards["a"]
	pair.in.Shards["a"] = func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := good(ctx)
		if err == nil {
			_, err = conn.Exec(ctx, `ROLLBACK`)
		}
		return conn, err
	}
	if _, err := Compare(t.Context(), pair.in); err == nil || !strings.Contains(err.Error(), "shard a") {
		t.Errorf("a session without transaction: %v", err)
	}
	pair.in.Shards["a"] = good
	run(t, pair.shards["b"], `DROP TABLE t`)
	if v := pair.compare(); v.Clean || v.Tables[0].Equal || v.Tables[0].Skipped != "the table is missing on shard b" {
		t.Errorf("a table that is not there: %+v", v)
	}
	delete(pair.in.Shards, "b")
	if _, err := Compare(t.Context(), pair.in); err == nil {
		t.Error("a shard of the placement is left out")
	}
}

// TestGivesUp ends a comparison whose time is over, in the rest after a table.
func TestGivesUp(t *testing.T) {
	t.Parallel()
	pair := newPair(t, placement("a"), schema, otherSchema, fill, realmKeys)
	pair.in.Jobs, pair.in.Pause, pair.in.MaxDuration = 1, time.Hour, time.Second
	_, err := Compare(t.Context(), pair.in)
	var e *tenant.Error
	if !errors.As(err, &e) || e.Kind != tenant.KindTimeout || e.Code != "verification-timeout" || !strings.Contains(e.Message, "gave up after 1s: ") || !strings.Contains(e.Message, " of 5 tables done") {
		t.Errorf("%v", err)
	}
	pair.in.Pause, pair.in.MaxDuration = time.Millisecond, time.Hour
	if v := pair.compare(); !v.Clean {
		t.Errorf("%+v", v)
	}
}
