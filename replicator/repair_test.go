package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// kinds are columns of all sorts with a value, and another that a careless comparison takes for the same.
var kinds = []struct{ name, typ, value, other string }{
	{"c_smallint", "smallint", "-1", "1"},
	{"c_int", "int", "2147483647", "2147483646"},
	{"c_bigint", "bigint", "-9223372036854775808", "-9223372036854775807"},
	{"c_numeric", "numeric", "1.0", "1.00"},
	{"c_huge", "numeric", "1e300", "1e300 + 1"},
	{"c_nan", "numeric", "'NaN'", "NULL"},
	{"c_real", "real", "'0'", "'-0'"},
	{"c_double", "float8", "'-0'", "'0'"},
	{"c_ulp", "float8", "0.1", "0.10000000000000002"},
	{"c_text", "text", "''", "NULL"},
	{"c_null", "text", "NULL", "''"},
	{"c_blank", "text", "'a'", "'a '"},
	{"c_case", "text", "'a'", "'A'"},
	{"c_form", "text", "U&'\\00e9'", "U&'e\\0301'"},
	{"c_varchar", "varchar(9)", "'v'", "'v '"},
	{"c_char", "char(4)", "'c'", "'d'"},
	{"c_inner", `"char"`, "'x'", "'y'"},
	{"c_bool", "boolean", "true", "NULL"},
	{"c_bytea", "bytea", `'\x00'`, `'\x0000'`},
	{"c_date", "date", "'infinity'", "'4714-11-24 BC'"},
	{"c_time", "time", "'24:00'", "'00:00'"},
	{"c_timetz", "timetz", "'12:00+00'", "'13:00+01'"},
	{"c_stamp", "timestamp", "'2026-01-01 00:00:00.000001'", "'2026-01-01'"},
	{"c_stamptz", "timestamptz", "'-infinity'", "'infinity'"},
	{"c_interval", "interval", "'1 mon'", "'30 days'"},
	{"c_uuid", "uuid", "'00112233-4455-6677-8899-aabbccddeeff'", "'00112233-4455-6677-8899-aabbccddeefe'"},
	{"c_json", "json", `'{"a":1}'`, `'{"a": 1}'`},
	{"c_jsonb", "jsonb", `'{"a":1}'`, `'{"a":1.0}'`},
	{"c_jsonnull", "jsonb", "'null'", "NULL"},
	{"c_xml", "xml", "'<a/>'", "'<a></a>'"},
	{"c_array", "int[]", "'{1,NULL}'", "'[0:1]={1,NULL}'"},
	{"c_empty", "text[]", "'{}'", `'{""}'`},
	{"c_range", "int4range", "'[1,5)'", "'empty'"},
	{"c_inet", "inet", "'10.0.0.1'", "'10.0.0.1/24'"},
	{"c_cidr", "cidr", "'10.0.0.0/8'", "'10.0.0.0/9'"},
	{"c_mac", "macaddr", "'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'"},
	{"c_bit", "bit varying", "B'1'", "B'10'"},
	{"c_money", "money", "1.00", "1.01"},
	{"c_point", "point", "'(0,0)'", "'(0,-0)'"},
	{"c_ts", "tsvector", "'a:1'", "'a'"},
	{"c_enum", "mood", "'sad'", "'glad'"},
	{"c_domain", "short", "'ab'", "'ba'"},
	{"c_comp", "pair", `'(1,"")'`, "'(1,)'"},
}

func repairDDL() string {
	var cols, vals strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&cols, ", %s %s", k.name, k.typ)
		fmt.Fprintf(&vals, ", %s", k.value)
	}
	return `CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN short AS text CHECK (length(VALUE) < 5); CREATE TYPE pair AS (a int, b text);
	CREATE TABLE kinds (realm_id text NOT NULL, id bigint NOT NULL` + cols.String() + `, PRIMARY KEY (realm_id, id));
	INSERT INTO kinds SELECT 'r' || g % 20, g` + vals.String() + ` FROM generate_series(0, 99) g;
	CREATE TABLE country (code text PRIMARY KEY, name text);
	INSERT INTO country SELECT 'c' || g, 'Country ' || g FROM generate_series(1, 50) g;
	CREATE TABLE log (realm_id text, line text);
	ALTER TABLE log REPLICA IDENTITY FULL;
	INSERT INTO log SELECT 'r' || g % 20, 'line ' || g / 40 FROM generate_series(0, 399) g;
	CREATE TABLE whole (realm_id text, id uuid PRIMARY KEY, v numeric);
	ALTER TABLE whole REPLICA IDENTITY FULL;
	INSERT INTO whole SELECT 'r' || g % 20, md5(g::text)::uuid, g FROM generate_series(1, 100) g;
	CREATE TABLE parent (realm_id text NOT NULL, id int NOT NULL, slot int, always bigint GENERATED ALWAYS AS IDENTITY, twice int GENERATED ALWAYS AS (slot * 2) STORED, PRIMARY KEY (realm_id, id), UNIQUE (realm_id, slot));
	CREATE TABLE child (realm_id text NOT NULL, id int NOT NULL, parent int, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, parent) REFERENCES parent ON DELETE CASCADE);
	INSERT INTO parent SELECT 'r' || g % 20, g, g FROM generate_series(0, 199) g;
	INSERT INTO child SELECT realm_id, id, id FROM parent;
	CREATE TABLE "Odd ""t" (realm_id text NOT NULL, "a.b" text NOT NULL, "select" int, PRIMARY KEY (realm_id, "a.b"));
	INSERT INTO "Odd ""t" SELECT 'r' || g % 20, 'k''' || g, g FROM generate_series(0, 99) g;
	CREATE TABLE visit (realm_id text NOT NULL, day int NOT NULL, v text, PRIMARY KEY (realm_id, day)) PARTITION BY RANGE (day);
	CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (50);
	CREATE TABLE visit_2 PARTITION OF visit DEFAULT;
	INSERT INTO visit SELECT 'r' || g % 20, g, 'v' FROM generate_series(0, 99) g;
	CREATE TABLE bulk (realm_id text NOT NULL, id int NOT NULL, v text, PRIMARY KEY (realm_id, id));
	INSERT INTO bulk SELECT 'r' || g % 20, g, 'v' || g FROM generate_series(0, 2999) g;
	CREATE TABLE busy (realm_id text NOT NULL, id int NOT NULL, n int NOT NULL DEFAULT 0, PRIMARY KEY (realm_id, id));
	INSERT INTO busy SELECT 'r' || g % 20, g FROM generate_series(0, 199) g;`
}

// breaker makes faults at shards, as somebody does who has the pass.
type breaker struct {
	r     *rig
	conns map[string]*pgx.Conn
}

func newBreaker(r *rig) *breaker {
	b := &breaker{r: r, conns: map[string]*pgx.Conn{}}
	for _, sh := range r.shards {
		c := open(r.t, sh.DSN)
		exec(r.t, c, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
		exec(r.t, c, `SET session_replication_role = replica`)
		b.conns[sh.Name] = c
	}
	return b
}

// at runs SQL, which must hit n rows, at the shard that owns a realm; other gives another shard.
func (b *breaker) at(shard, sql string, n int64) {
	b.r.t.Helper()
	tag, err := b.conns[shard].Exec(b.r.t.Context(), sql)
	if err != nil || tag.RowsAffected() != n {
		b.r.t.Fatalf("%s at %s: %d rows, %v", sql, shard, tag.RowsAffected(), err)
	}
}

func (b *breaker) owner(realm string) string { return b.r.place.ShardOf(realm) }

func (b *breaker) other(realm string) string {
	for _, sh := range b.r.shards {
		if sh.Name != b.owner(realm) {
			return sh.Name
		}
	}
	return ""
}

// writersPause is between two rounds of a writer: enough of them to be in everybody's way, and most of the machine for the rest.
const writersPause = 5 * time.Millisecond

// writers changes rows that no fault concerns, until the test ends or stop is called.
func (r *rig) writers() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for w := range 2 {
		c := open(r.t, r.source)
		wg.Go(func() {
			tick := time.NewTicker(writersPause)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-tick.C
				for _, sql := range []string{
					fmt.Sprintf(`UPDATE busy SET n = n + 1 WHERE id = %d`, (i*7+w)%200),
					fmt.Sprintf(`INSERT INTO log VALUES ('r%d', 'w%d')`, i%20, w),
					fmt.Sprintf(`BEGIN; DELETE FROM child WHERE id = %[1]d; UPDATE parent SET slot = slot + 100000 WHERE id = %[1]d; INSERT INTO child SELECT realm_id, id, id FROM parent WHERE id = %[1]d; COMMIT`, 100+(i*2+w)%100),
				} {
					if _, err := c.Exec(ctx, sql); err != nil && ctx.Err() == nil {
						r.t.Errorf("%s: %v", sql, err)
						return
					}
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(stop)
	return stop
}

// TestRepair injects every fault in rows that there is, wants each found and named, and repaired, while writers write.
func TestRepair(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, shards, tenant.ReplicationOptions{FixIdentity: true, Reference: []string{"country"}}, repairDDL())
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			stop := r.writers()
			want := r.injectAll(newBreaker(r), shards)
			v, err := e.Verify(t.Context(), replicator.VerifyOptions{MaxDiffs: 100})
			if err != nil {
				t.Fatal(err)
			}
			r.named(v, want)
			v, err = e.Verify(t.Context(), replicator.VerifyOptions{Repair: true})
			if err != nil {
				t.Fatal(err)
			}
			if !v.Clean || v.Repair == nil || v.Repair.Left != "" {
				t.Fatalf("after the repair: %+v\n%+v", v, v.Repair)
			}
			t.Logf("repaired in %d rounds: %+v", v.Repair.Rounds, v.Repair.Tables)
			if c := slices.IndexFunc(v.Repair.Tables, func(rt tenant.RepairedTable) bool { return rt.Table == "public.bulk" && rt.Inserted > 500 }); c < 0 {
				t.Errorf("the count of repaired rows is missing: %+v", v.Repair.Tables)
			}
			if slices.ContainsFunc(v.Repair.Tables, func(rt tenant.RepairedTable) bool { return rt.Table == "public.busy" }) {
				t.Errorf("a table without fault was touched: %+v", v.Repair.Tables)
			}
			stop()
			v = r.verifyClean(e)
			if v.FirstLSN != 0 || v.Unfinished != 0 {
				t.Errorf("%+v", v)
			}
			// A fresh look that has nothing to do with the engine's.
			for _, table := range []string{"kinds", "log", "whole", "parent", "child", "visit", "bulk", "busy"} {
				from := scalar[int64](t, r.srcDB, "SELECT count(*) FROM "+table)
				if n := r.total("SELECT count(*) FROM " + table); n != from {
					t.Errorf("%s has %d rows, the source %d", table, n, from)
				}
			}
		})
	}
}

type fault struct {
	table, key, kind, shard, column string
}

// injectAll makes all faults and says how each has to be named.
func (r *rig) injectAll(b *breaker, shards int) (want []fault) {
	for i, k := range kinds {
		realm := fmt.Sprintf("r%d", i%20)
		b.at(b.owner(realm), fmt.Sprintf(`UPDATE kinds SET %s = %s WHERE id = %d`, k.name, k.other, i), 1)
		want = append(want, fault{"public.kinds", fmt.Sprintf("realm_id='%s', id=%d", realm, i), "different", b.owner(realm), k.name})
	}
	last := r.shards[shards-1].Name
	b.at(last, `UPDATE country SET name = 'x' WHERE code = 'c1'`, 1)
	b.at(last, `DELETE FROM country WHERE code = 'c2'`, 1)
	b.at(last, `INSERT INTO country VALUES ('zz', 'z')`, 1)
	want = append(want, fault{"public.country", "code='c1'", "different", last, "name"}, fault{"public.country", "code='c2'", "missing", last, ""}, fault{"public.country", "code='zz'", "extra", last, ""})

	one := b.owner("r3")
	b.at(one, `DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE realm_id = 'r3' AND line = 'line 3')`, 1)
	b.at(one, `INSERT INTO log VALUES ('r3', 'line 4'), ('r3', 'line 4')`, 2)
	b.at(one, `UPDATE log SET line = 'line 5 ' WHERE ctid = (SELECT min(ctid) FROM log WHERE realm_id = 'r3' AND line = 'line 5')`, 1)
	for _, f := range []string{"line 3", "line 4", "line 5", "line 5 "} {
		kind := "missing"
		if f == "line 4" || f == "line 5 " {
			kind = "extra"
		}
		want = append(want, fault{"public.log", `row (r3,"` + f + `")`, kind, one, ""})
	}
	id := scalar[string](r.t, r.srcDB, `SELECT id::text FROM whole WHERE v = 3`)
	b.at(one, `UPDATE whole SET v = 3.0 WHERE v = 3`, 1)
	// Identities that contain the realm name rows by it too.
	want = append(want, fault{"public.whole", "id=" + id, "different", one, "v"})

	// Values of a second unique index: two swapped; one taken by a row that should not be there; one by a row that is right otherwise.
	b.at(one, `UPDATE parent SET slot = -3 WHERE id = 3`, 1)
	b.at(one, `UPDATE parent SET slot = 3 WHERE id = 23`, 1)
	b.at(one, `UPDATE parent SET slot = 23 WHERE id = 3`, 1)
	want = append(want, fault{"public.parent", "realm_id='r3', id=3", "different", one, "slot"}, fault{"public.parent", "realm_id='r3', id=23", "different", one, "slot"})
	b.at(one, `UPDATE parent SET slot = 999 WHERE id = 43`, 1)
	b.at(one, `INSERT INTO parent (realm_id, id, slot) VALUES ('r3', -1, 43)`, 1)
	want = append(want, fault{"public.parent", "realm_id='r3', id=43", "different", one, "slot"}, fault{"public.parent", "realm_id='r3', id=-1", "extra", one, ""})
	b.at(one, `DELETE FROM parent WHERE id = 63`, 1) // its child stays
	b.at(one, `DELETE FROM child WHERE id = 83`, 1)
	want = append(want, fault{"public.parent", "realm_id='r3', id=63", "missing", one, ""}, fault{"public.child", "realm_id='r3', id=83", "missing", one, ""})

	b.at(one, `UPDATE "Odd ""t" SET "select" = NULL WHERE "a.b" = 'k''3'`, 1)
	want = append(want, fault{`public."Odd ""t"`, `realm_id='r3', a.b='k''3'`, "different", one, "select"})
	b.at(one, `DELETE FROM visit WHERE day IN (3, 63)`, 2)
	b.at(one, `UPDATE visit SET day = 77777 WHERE day = 83`, 1)
	for _, f := range []fault{{"", "3", "missing", one, ""}, {"", "63", "missing", one, ""}, {"", "83", "missing", one, ""}, {"", "77777", "extra", one, ""}} {
		f.table, f.key = "public.visit", "realm_id='r3', day="+f.key
		want = append(want, f)
	}
	n := scalar[int64](r.t, b.conns[one], `SELECT count(*) FROM bulk`)
	b.at(one, `DELETE FROM bulk`, n) // far more than are named
	want = append(want, fault{"public.bulk", "", "missing", one, ""})
	if shards > 1 {
		// On a wrong shard instead; on two shards; and one on two shards whose copy differs.
		there, wrong := b.owner("r5"), b.other("r5")
		b.at(there, `DELETE FROM visit WHERE realm_id = 'r5' AND day = 5`, 1)
		b.at(wrong, `INSERT INTO visit VALUES ('r5', 5, 'v'), ('r5', 25, 'v'), ('r5', 45, 'w')`, 3)
		for _, day := range []string{"5", "25", "45"} {
			want = append(want, fault{"public.visit", "realm_id='r5', day=" + day, "misplaced", wrong, ""})
		}
		b.at(wrong, `INSERT INTO log VALUES ('r5', 'line 1')`, 1)
		want = append(want, fault{"public.log", `row (r5,"line 1")`, "misplaced", wrong, ""})
	}
	return want
}

// named checks that every fault is in the result, and nothing is of a table without fault.
func (r *rig) named(v tenant.Verification, want []fault) {
	r.t.Helper()
	if v.Clean {
		r.t.Error("it is called clean")
	}
	var got []fault
	more := map[string]int64{}
	for _, tab := range v.Tables {
		more[tab.Table] = tab.MoreDiffs
		for _, d := range tab.Differences {
			f := fault{table: tab.Table, key: d.Key, kind: d.Kind, shard: d.Shard}
			if d.Kind == "different" && len(d.Columns) > 0 {
				f.column = strings.Join(d.Columns, ",")
			}
			got = append(got, f)
		}
	}
	for _, w := range want {
		ok := slices.ContainsFunc(got, func(g fault) bool {
			return g.table == w.table && g.kind == w.kind && g.shard == w.shard && (w.key == "" || g.key == w.key) && (w.column == "" || strings.HasPrefix(g.column, w.column))
		})
		if !ok && more[w.table] == 0 {
			r.t.Errorf("not named: %+v", w)
		}
	}
	if n := more["public.kinds"]; n != 0 {
		r.t.Errorf("kinds: %d more differ than were broken", n)
	}
	for _, g := range got {
		if g.table != "public.bulk" && !slices.ContainsFunc(want, func(w fault) bool { return w.table == g.table && w.key == g.key }) {
			r.t.Errorf("named without fault: %+v", g)
		}
	}
}

// TestRepairAcrossBatches has values of a unique index on other rows than they should be, more than one barrier repairs: what
// is in the way of one batch belongs to another.
func TestRepairAcrossBatches(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, `CREATE TABLE seat (realm_id text NOT NULL, id int NOT NULL, slot int NOT NULL, PRIMARY KEY (realm_id, id), UNIQUE (realm_id, slot));
		INSERT INTO seat SELECT 'r1', g, g FROM generate_series(0, 2499) g;
		CREATE TABLE other (realm_id text NOT NULL, id int NOT NULL, v text, PRIMARY KEY (realm_id, id));
		CREATE UNIQUE INDEX other_lower ON other (realm_id, lower(v));
		INSERT INTO other VALUES ('r1', 1, 'a'), ('r1', 2, 'b')`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	b := newBreaker(r)
	b.at(b.owner("r1"), `UPDATE seat SET slot = -1 - slot`, 2500)
	b.at(b.owner("r1"), `UPDATE seat SET slot = (-slot) % 2500`, 2500)
	b.at(b.owner("r1"), `UPDATE other SET v = 'c' WHERE id = 1`, 1)
	b.at(b.owner("r1"), `UPDATE other SET v = 'A' WHERE id = 2`, 1)
	b.at(b.owner("r1"), `UPDATE other SET v = 'b' WHERE id = 1`, 1)
	v, err := e.Verify(t.Context(), replicator.VerifyOptions{Repair: true})
	if err != nil || !v.Clean || v.Repair.Left != "" {
		t.Fatalf("%v: %+v %+v", err, v, v.Repair)
	}
	r.verifyClean(e)
}

// TestRepairNeedsTheSchema leaves what only a change of the schema can mend, and says so.
func TestRepairNeedsTheSchema(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	b := newBreaker(r)
	one := b.owner("r7")
	b.at(one, `DELETE FROM items WHERE id = 7`, 1)
	exec(t, b.conns[one], `ALTER TABLE items ADD CHECK (id <> 7) NOT VALID`)
	v, err := e.Verify(t.Context(), replicator.VerifyOptions{Repair: true})
	if err != nil || v.Clean || v.Repair == nil || !strings.Contains(v.Repair.Left, "items") || !strings.Contains(v.Repair.Left, "check constraint") {
		t.Fatalf("%v: %+v %+v", err, v, v.Repair)
	}
	exec(t, b.conns[one], `ALTER TABLE items DROP CONSTRAINT items_id_check`)
	v, err = e.Verify(t.Context(), replicator.VerifyOptions{Repair: true})
	if err != nil || !v.Clean || v.Repair.Rounds != 2 {
		t.Fatalf("%v: %+v %+v", err, v, v.Repair)
	}
	exec(t, r.srcDB, `UPDATE items SET n = 5 WHERE id = 7`) // the stream goes on with the row
	r.verifyClean(e)
}

// TestVerifyGoesOn interrupts a verification and goes on with it at a later position.
func TestVerifyGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL+`CREATE TABLE more (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)); INSERT INTO more VALUES ('r1', 1);
		CREATE TABLE third (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)); INSERT INTO third VALUES ('r1', 1);`)
	e, stop := r.start()
	r.waitPhase(tenant.InSync)
	var parts []verify.Part
	opts := replicator.VerifyOptions{ID: "v1", Jobs: 1, Rest: patience, MaxDuration: 3 * time.Second, OnPart: func(p verify.Part) error {
		parts = append(parts, p)
		return nil
	}}
	v, err := e.Verify(t.Context(), opts)
	var te *tenant.Error
	if !errors.As(err, &te) || te.Code != "verification-timeout" || v.ID != "v1" || v.Clean || v.Unfinished != 2 || len(v.Tables) != 1 || v.Error == "" || len(parts) != 1 {
		t.Fatalf("%v: %+v, parts %+v", err, v, parts)
	}
	stop() // and the server too
	e, _ = r.start()
	exec(t, r.srcDB, `UPDATE items SET n = n + 1`)
	eventually(t, "it streams", func() bool { _, err := e.Verify(t.Context(), replicator.VerifyOptions{}); return err == nil })
	opts.Done, opts.Rest = slices.Clone(parts), 0
	v, err = e.Verify(t.Context(), opts)
	if err != nil || !v.Clean || v.Unfinished != 0 || len(v.Tables) != 3 || v.FirstLSN != parts[0].LSN || v.FirstLSN >= v.LSN || !v.ComparedAt.Equal(parts[0].At) || len(parts) != 3 {
		t.Fatalf("%v: %+v, parts %+v", err, v, parts)
	}
	// What differs is compared again, what was equal is not: it is as old as it says.
	b := newBreaker(r)
	b.at(b.owner("r1"), `DELETE FROM `+strings.TrimPrefix(parts[0].Table, "public.")+` WHERE realm_id = 'r1' AND id = 1`, 1)
	b.at(b.owner("r1"), `DELETE FROM `+strings.TrimPrefix(parts[2].Table, "public.")+` WHERE realm_id = 'r1' AND id = 1`, 1)
	opts.Done = parts[:2:2]
	v, err = e.Verify(t.Context(), opts)
	if err != nil || v.Clean {
		t.Fatalf("%v: %+v", err, v)
	}
	for _, tab := range v.Tables {
		if want := tab.Table != parts[2].Table; tab.Equal != want {
			t.Errorf("%+v", tab)
		}
	}
}
