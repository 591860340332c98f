package shard

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

func TestAddShardChecksTheServer(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	admin := open(t, cluster.DSN("postgres"))
	exec(t, admin, `CREATE ROLE weak LOGIN PASSWORD 'weak-secret'`)
	t.Cleanup(func() { dropRole(t, "weak") })

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := silent.Addr().String()
	must(t, silent.Close())

	for name, tc := range map[string]struct {
		req  AddRequest
		kind tenant.Kind
		code string
	}{
		"name":        {AddRequest{Name: "Bad Name", DSN: cluster.DSN("postgres")}, tenant.KindInvalid, "bad-shard-name"},
		"weight":      {AddRequest{Name: "c", DSN: cluster.DSN("postgres"), Weight: -1}, tenant.KindInvalid, "bad-weight"},
		"exists":      {AddRequest{Name: "a", DSN: cluster.DSN("postgres")}, tenant.KindConflict, "shard-exists"},
		"twin":        {AddRequest{Name: "c", DSN: cluster.DSN("template1")}, tenant.KindRefused, "shard-added-already"},
		"syntax":      {AddRequest{Name: "c", DSN: "postgres://u:topsecret@host:bad/x"}, tenant.KindInvalid, "bad-dsn"},
		"empty":       {AddRequest{Name: "c"}, tenant.KindInvalid, "bad-dsn"},
		"closed":      {AddRequest{Name: "c", DSN: tenant.DSN("postgres://u:topsecret@" + closed + "/x")}, tenant.KindUnavailable, "postgres-unreachable"},
		"unknown":     {AddRequest{Name: "c", DSN: "postgres://u:topsecret@no-such-host.invalid/x"}, tenant.KindUnavailable, "postgres-unreachable"},
		"password":    {AddRequest{Name: "c", DSN: cluster.DSNAs("weak", "topsecret", "postgres")}, tenant.KindUnavailable, "postgres-unreachable"},
		"no database": {AddRequest{Name: "c", DSN: cluster.DSN("nothing")}, tenant.KindUnavailable, codeNoDatabase},
		"privilege":   {AddRequest{Name: "c", DSN: cluster.DSNAs("weak", "weak-secret", "postgres")}, tenant.KindRefused, "may-not-create-database"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.AddShard(ctx, tc.req)
			e := wanted(t, err, tc.kind, tc.code)
			if e.Hint == "" {
				t.Error("no hint")
			}
			for _, secret := range []string{"topsecret", "weak-secret"} {
				if strings.Contains(err.Error()+e.Hint+b.logs.String(), secret) {
					t.Errorf("the password is in %q", err)
				}
			}
		})
	}
}

func TestShardLifecycle(t *testing.T) {
	b := setup(t).withShards(t)
	ctx := t.Context()
	d := b.create(t, CreateRequest{Name: "lifecycle"})
	list, err := b.Shards(ctx)
	must(t, err)
	buckets := 0
	for _, s := range list {
		if !s.Reachable || s.Bytes <= 0 || len(s.Databases) != 1 || s.Version < minVersion || strings.Contains(s.Address, ":"+"secret") {
			t.Errorf("%+v", s)
		}
		buckets += s.Buckets
	}
	if buckets != tenant.Buckets {
		t.Errorf("%d buckets over all shards", buckets)
	}
	if err := b.RemoveShard(ctx, "a"); !strings.Contains(wanted(t, err, tenant.KindRefused, "shard-in-use").Message, d.Name) {
		t.Error(err)
	}
	wants(t, b.RemoveShard(ctx, "nope"), tenant.KindNotFound, "shard-unknown")

	// Another server may not take the place of one that holds databases.
	third := pgcluster.StartT(t, pgcluster.Options{})
	dsn := third.DSN("postgres")
	_, err = b.UpdateShard(ctx, "a", ShardUpdate{DSN: &dsn})
	wants(t, err, tenant.KindRefused, "another-server")
	weight, zone, no := 7, "north", false
	s, err := b.UpdateShard(ctx, "a", ShardUpdate{Weight: &weight, Zone: &zone, Accepting: &no})
	must(t, err)
	if s.Weight != 7 || s.Zone != "north" || s.Accepting {
		t.Errorf("%+v", s)
	}
	got, err := b.ShardDSN(ctx, "a")
	must(t, err)
	if got != cluster.DSN("postgres") {
		t.Error("the stored connection string is another")
	}

	// An ordinal is never used again; an unreachable shard is listed in time.
	_, err = b.AddShard(ctx, AddRequest{Name: "c", DSN: dsn})
	must(t, err)
	must(t, b.RemoveShard(ctx, "c"))
	c, err := b.AddShard(ctx, AddRequest{Name: "c", DSN: dsn})
	must(t, err)
	if c.Ordinal != 3 {
		t.Errorf("ordinal %d", c.Ordinal)
	}
	must(t, third.Stop(ctx))
	began := time.Now()
	list, err = b.Shards(ctx)
	must(t, err)
	if list[2].Reachable || list[2].Error == "" || list[2].Bytes != -1 || !list[0].Reachable {
		t.Errorf("%+v", list)
	}
	if took := time.Since(began); took > 2*probeTimeout {
		t.Errorf("the list took %s", took)
	}
}

// TestTwinOutOfReach: a cluster that was copied from a shard's is told apart from it only while both can be reached. Where the
// shard cannot, nobody says that they are one.
func TestTwinOutOfReach(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.AddShard(t.Context(), AddRequest{Name: "a", DSN: cluster.DSN("postgres")})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	away := "postgres://nobody@" + l.Addr().String() + "/postgres"
	must(t, l.Close())
	_, err = b.pool.Exec(t.Context(), `UPDATE rehome_control.shards SET dsn_sealed = $1 WHERE name = 'a'`, b.box.Seal(sealShard, away))
	must(t, err)
	_, err = b.AddShard(t.Context(), AddRequest{Name: "b", DSN: cluster.DSN("postgres")})
	if e := wanted(t, err, tenant.KindUnavailable, "shards-not-told-apart"); !strings.Contains(e.Message, `shard "a"`) {
		t.Error(e)
	}
}
