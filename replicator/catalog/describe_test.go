package catalog_test

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

func connect(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
}

func describe(t *testing.T, conn *pgx.Conn, opts tenant.ReplicationOptions) *catalog.Catalogue {
	t.Helper()
	cat, err := catalog.Describe(t.Context(), conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	return cat
}

func table(t *testing.T, cat *catalog.Catalogue, schema, name string) *catalog.Table {
	t.Helper()
	for i := range cat.Tables {
		if cat.Tables[i].Name == (tenant.TableName{Schema: schema, Name: name}) {
			return &cat.Tables[i]
		}
	}
	t.Fatalf("no table %s.%s", schema, name)
	return nil
}

const manyShapes = `
CREATE EXTENSION IF NOT EXISTS citext;
CREATE SCHEMA "We""ird.Schema 🐘";
CREATE TYPE mood AS ENUM ('sad','ok');
CREATE TYPE pair AS (a int, b text);
CREATE TYPE lookup AS (a int, b regclass);
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN posint2 AS posint NOT NULL;
CREATE TABLE realms (realm_id uuid PRIMARY KEY, name citext);
CREATE TABLE items (
	realm_id uuid NOT NULL REFERENCES realms, id bigint GENERATED ALWAYS AS IDENTITY, gone int, m mood, ms mood[], p pair, ps pair[], d posint2,
	rc regclass, lk lookup, ac aclitem, n numeric(10,2), c citext, v varchar(20),
	total numeric GENERATED ALWAYS AS (n * 2) STORED, r int4range, mr int4multirange,
	PRIMARY KEY (realm_id, id));
ALTER TABLE items DROP COLUMN gone;
CREATE TABLE "We""ird.Schema 🐘"."t.a ""b"" 🦣" (id serial PRIMARY KEY, "realm_id" text COLLATE "C", "Or der" int);
CREATE TABLE ev (realm_id uuid, at date, id int, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
CREATE TABLE ev_a PARTITION OF ev FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY LIST (id);
CREATE TABLE ev_a1 PARTITION OF ev_a DEFAULT;
CREATE TABLE ev_b PARTITION OF ev FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
ALTER TABLE ev_b REPLICA IDENTITY FULL;
CREATE TABLE parent (id int PRIMARY KEY, t text);
CREATE TABLE child (x int) INHERITS (parent);
CREATE TABLE countries (code char(2) PRIMARY KEY DEFERRABLE, tenant_ref int);
CREATE UNLOGGED TABLE cache (id int);
CREATE TEMP TABLE temporary_one (id int);
CREATE TABLE zero ();
CREATE SCHEMA rehome; CREATE TABLE rehome.gate (x int);
CREATE TABLE log (realm_id uuid, msg text); ALTER TABLE log REPLICA IDENTITY FULL;
CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE indexed (id int NOT NULL, k int NOT NULL); CREATE UNIQUE INDEX indexed_k ON indexed (k) INCLUDE (id); CREATE INDEX ON indexed (id); ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_k;
CREATE SEQUENCE free_one INCREMENT 10 MAXVALUE 5000 CYCLE;
INSERT INTO items (realm_id, d) SELECT gen_random_uuid(), 1 FROM generate_series(1, 0);
`

func TestDescribe(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgcluster.NewDatabase(t, cluster))
	execute(t, conn, manyShapes)
	cat := describe(t, conn, tenant.ReplicationOptions{Exclude: []string{"zer*"}, Reference: []string{"log"}, TableKeys: map[string]string{"public.countries": "tenant_ref"}})

	var names []string
	for _, tb := range cat.Tables {
		names = append(names, tb.Name.String())
	}
	slices.Sort(names)
	want := []string{`"We""ird.Schema 🐘"."t.a ""b"" 🦣"`, "public.child", "public.countries", "public.ev", "public.indexed", "public.items", "public.log", "public.nothing", "public.parent", "public.realms"}
	if d := cmp.Diff(want, names); d != "" {
		t.Fatal(d)
	}
	if cat.Server.SystemIdentifier == "" || cat.Server.Timeline != 1 || cat.Server.Version < 130000 || cat.Server.Encoding != "UTF8" {
		t.Errorf("server: %+v", cat.Server)
	}

	items := table(t, cat, "public", "items")
	binary := map[string]bool{}
	for _, c := range items.Columns {
		binary[c.Name] = c.Binary
	}
	wantBinary := map[string]bool{
		"realm_id": true, "id": true, "m": true, "ms": true, "p": true, "ps": true, "d": true, "rc": false, "lk": false,
		"ac": false, "n": true, "c": true, "v": true, "total": true, "r": true, "mr": true,
	}
	if d := cmp.Diff(wantBinary, binary); d != "" {
		t.Error(d)
	}
	if c := items.Column("c"); c.Type != "public.citext" {
		t.Errorf("type for casts must be qualified: %+v", c)
	}
	if c := items.Column("v"); c.Type != "character varying" || c.TypeMod != "character varying(20)" {
		t.Errorf("%+v", c)
	}
	if c := items.Column("d"); c.BaseOID != 23 || c.Category != "N" {
		t.Errorf("domain over domain: %+v", c)
	}
	if c := items.Column("id"); c.IdentityKind != "a" {
		t.Errorf("%+v", c)
	}
	if c := items.Column("total"); !c.Generated {
		t.Errorf("%+v", c)
	}
	if items.RealmKey != "realm_id" || !cmp.Equal(items.Identity, catalog.Identity{Kind: "d", Index: "items_pkey", Columns: []string{"realm_id", "id"}}) {
		t.Errorf("%+v", items)
	}

	ev := table(t, cat, "public", "ev")
	if !ev.Partitioned || len(ev.Leaves) != 2 || len(ev.Branches) != 1 || ev.Branches[0].Name.Name != "ev_a" {
		t.Fatalf("%+v", ev)
	}
	for _, l := range ev.Leaves {
		if l.Filenode == 0 {
			t.Errorf("no filenode: %+v", l)
		}
		if l.Name.Name == "ev_b" && (l.Identity.Kind != "f" || !l.Identity.Covers(ev.Identity)) {
			t.Errorf("%+v", l)
		}
		if l.Name.Name == "ev_a1" && (l.Parent != ev.Branches[0].OID || !l.Identity.Has("realm_id")) {
			t.Errorf("%+v", l)
		}
	}
	if p := table(t, cat, "public", "parent"); !p.Children {
		t.Errorf("%+v", p)
	}
	if c := table(t, cat, "public", "countries"); !c.DeferrableKey || !c.Identity.None() || c.RealmKey != "tenant_ref" {
		t.Errorf("%+v", c)
	}
	if l := table(t, cat, "public", "log"); l.RealmKey != "" || len(l.Identity.Columns) != 2 || l.Indexes != 0 {
		t.Errorf("%+v", l)
	}
	if n := table(t, cat, "public", "nothing"); !n.Identity.None() {
		t.Errorf("%+v", n)
	}
	if n := table(t, cat, "public", "indexed"); !cmp.Equal(n.Identity, catalog.Identity{Kind: "i", Index: "indexed_k", Columns: []string{"k"}}) || n.Indexes != 2 {
		t.Errorf("%+v", n)
	}
	var seqs []string
	for _, s := range cat.Sequences {
		seqs = append(seqs, s.Name.Name+" "+s.OwnedBy)
	}
	if d := cmp.Diff([]string{"t.a \"b\" 🦣_id_seq \"We\"\"ird.Schema 🐘\".\"t.a \"\"b\"\" 🦣\".\"id\"", "free_one ", "items_id_seq public.items.\"id\""}, seqs); d != "" {
		t.Error(d)
	}
	var path string
	if err := conn.QueryRow(t.Context(), "SHOW search_path").Scan(&path); err != nil || path == "" {
		t.Errorf("search_path is left as %q, %v", path, err)
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern      string
		schema, name string
		want         bool
	}{
		{"accounts", "public", "accounts", true},
		{"accounts", "other", "accounts", false},
		{"public.acc*", "public", "accounts", true},
		{"*.accounts", "x", "accounts", true},
		{"log_*", "public", "log_1", true},
		{"log_*", "x", "log_1", false},
		{"*", "x", "y", true},
		{"x.*_log", "x", "a_log_log", true},
		{"x.*_log", "x", "a_logs", false},
		{`"We.ird"."t"`, "We.ird", "t", true},
		{`x."a""b"`, "x", `a"b`, true},
	} {
		if got := catalog.Matches(c.pattern, tenant.TableName{Schema: c.schema, Name: c.name}); got != c.want {
			t.Errorf("%s on %s.%s: %v", c.pattern, c.schema, c.name, got)
		}
	}
}
