package doctor

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/server/supervisor"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// Two servers: both are shards; the control database is at the one, the sources are at the other.
var own, other *pgcluster.Cluster

const patience = 90 * time.Second

func TestMain(m *testing.M) {
	var err error
	if own, err = pgcluster.Start(context.Background(), pgcluster.Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := pgcluster.Main(m, pgcluster.Options{}, &other)
	if err := own.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// world is an installation with a database on two shards and, after replicate, a replication into it.
type world struct {
	t         *testing.T
	pool      *pgxpool.Pool
	box       *seal.Box
	catalogue *shard.Catalogue
	gateway   *redirect.Gateway
	doctor    *Doctor
	database  string
	source    tenant.DSN
	id        string
	channel   string
	signer    cutover.Signer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, database: "db" + strings.ToLower(rand.Text()[:8]), id: strings.ToLower(rand.Text()[:12]), channel: "smtp://mail.test:25"}
	control := pgcluster.NewDatabase(t, own)
	cfg, err := pgx.ParseConfig(control.Reveal())
	w.must(err)
	_, err = migrations.Up(t.Context(), cfg)
	w.must(err)
	w.pool, err = pgxpool.New(t.Context(), control.Reveal())
	w.must(err)
	t.Cleanup(w.pool.Close)
	w.box, err = seal.New("a secret of the tests that is long: enough")
	w.must(err)
	_, key, err := ed25519.GenerateKey(nil)
	w.must(err)
	w.signer = cutover.Signer{Installation: "inst", Key: key}
	w.catalogue = shard.New(w.pool, w.box, nil)
	w.gateway = redirect.New(redirect.Config{Pool: w.pool, Server: "test"})
	w.doctor = New(Config{
		Pool: w.pool, Seal: w.box, Catalogue: w.catalogue, Gateway: w.gateway, Signer: w.signer, BaseURL: "https://own.test", Tombstone: 24 * time.Hour,
		Channel: func(context.Context) (string, error) { return w.channel, nil }, LookAgain: 30 * time.Millisecond,
	})
	for i, c := range []*pgcluster.Cluster{own, other} {
		_, err := w.catalogue.AddShard(t.Context(), shard.AddRequest{Name: fmt.Sprintf("eu-%d", i+1), DSN: c.DSN("postgres")})
		w.must(err)
	}
	w.create(w.database)
	return w
}

// create makes a database on both shards, which goes with the test.
func (w *world) create(name string) {
	w.t.Helper()
	_, err := w.catalogue.CreateDatabase(w.t.Context(), shard.CreateRequest{Name: name, RealmKey: "realm_id"})
	w.must(err)
	w.t.Cleanup(func() {
		for _, c := range []*pgcluster.Cluster{own, other} {
			conn, err := pgx.Connect(context.Background(), c.DSN("postgres").Reveal())
			w.must(err)
			_, err = conn.Exec(context.Background(), "DROP DATABASE IF EXISTS "+tenant.QuoteIdent(name)+" WITH (FORCE)")
			w.must(err)
			w.must(conn.Close(context.Background()))
		}
	})
}

// record writes a replication's row.
func (w *world) record(id string, phase tenant.Phase) {
	w.t.Helper()
	state, err := json.Marshal(tenant.State{Phase: phase})
	w.must(err)
	options := tenant.ReplicationOptions{RealmKey: "realm_id"}.WithDefaults()
	w.control(`INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch, ended_at)
		VALUES ($1, $2, $3, $4, 'https://own.test/x', $5, $6, $7, $8, $8, 1, CASE WHEN $9 THEN now() END)`,
		id, w.database, w.box.Seal("source-dsn", w.source.Reveal()), w.source.String(), options, string(state), string(phase), "rehome_"+id, phase.Terminal())
}

// replicate starts a worker, waits until the replication is in sync, and returns what stops the worker.
func (w *world) replicate() (stop func()) {
	w.t.Helper()
	w.source = pgcluster.NewDatabase(w.t, other)
	w.at(w.source, `CREATE TABLE items (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)); INSERT INTO items SELECT 'r' || i % 9, i FROM generate_series(1, 100) i`)
	w.record(w.id, tenant.Created)
	s := supervisor.New(supervisor.Config{
		Pool: w.pool, Seal: w.box, Catalogue: w.catalogue, Log: progress.NewLog(w.pool, "inst", "https://own.test"), Gateway: w.gateway, Signer: w.signer, Server: "test",
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the worker: %v", err)
		}
	}
	w.t.Cleanup(stop)
	w.eventually("in sync", func() bool {
		var phase, reason string
		w.must(w.pool.QueryRow(w.t.Context(), `SELECT phase, coalesce(state->>'reason', '') FROM rehome_control.replications WHERE id = $1`, w.id).Scan(&phase, &reason))
		if phase == string(tenant.Paused) {
			w.t.Fatal(reason)
		}
		return phase == string(tenant.InSync)
	})
	return stop
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(20 * time.Millisecond) // between two looks at the condition
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) control(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// at runs statements on a server.
func (w *world) at(dsn tenant.DSN, sql string) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), dsn.Reveal())
	w.must(err)
	defer func() { w.must(conn.Close(w.t.Context())) }()
	if _, err := conn.PgConn().Exec(w.t.Context(), sql).ReadAll(); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// ask reads one text from a server.
func (w *world) ask(dsn tenant.DSN, sql string) (out string) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), dsn.Reveal())
	w.must(err)
	defer func() { w.must(conn.Close(w.t.Context())) }()
	if err := conn.QueryRow(w.t.Context(), sql).Scan(&out); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// shard is the database at its first shard.
func (w *world) shard() tenant.DSN { return own.DSN(w.database) }

func codes(findings []tenant.Finding) []string {
	out := []string{}
	for _, f := range findings {
		if !slices.Contains(out, f.Code) {
			out = append(out, f.Code)
		}
	}
	slices.Sort(out)
	return out
}

// finds examines and wants exactly these codes, in any order.
func (w *world) finds(want ...string) api.Doctor {
	w.t.Helper()
	r, err := w.doctor.Examine(w.t.Context())
	w.must(err)
	slices.Sort(want)
	if diff := cmp.Diff(want, codes(r.Findings), cmp.Transformer("nil", func(s []string) string { return strings.Join(s, " ") })); diff != "" {
		w.t.Fatalf("findings (-want +got):\n%s\n%+v", diff, r.Findings)
	}
	if r.OK != (len(want) == 0) {
		w.t.Fatalf("ok is %t with %v", r.OK, want)
	}
	for _, f := range r.Findings {
		if f.Message == "" || f.Remedy == "" || f.Object == "" {
			w.t.Errorf("a finding says too little: %+v", f)
		}
	}
	return r
}

// fixes finds the codes, repairs, and wants only the ones in left afterwards.
func (w *world) fixes(found []string, left ...string) {
	w.t.Helper()
	w.finds(found...)
	r, err := w.doctor.Fix(w.t.Context())
	w.must(err)
	slices.Sort(left)
	if diff := cmp.Diff(strings.Join(left, " "), strings.Join(codes(r.Findings), " ")); diff != "" {
		w.t.Fatalf("left after the repairs (-want +got):\n%s\n%+v\n%+v", diff, r.Findings, r.Repairs)
	}
	for _, m := range r.Repairs {
		if !m.Done || m.Error != "" {
			w.t.Errorf("not mended: %+v", m)
		}
	}
	if len(r.Repairs) == 0 && len(found) > len(left) {
		w.t.Error("nothing was repaired")
	}
}
