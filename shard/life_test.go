package shard

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

func TestRealms(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	d := b.create(t, CreateRequest{Name: "realms", RealmKey: "tenant_id"})
	p, err := b.Placement(ctx, d.Name)
	must(t, err)
	for _, s := range d.Shards {
		dsn, err := b.DatabaseDSN(ctx, d.Name, s)
		must(t, err)
		conn := open(t, dsn)
		exec(t, conn, `CREATE TABLE t1 (tenant_id text, v int); CREATE SCHEMA "Odd.Schema"; CREATE TABLE "Odd.Schema"."T""2" ("tenant_id" int) PARTITION BY HASH (tenant_id);
			CREATE TABLE "Odd.Schema".p0 PARTITION OF "Odd.Schema"."T""2" FOR VALUES WITH (MODULUS 1, REMAINDER 0);
			CREATE TABLE other (org uuid, v int); CREATE TABLE reference (code text); CREATE TABLE rehome.x (tenant_id text); INSERT INTO rehome.x VALUES ('not me')`)
		for realm, n := range map[string]int{"1": 5, "2": 7, "3": 1, "4": 2} {
			if p.ShardOf(realm) == s {
				exec(t, conn, `INSERT INTO t1 SELECT $1, g FROM generate_series(1, $2) g`, realm, n)
				exec(t, conn, `INSERT INTO "Odd.Schema"."T""2" SELECT $1::text::int FROM generate_series(1, $2)`, realm, n)
			}
		}
		exec(t, conn, `INSERT INTO t1 VALUES (NULL, 1)`)
		if s == "a" {
			exec(t, conn, `INSERT INTO other SELECT '6f1c1b0e-4b7d-4e1c-9f6a-0d6c5f0f2f11', g FROM generate_series(1, 100) g`)
		}
	}
	got, err := b.Realms(ctx, d.Name, RealmQuery{TableKeys: map[string]string{"other": "org"}})
	must(t, err)
	want := []Realm{{Realm: "6f1c1b0e-4b7d-4e1c-9f6a-0d6c5f0f2f11", Rows: 100, Shard: "a"}, {Realm: "2", Rows: 14}, {Realm: "1", Rows: 10}, {Realm: "4", Rows: 4}, {Realm: "3", Rows: 2}}
	for i := range want {
		want[i].Bucket = tenant.Bucket(want[i].Realm)
		if want[i].Shard == "" {
			want[i].Shard = p.ShardOf(want[i].Realm)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = b.Realms(ctx, d.Name, RealmQuery{Sort: ByName, Limit: 2, TableKeys: map[string]string{`"Odd.Schema"."T""2"`: ""}})
	must(t, err)
	if len(got) != 2 || got[0].Realm != "1" || got[0].Rows != 5 || got[1].Realm != "2" {
		t.Errorf("%+v", got)
	}
	got, err = b.Realms(ctx, d.Name, RealmQuery{Shard: p.ShardOf("2")})
	must(t, err)
	for _, r := range got {
		if r.Shard != p.ShardOf("2") {
			t.Errorf("%+v", r)
		}
	}
	_, err = b.Realms(ctx, d.Name, RealmQuery{Sort: "color"})
	wants(t, err, tenant.KindInvalid, "bad-sort")
	_, err = b.Realms(ctx, d.Name, RealmQuery{Shard: "zz"})
	wants(t, err, tenant.KindNotFound, "database-not-on-shard")
}

func TestDeleteUndeletePurgeSharded(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	d := b.create(t, CreateRequest{Name: "dying"})
	_, err := b.Purge(ctx, d.Name, PurgeOptions{Early: true})
	wants(t, err, tenant.KindConflict, "database-wrong-state")

	exec2 := func(sql string) { _, err := b.pool.Exec(ctx, sql); must(t, err) }
	exec2(`INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch)
		VALUES ('r1', 'dying', '', '', '', '{}', '{}', 'in_sync', '', '', 1)`)
	_, err = b.SoftDelete(ctx, d.Name, time.Hour)
	wants(t, err, tenant.KindRefused, "replication-active")
	exec2(`UPDATE rehome_control.replications SET phase = 'completed'`)

	for range 2 {
		d, err = b.BeginDelete(ctx, d.Name)
		must(t, err)
	}
	if d.State != Deleting {
		t.Errorf("%+v", d)
	}
	d, err = b.Undelete(ctx, d.Name)
	must(t, err)
	if d.State != Active {
		t.Errorf("%+v", d)
	}
	d, err = b.SoftDelete(ctx, d.Name, 30*24*time.Hour)
	must(t, err)
	if d.State != Deleted || !d.PurgeAfter.Equal(b.now.Add(30*24*time.Hour)) || !d.DeletedAt.Equal(b.now) {
		t.Errorf("%+v", d)
	}
	b.now = b.now.Add(29 * 24 * time.Hour)
	again, err := b.SoftDelete(ctx, d.Name, 30*24*time.Hour)
	must(t, err)
	if !again.PurgeAfter.Equal(*d.PurgeAfter) {
		t.Error("deleting again lengthened the grace")
	}
	due, err := b.DuePurges(ctx)
	must(t, err)
	if len(due) != 0 {
		t.Error(due)
	}
	_, err = b.Purge(ctx, d.Name, PurgeOptions{})
	wants(t, err, tenant.KindConflict, "database-wrong-state")
	b.now = b.now.Add(2 * 24 * time.Hour)
	due, err = b.DuePurges(ctx)
	must(t, err)
	if diff := cmp.Diff([]string{"dying"}, due); diff != "" {
		t.Error(diff)
	}

	// A leftover session and a slot of ours do not keep it alive; a slot of somebody else's does.
	dsn, err := b.DatabaseDSN(ctx, d.Name, "a")
	must(t, err)
	leftover := open(t, dsn)
	exec(t, leftover, `SELECT pg_create_logical_replication_slot('rehome_left', 'pgoutput')`)
	exec(t, leftover, `SELECT pg_create_logical_replication_slot('others', 'pgoutput')`)
	_, err = b.Purge(ctx, d.Name, PurgeOptions{})
	wants(t, err, tenant.KindRefused, "foreign-slot")
	exec(t, leftover, `SELECT pg_drop_replication_slot('others')`)
	exec(t, leftover, `BEGIN`)
	res, err := b.Purge(ctx, d.Name, PurgeOptions{})
	must(t, err)
	if len(res.Dropped) == 0 || len(res.Left) != 0 {
		t.Errorf("%+v", res)
	}
	for _, c := range []*pgcluster.Cluster{cluster, cluster2} {
		if query[int](t, open(t, c.DSN("postgres")), `SELECT count(*) FROM pg_database WHERE datname = 'dying'`) != 0 {
			t.Error("still there")
		}
	}
	_, err = b.Purge(ctx, d.Name, PurgeOptions{})
	must(t, err)
	_, err = b.Undelete(ctx, d.Name)
	wants(t, err, tenant.KindConflict, "database-wrong-state")

	// The name is free again once its tombstone is.
	exec2(`INSERT INTO rehome_control.redirects (database, target_url, mode) VALUES ('dying', 'https://new.example/dying', 'redirect')`)
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "dying"})
	wants(t, err, tenant.KindRefused, "name-redirects")
	exec2(`DELETE FROM rehome_control.redirects`)
	d, err = b.CreateDatabase(ctx, CreateRequest{Name: "dying"})
	must(t, err)
	if d.State != Active || d.PurgeAfter != nil {
		t.Errorf("%+v", d)
	}
}

// A purge that died in the middle is due, cannot be undeleted, and is finished by the next one.
func TestPurgeResumes(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	b.create(t, CreateRequest{Name: "halfpurged"})
	_, err := b.SoftDelete(ctx, "halfpurged", 0)
	must(t, err)
	_, err = b.pool.Exec(ctx, `UPDATE rehome_control.databases SET state = 'purged'`)
	must(t, err)
	_, err = b.dropOn(ctx, "a", "halfpurged")
	must(t, err)
	_, err = b.Undelete(ctx, "halfpurged")
	wants(t, err, tenant.KindConflict, "database-wrong-state")
	_, err = b.CreateDatabase(ctx, CreateRequest{Name: "halfpurged"})
	wants(t, err, tenant.KindConflict, "database-exists")
	due, err := b.DuePurges(ctx)
	must(t, err)
	if len(due) != 1 {
		t.Fatal(due)
	}
	res, err := b.Purge(ctx, "halfpurged", PurgeOptions{})
	must(t, err)
	if diff := cmp.Diff([]string{"b"}, res.Dropped); diff != "" {
		t.Error(diff)
	}
	d, err := b.Database(ctx, "halfpurged")
	must(t, err)
	if !d.Gone() || len(d.Shards) != 0 {
		t.Errorf("%+v", d)
	}
}

func TestAdoptAndPurge(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	b.dropLater(t, "hosted")
	admin := open(t, cluster2.DSN("postgres"))
	exec(t, admin, `CREATE DATABASE hosted`)
	conn := open(t, cluster2.DSN("hosted"))
	exec(t, conn, `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent); CREATE TABLE fenced (id int);
		INSERT INTO parent SELECT generate_series(1, 2500); INSERT INTO child SELECT generate_series(1, 2500); INSERT INTO fenced SELECT generate_series(1, 10);
		CREATE SCHEMA rehome; CREATE FUNCTION rehome.fence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'database has moved' USING ERRCODE = 'RH001'; END $$;
		CREATE TRIGGER rehome_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON fenced EXECUTE FUNCTION rehome.fence(); ALTER TABLE fenced ENABLE ALWAYS TRIGGER rehome_fence`)
	d, err := b.AdoptDatabase(ctx, AdoptRequest{Name: "acme", DSN: cluster2.DSN("hosted"), Owner: "o@example.com"})
	must(t, err)
	if d.Kind != KindAdopted || d.SystemID == "" || strings.Contains(d.Address, "@"+"127") && strings.Contains(d.Address, ":"+"rehome_admin") {
		t.Errorf("%+v", d)
	}
	dsn, err := b.AdoptedDSN(ctx, "acme")
	must(t, err)
	if dsn != cluster2.DSN("hosted") {
		t.Error("another connection string")
	}
	_, err = b.AdoptDatabase(ctx, AdoptRequest{Name: "acme", DSN: cluster2.DSN("postgres")})
	wants(t, err, tenant.KindConflict, "database-exists")
	_, err = b.AdoptDatabase(ctx, AdoptRequest{Name: "acme2", DSN: cluster2.DSN("hosted")})
	wants(t, err, tenant.KindConflict, "database-adopted-already")
	_, err = b.AdoptDatabase(ctx, AdoptRequest{Name: "acme2", DSN: tenant.DSN(b.pool.Config().ConnString())})
	wants(t, err, tenant.KindRefused, "control-database")
	_, err = b.AdoptDatabase(ctx, AdoptRequest{Name: "acme2", DSN: cluster2.DSN("nothing")})
	wants(t, err, tenant.KindUnavailable, codeNoDatabase)
	_, err = b.Placement(ctx, "acme")
	wants(t, err, tenant.KindConflict, "database-not-sharded")
	list, err := b.Databases(ctx)
	must(t, err)
	must(t, b.MeasureDatabases(ctx, list))
	if list[0].Bytes <= 0 {
		t.Errorf("%+v", list)
	}

	_, err = b.SoftDelete(ctx, "acme", 0)
	must(t, err)
	res, err := b.Purge(ctx, "acme", PurgeOptions{BatchRows: 1000, Pause: time.Millisecond})
	must(t, err)
	if res.RowsDeleted != 5000 || len(res.Dropped) != 1 || len(res.Left) != 0 {
		t.Errorf("%+v", res)
	}
	if query[int](t, admin, `SELECT count(*) FROM pg_database WHERE datname = 'hosted'`) != 0 {
		t.Error("still there")
	}
	_, err = b.AdoptedDSN(ctx, "acme")
	wants(t, err, tenant.KindConflict, "database-not-adopted")
}

// A role that may not drop the database leaves it empty and says so; another role's table stays, named.
func TestPurgeAdoptedWithoutPrivileges(t *testing.T) {
	b := setup(t)
	ctx := t.Context()
	admin := open(t, cluster.DSN("postgres"))
	exec(t, admin, `CREATE ROLE guest_owner LOGIN PASSWORD 'guest'`)
	exec(t, admin, `CREATE DATABASE guest`)
	t.Cleanup(func() {
		dropRole(t, "guest_owner", "guest")
	})
	conn := open(t, cluster.DSN("guest"))
	exec(t, conn, `CREATE TABLE others (id int); GRANT ALL ON SCHEMA public TO guest_owner; SET ROLE guest_owner; CREATE TABLE mine (id int); INSERT INTO mine VALUES (1)`)
	must(t, conn.Close(ctx))
	_, err := b.AdoptDatabase(ctx, AdoptRequest{Name: "guest", DSN: cluster.DSNAs("guest_owner", "guest", "guest")})
	must(t, err)
	_, err = b.SoftDelete(ctx, "guest", 0)
	must(t, err)
	res, err := b.Purge(ctx, "guest", PurgeOptions{})
	must(t, err)
	if len(res.Dropped) != 0 || res.RowsDeleted != 1 || len(res.Left) != 2 {
		t.Errorf("%+v", res)
	}
	if query[bool](t, open(t, cluster.DSN("guest")), `SELECT to_regclass('mine') IS NOT NULL`) {
		t.Error("the owner's table is still there")
	}
}
