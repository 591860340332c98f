package shard

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

func TestCreateDatabase(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	d := b.create(t, CreateRequest{Name: "created", Owner: "o@example.com", Upstream: "http://app:3000"})
	if d.State != Active || d.Kind != KindSharded || d.RealmKey != DefaultRealmKey || d.PlacementEpoch != 1 || d.Creating() {
		t.Errorf("%+v", d)
	}
	p, err := b.Placement(ctx, d.Name)
	must(t, err)
	ordinals, err := b.ShardOrdinals(ctx, d.Name)
	must(t, err)
	if len(ordinals) != 2 || p.Home != "b" {
		t.Errorf("%v %+v", ordinals, p)
	}
	for i, n := range map[string]int{"a": 4096, "b": 12288} {
		for _, r := range p.Ranges {
			if r.Shard == i && r.To-r.From+1 != n {
				t.Errorf("%+v", r)
			}
		}
	}
	// What the shards believe to own is what the placement says.
	for _, s := range d.Shards {
		dsn, err := b.DatabaseDSN(ctx, d.Name, s)
		must(t, err)
		conn := open(t, dsn)
		if enc := query[string](t, conn, `SHOW server_encoding`); enc != "UTF8" {
			t.Errorf("encoding %s", enc)
		}
		exec(t, conn, `INSERT INTO rehome.pinned VALUES ('pin-here', true, 1), ('pin-away', false, 1)`)
		for i := range 300 {
			realm := fmt.Sprintf("realm-%d", i)
			if got := query[bool](t, conn, `SELECT rehome.owns($1)`, realm); got != (p.ShardOf(realm) == s) {
				t.Errorf("shard %s owns(%s) = %v", s, realm, got)
			}
		}
		if !query[bool](t, conn, `SELECT rehome.owns('pin-here')`) || query[bool](t, conn, `SELECT rehome.owns('pin-away')`) {
			t.Error("pins are not obeyed")
		}
		must(t, Provision(ctx, conn)) // again: no error
		// An older or equal epoch changes nothing, a newer one does.
		must(t, ApplyPlacement(ctx, conn, p, s))
		if n := query[int](t, conn, `SELECT count(*) FROM rehome.pinned`); n != 2 {
			t.Errorf("%d pins after the same epoch", n)
		}
		next := p
		next.Epoch, next.Pins = 2, map[string]string{"x": s}
		must(t, ApplyPlacement(ctx, conn, next, s))
		if n := query[int](t, conn, `SELECT count(*) FROM rehome.pinned WHERE here AND epoch = 2`); n != 1 {
			t.Errorf("%d pins after the next epoch", n)
		}
		// Any role may ask, with any search_path.
		exec(t, conn, `SET search_path = ''; CREATE ROLE asker_`+s+`; SET ROLE asker_`+s)
		_ = query[bool](t, conn, `SELECT rehome.owns('pin-here')`)
		exec(t, conn, `RESET ROLE; DROP ROLE asker_`+s)
	}
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: d.Name})
	wants(t, err, tenant.KindConflict, "database-exists")
}

func TestBucketInSQLIsBucketInGo(t *testing.T) {
	b := setup(t).withShards(t)
	d := b.create(t, CreateRequest{Name: "buckets", Shards: []string{"a"}})
	dsn, err := b.DatabaseDSN(t.Context(), d.Name, "a")
	must(t, err)
	conn := open(t, dsn)
	realms := []string{"", " ", "0", "-1", "42", "9223372036854775807", "Ünïcödé", "日本語", "🐘🐘", "a\nb", `quo"te'\`, "e\u0301", "é", strings.Repeat("long", 5000), "6f1c1b0e-4b7d-4e1c-9f6a-0d6c5f0f2f11"}
	for i := range 3000 {
		realms = append(realms, fmt.Sprint(i*7919), fmt.Sprintf("r%d-%c", i, rune(0x100+i)))
	}
	rows, err := conn.Query(t.Context(), `SELECT rehome.bucket(r) FROM unnest($1::text[]) WITH ORDINALITY AS u(r, n) ORDER BY n`, realms)
	must(t, err)
	i := 0
	for rows.Next() {
		var got int
		must(t, rows.Scan(&got))
		if want := tenant.Bucket(realms[i]); got != want {
			t.Errorf("bucket(%q) = %d in SQL, %d in Go", realms[i], got, want)
		}
		i++
	}
	must(t, rows.Err())
	if i != len(realms) {
		t.Errorf("%d of %d", i, len(realms))
	}
	if query[*int](t, conn, `SELECT rehome.bucket(NULL)`) != nil {
		t.Error("a bucket for NULL")
	}
}

func TestCreateRefuses(t *testing.T) {
	b := setup(t)
	ctx := t.Context()
	_, err := b.CreateDatabase(ctx, CreateRequest{Name: "none"})
	wants(t, err, tenant.KindRefused, "no-shards")
	b.withShards(t)
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "Bad"})
	wants(t, err, tenant.KindInvalid, "bad-database-name")
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "upstream", Upstream: "ftp://x"})
	wants(t, err, tenant.KindInvalid, "bad-upstream")
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "x", Shards: []string{"nope"}})
	wants(t, err, tenant.KindNotFound, "shard-unknown")
	no := false
	_, err = b.UpdateShard(ctx, "a", ShardUpdate{Accepting: &no})
	must(t, err)
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "x", Shards: []string{"a", "b"}})
	wants(t, err, tenant.KindRefused, "shard-not-accepting")
	d := b.create(t, CreateRequest{Name: "onlyb"})
	if diff := cmp.Diff([]string{"b"}, d.Shards); diff != "" {
		t.Error(diff)
	}
}

// A database of that name that is somebody else's stays as it is, and nothing of the attempt is left anywhere.
func TestCreateLeavesForeignDatabasesAlone(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	b.dropLater(t, "foreign")
	onB := open(t, cluster2.DSN("postgres"))
	exec(t, onB, `CREATE DATABASE "foreign"`)
	_, err := b.CreateDatabase(ctx, CreateRequest{Name: "foreign"})
	wants(t, err, tenant.KindRefused, "database-on-shard")
	_, err = b.Database(ctx, "foreign")
	wants(t, err, tenant.KindNotFound, "database-unknown")

	// The same when it appears in the middle: recorded, made on a, then taken on b.
	exec(t, onB, `ALTER DATABASE "foreign" RENAME TO "foreign_away"`)
	t.Cleanup(func() { b.dropLater(t, "foreign_away") })
	d, err := b.beginCreate(ctx, CreateRequest{Name: "foreign", RealmKey: "k"})
	must(t, err)
	if !d.Creating() {
		t.Error("served before it is complete")
	}
	_, err = b.Placement(ctx, "foreign")
	wants(t, err, tenant.KindConflict, "database-being-created")
	exec(t, onB, `ALTER DATABASE "foreign_away" RENAME TO "foreign"`)
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "foreign"})
	wants(t, err, tenant.KindRefused, "database-on-shard")
	_, err = b.Database(ctx, "foreign")
	wants(t, err, tenant.KindNotFound, "database-unknown")
	if n := query[int](t, open(t, cluster.DSN("postgres")), `SELECT count(*) FROM pg_database WHERE datname IN ('foreign', $1)`, "rehome_new_"+b.ourID("foreign")); n != 0 {
		t.Errorf("%d databases left on shard a", n)
	}
	if n := query[int](t, onB, `SELECT count(*) FROM pg_database WHERE datname = 'foreign'`); n != 1 {
		t.Error("the foreign database is gone")
	}
}

// Whatever step a creation died at, the next attempt finishes it.
func TestCreateResumes(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	for i, crash := range []func(t *testing.T, d Database){
		func(*testing.T, Database) {}, // after the rows
		func(t *testing.T, d Database) { // in the middle of a private database
			conn := open(t, cluster.DSN("postgres"))
			exec(t, conn, `CREATE DATABASE `+tenant.QuoteIdent("rehome_new_"+b.ourID(d.Name)))
		},
		func(t *testing.T, d Database) { // one shard complete
			var raw tenant.Placement
			must(t, b.pool.QueryRow(ctx, `SELECT placement FROM rehome_control.placements WHERE database = $1`, d.Name).Scan(&raw))
			must(t, b.buildOn(ctx, "a", CreateRequest{Name: d.Name}, raw))
		},
		func(t *testing.T, d Database) { // all shards complete, the placement not in force
			var raw tenant.Placement
			must(t, b.pool.QueryRow(ctx, `SELECT placement FROM rehome_control.placements WHERE database = $1`, d.Name).Scan(&raw))
			for _, s := range d.Shards {
				must(t, b.buildOn(ctx, s, CreateRequest{Name: d.Name}, raw))
			}
		},
	} {
		name := fmt.Sprintf("resumed%d", i)
		b.dropLater(t, name)
		d, err := b.beginCreate(ctx, CreateRequest{Name: name, RealmKey: "k"})
		must(t, err)
		crash(t, d)
		_, err = b.CreateDatabase(ctx, CreateRequest{Name: name, Shards: []string{"a"}})
		wants(t, err, tenant.KindConflict, "database-being-created")
		d, err = b.CreateDatabase(ctx, CreateRequest{Name: name})
		must(t, err)
		if d.Creating() || d.RealmKey != "k" {
			t.Errorf("%+v", d)
		}
		for _, s := range d.Shards {
			dsn, err := b.DatabaseDSN(ctx, name, s)
			must(t, err)
			if n := query[int](t, open(t, dsn), `SELECT count(*) FROM rehome.owned`); n != 1 {
				t.Errorf("shard %s owns %d ranges", s, n)
			}
		}
	}
}

// Two servers asked at once: one creates, the other finds it.
func TestCreateAtOnce(t *testing.T) {
	b := setup(t).withShards(t)
	b.dropLater(t, "atonce")
	var g errgroup.Group
	errs := make([]error, 4)
	for i := range errs {
		g.Go(func() error {
			_, errs[i] = b.CreateDatabase(t.Context(), CreateRequest{Name: "atonce"})
			return nil
		})
	}
	_ = g.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
			continue
		}
		wants(t, err, tenant.KindConflict, "database-exists")
	}
	if made != 1 {
		t.Errorf("%d creations succeeded: %v", made, errs)
	}
}

func TestDatabasesListAndSizes(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	b.create(t, CreateRequest{Name: "listed"})
	list, err := b.Databases(ctx)
	must(t, err)
	if len(list) != 1 || list[0].Bytes != -1 || !slices.Equal(list[0].Shards, shardOrder(t, b)) {
		t.Fatalf("%+v", list)
	}
	must(t, b.MeasureDatabases(ctx, list))
	if list[0].Bytes < 1<<20 {
		t.Errorf("%d bytes", list[0].Bytes)
	}
	stop, up := Stopped, "https://app.example"
	d, err := b.UpdateDatabase(ctx, "listed", Update{State: &stop, Upstream: &up})
	must(t, err)
	if d.State != Stopped || d.Upstream != up {
		t.Errorf("%+v", d)
	}
	bad := "gone"
	_, err = b.UpdateDatabase(ctx, "listed", Update{State: &bad})
	wants(t, err, tenant.KindInvalid, "bad-database-state")
	_, err = b.DatabaseDSN(ctx, "listed", "zz")
	wants(t, err, tenant.KindNotFound, "database-not-on-shard")
	_, err = b.AdoptedDSN(ctx, "listed")
	wants(t, err, tenant.KindConflict, "database-not-adopted")
}

func shardOrder(t *testing.T, b *bundle) []string {
	t.Helper()
	list, err := b.listShards(t.Context(), "")
	must(t, err)
	var out []string
	for _, s := range list {
		out = append(out, s.Name)
	}
	return out
}
