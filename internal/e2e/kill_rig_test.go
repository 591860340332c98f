package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// killRig is an installation of three servers, a source, two shards and a control database, each in a process of its own,
// under a witness. Source and shards are reached through relays that can be late with a message.
type killRig struct {
	t          *testing.T
	dir        string
	secret     string
	key        ed25519.PrivateKey
	box        *seal.Box
	control    *pgcluster.Cluster
	controlDSN tenant.DSN
	pool       *pgxpool.Pool
	cat        *shard.Catalogue
	source     *pgcluster.Cluster
	shards     []*pgcluster.Cluster
	relays     map[string]*torture.Relay // "source", "s1", "s2"
	through    map[string]tenant.DSN     // any database of them, through the relay
	servers    map[string]*killServer
	world      *killWorld
	worlds     int
}

// killWorld is a database that is moved, with its witness.
type killWorld struct {
	id, name string
	witness  *torture.Witness
	target   bool // the recorded side
	stop     func()
}

var killServers = []string{"a", "b", "c"}

func newKillRig(t *testing.T) *killRig {
	t.Helper()
	dir, err := os.MkdirTemp("", "rehome-kill-") //nolint:usetesting // it outlives a test that fails
	if err != nil {
		t.Fatal(err)
	}
	r := &killRig{t: t, dir: dir, secret: strings.Repeat("k", seal.MinSecret), relays: map[string]*torture.Relay{}, through: map[string]tenant.DSN{}, servers: map[string]*killServer{}}
	t.Cleanup(func() {
		for _, s := range r.servers {
			s.kill()
		}
		if t.Failed() {
			t.Logf("the servers' logs are in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	settings := map[string]string{"max_connections": "150", "max_replication_slots": "60", "max_wal_senders": "60", "shared_buffers": "32MB"}
	start := func() *pgcluster.Cluster { return pgcluster.StartT(t, pgcluster.Options{Settings: settings}) }
	r.control, r.source, r.shards = start(), start(), []*pgcluster.Cluster{start(), start()}
	ctx := t.Context()
	r.must(func() error {
		c, err := pgx.Connect(ctx, r.control.DSN("postgres").Reveal())
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		_, err = c.Exec(ctx, `CREATE DATABASE control`)
		return err
	}())
	r.controlDSN = r.control.DSN("control")
	cfg, err := pgx.ParseConfig(r.controlDSN.Reveal())
	r.must(err)
	_, err = migrations.Up(ctx, cfg)
	r.must(err)
	r.pool, err = pgxpool.New(ctx, r.controlDSN.Reveal())
	r.must(err)
	t.Cleanup(r.pool.Close)
	r.box, err = seal.New(tenant.Secret(r.secret))
	r.must(err)
	_, r.key, err = ed25519.GenerateKey(nil)
	r.must(err)
	r.cat = shard.New(r.pool, r.box, slog.New(slog.DiscardHandler))
	for name, c := range map[string]*pgcluster.Cluster{torture.AtSource: r.source, "s1": r.shards[0], "s2": r.shards[1]} {
		relay, dsn, err := torture.NewRelay(c.DSN("postgres"))
		r.must(err)
		t.Cleanup(relay.Close)
		r.relays[name], r.through[name] = relay, dsn
		if name != torture.AtSource {
			_, err = r.cat.AddShard(ctx, shard.AddRequest{Name: name, DSN: dsn, Weight: 100})
			r.must(err)
		}
	}
	for _, name := range killServers {
		r.servers[name] = r.startServer(name)
	}
	return r
}

func (r *killRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// newWorld makes a database with a replication and waits until it may be cut over.
func (r *killRig) newWorld() {
	r.t.Helper()
	ctx := r.t.Context()
	r.worlds++
	w := &killWorld{id: "t" + strings.ToLower(rand.Text()[:11]), name: fmt.Sprint("acme", r.worlds)}
	_, err := r.cat.CreateDatabase(ctx, shard.CreateRequest{Name: w.name, Owner: "owner@example.org"})
	r.must(err)
	src := pgcluster.NewDatabase(r.t, r.source)
	conn := open(r.t, src)
	execSQL(r.t, conn, torture.WitnessSQL)
	_ = conn.Close(ctx)
	state, err := json.Marshal(tenant.State{Phase: tenant.Created})
	r.must(err)
	options, err := json.Marshal(tenant.ReplicationOptions{Accept: []string{"fsync-off:source", "fsync-off:shard s1", "fsync-off:shard s2"}})
	r.must(err)
	relayed := through(r.t, r.through[torture.AtSource], src)
	_, err = r.pool.Exec(ctx, `INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch)
		VALUES ($1, $2, $3, $4, 'https://own.example/acme', $5, $6, $7, $8, $8, 1)`,
		w.id, w.name, r.box.Seal("source-dsn", relayed.Reveal()), relayed.String(), options, state, string(tenant.Created), "rehome_"+w.id)
	r.must(err)
	r.world = w
	r.wake()
	r.waitFor(tenant.InSync)
	placement, err := r.cat.Placement(ctx, w.name)
	r.must(err)
	w.witness = torture.NewWitness(src, map[string]tenant.DSN{"s1": r.shards[0].DSN(w.name), "s2": r.shards[1].DSN(w.name)}, placement.ShardOf, 12*time.Millisecond)
	wctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.witness.Run(wctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		w.stop = func() {}
	}
	r.t.Cleanup(func() { w.stop() })
}

// through is a database as a relay reaches it.
func through(t *testing.T, relay, dsn tenant.DSN) tenant.DSN {
	t.Helper()
	a, err := pgx.ParseConfig(relay.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	b, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	from, to := fmt.Sprintf("%s:%d", b.Host, b.Port), fmt.Sprintf("%s:%d", a.Host, a.Port)
	return tenant.DSN(strings.Replace(dsn.Reveal(), from, to, 1))
}

// db does something in the control database, however often it is killed meanwhile.
func (r *killRig) db(what string, do func(ctx context.Context) error) {
	r.t.Helper()
	var err error
	eventually(r.t, what, func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
		defer cancel()
		err = do(ctx)
		if err != nil && errors.Is(err, pgx.ErrNoRows) {
			r.t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	})
}

// wake makes all servers look at once.
func (r *killRig) wake() {
	_, _ = r.pool.Exec(r.t.Context(), `SELECT pg_notify('rehome_commands', $1)`, r.world.id)
}

func (r *killRig) ask(kind string, args api.CommandArgs) string {
	r.t.Helper()
	id := strings.ToLower(rand.Text()[:12])
	raw, err := json.Marshal(args)
	r.must(err)
	r.db("ask for "+kind, func(ctx context.Context) error {
		_, err := r.pool.Exec(ctx, `INSERT INTO rehome_control.replication_commands (id, replication, kind, args, requested_by, created_at)
			VALUES ($1, $2, $3, $4, 'tester', clock_timestamp()) ON CONFLICT DO NOTHING`, id, r.world.id, kind, raw)
		return err
	})
	r.wake()
	return id
}

// answer looks for a command's end.
func (r *killRig) answer(id string) (done bool, problem string) {
	r.t.Helper()
	r.db("an answer", func(ctx context.Context) error {
		var prob []byte
		err := r.pool.QueryRow(ctx, `SELECT finished_at IS NOT NULL, error FROM rehome_control.replication_commands WHERE id = $1`, id).Scan(&done, &prob)
		problem = string(prob)
		return err
	})
	return done, problem
}

func (r *killRig) answered(id string) (problem string) {
	r.t.Helper()
	eventually(r.t, "the command is answered", func() bool {
		var done bool
		done, problem = r.answer(id)
		return done
	})
	return problem
}

func (r *killRig) state() (st tenant.State) {
	r.t.Helper()
	r.db("the replication's state", func(ctx context.Context) error {
		var raw []byte
		if err := r.pool.QueryRow(ctx, `SELECT state FROM rehome_control.replications WHERE id = $1`, r.world.id).Scan(&raw); err != nil {
			return err
		}
		return json.Unmarshal(raw, &st)
	})
	return st
}

func (r *killRig) waitFor(want ...tenant.Phase) tenant.Phase {
	r.t.Helper()
	var now tenant.Phase
	eventually(r.t, fmt.Sprint("phase ", want), func() bool {
		st := r.state()
		if now = st.Phase; now == tenant.Paused {
			r.t.Fatalf("paused: %s (%s)", st.Reason, st.Remedy)
		}
		return slices.Contains(want, now)
	})
	return now
}

// holder is the server that works on the replication.
func (r *killRig) holder() *killServer {
	r.t.Helper()
	name := ""
	eventually(r.t, "a server works on the replication", func() bool {
		r.db("the lease", func(ctx context.Context) error {
			return r.pool.QueryRow(ctx, `SELECT coalesce(max(holder), '') FROM rehome_control.leases WHERE resource = $1 AND expires_at > now()`, "replication:"+r.world.id).Scan(&name)
		})
		return r.servers[name] != nil && r.servers[name].alive
	})
	return r.servers[name]
}

// takeLease makes the lease of a server run out at once, until another has it: as if it had stood still for so long.
func (r *killRig) takeLease(from *killServer) (by *killServer) {
	r.t.Helper()
	eventually(r.t, "another server takes over from "+from.name, func() bool {
		name := ""
		r.db("take the lease away", func(ctx context.Context) error {
			if _, err := r.pool.Exec(ctx, `UPDATE rehome_control.leases SET expires_at = now() - interval '1 second' WHERE resource = $1 AND holder = $2`, "replication:"+r.world.id, from.name); err != nil {
				return err
			}
			return r.pool.QueryRow(ctx, `SELECT holder FROM rehome_control.leases WHERE resource = $1`, "replication:"+r.world.id).Scan(&name)
		})
		r.wake()
		by = r.servers[name]
		return name != from.name
	})
	return by
}

// whole brings every server back.
func (r *killRig) whole() {
	r.t.Helper()
	for name, s := range r.servers {
		if !s.alive {
			r.servers[name] = r.startServer(name)
		}
	}
}
