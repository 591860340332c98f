package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	httpWriters   = 4
	directWriters = 3
	sockets       = 3
	// pace leaves two cores time for the copy: about 200 writes per second in all.
	pace = 30 * time.Millisecond

	hostedControl = "rehome_hosted"
	ownControl    = "rehome_own"
)

// clusterSettings: both installations, an application, writers and a replication are connected at the same time. A small
// buffer is enough for what a demonstration holds.
var clusterSettings = map[string]string{"max_connections": "120", "shared_buffers": "64MB"} //nolint:gochecknoglobals // a constant

// startClusters starts source and shards beside each other, and fills the source.
func (d *demo) startClusters(ctx context.Context) error {
	installs, err := pgcluster.Find()
	if err != nil {
		return tenant.Errorf(tenant.KindUnavailable, "no-postgres", err.Error(), "the demo needs the binaries of a Postgres server")
	}
	d.rep.Postgres = installs[0].Version
	d.show.progress("starting %d Postgres clusters", d.opt.shards+1)
	d.shards = make([]*pgcluster.Cluster, d.opt.shards)
	g, gctx := errgroup.WithContext(ctx)
	start := func(into **pgcluster.Cluster, name string) {
		g.Go(func() error {
			c, err := pgcluster.Start(gctx, pgcluster.Options{Install: installs[0], Fsync: true, Settings: clusterSettings})
			if err != nil {
				return fmt.Errorf("start the Postgres of %s: %w", name, err)
			}
			*into = c
			return nil
		})
	}
	start(&d.source, "the source")
	for n := range d.shards {
		start(&d.shards[n], shardName(n))
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.show.note("Postgres %d: the source on port %d", d.rep.Postgres, d.source.Port())
	for n, c := range d.shards {
		d.show.note("Postgres %d: shard %s on port %d", d.rep.Postgres, shardName(n), c.Port())
	}
	for _, db := range []struct {
		on   *pgcluster.Cluster
		name string
	}{{d.source, database}, {d.source, hostedControl}, {d.shards[0], ownControl}} {
		if err := createDatabase(ctx, db.on, db.name); err != nil {
			return err
		}
	}
	d.show.progress("filling the source")
	dsn := d.source.DSN(database)
	if err := workload.Create(ctx, dsn); err != nil {
		return err
	}
	filled, err := workload.Fill(ctx, dsn, d.opt.scale, seed)
	if err != nil {
		return err
	}
	d.rep.Rows, d.rep.Realms = filled.Rows, filled.Realms
	d.show.note("database %s: %s rows in %d tables, %d realms of very different size", database, output.Count(filled.Rows), len(filled.Tables), filled.Realms)
	return nil
}

func createDatabase(ctx context.Context, c *pgcluster.Cluster, name string) error {
	conn, err := pgx.Connect(ctx, c.DSN("postgres").Reveal())
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+tenant.QuoteIdent(name)); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// startInstallation sets an installation up and runs its server.
func (d *demo) startInstallation(ctx context.Context, name, admin string, control tenant.DSN) (*installation, error) {
	i, err := newInstallation(ctx, name, d.dir, rand.Text()+rand.Text(), control, d.environ())
	if err != nil {
		return nil, err
	}
	d.show.note("REHOME_DATABASE_URL=%s REHOME_URL=%s REHOME_SECRET=…", control, i.url)
	if _, err := d.do(ctx, how{in: i, environ: i.server}, "init", "--email", admin); err != nil {
		return i, err
	}
	d.show.command(name, []string{"server"})
	d.start(i.serve)
	if err := i.ready(ctx); err != nil {
		return i, err
	}
	d.show.note("  it answers at %s", i.url)
	_, err = d.do(ctx, how{in: i}, "init-email-channel", "file://"+i.mail)
	return i, err
}

// environ is what commands see of the process' environment: how to print, and where programs are.
func (d *demo) environ() []string {
	var out []string
	for _, kv := range d.show.environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "TMPDIR", "LANG", "TERM", "NO_COLOR", pgcluster.BinDirEnv:
			out = append(out, kv)
		}
	}
	if !d.show.p.Color {
		out = append(out, "NO_COLOR=1")
	}
	return out
}

// startHosted is the vendor's side: an installation beside its Postgres, and the application of the tenant.
func (d *demo) startHosted(ctx context.Context) error {
	var err error
	if d.oldApp, err = newApplication(ctx); err != nil {
		return err
	}
	dsn := d.source.DSN(database)
	pool, err := d.pool(ctx, dsn, "acme web", appConnections)
	if err != nil {
		return err
	}
	baseline, err := workload.ReadBaseline(ctx, pool)
	if err != nil {
		return err
	}
	d.ledger = workload.NewLedger(baseline)
	app := &workload.App{Backend: workload.Single{DB: pool}, Side: workload.SideSource, Logger: quiet()}
	d.oldApp.running = d.start(func(ctx context.Context) error {
		defer pool.Close() // its sessions at the source end with the application
		return d.oldApp.serve(ctx, app)
	})
	d.show.note("the application of the tenant, at %s", d.oldApp.url)
	if d.hosted, err = d.startInstallation(ctx, "hosted", vendor, d.source.DSN(hostedControl)); err != nil {
		return err
	}
	_, err = d.do(ctx, how{in: d.hosted}, "adopt", database, dsn.Reveal(), "--owner", owner, "--upstream", d.oldApp.url)
	return err
}

// startOwn is the tenant's side: an installation with shards.
func (d *demo) startOwn(ctx context.Context) error {
	var err error
	if d.newApp, err = newApplication(ctx); err != nil {
		return err
	}
	if d.own, err = d.startInstallation(ctx, "own", operator, d.shards[0].DSN(ownControl)); err != nil {
		return err
	}
	for n, c := range d.shards {
		if _, err := d.do(ctx, how{in: d.own}, "add-shard", shardName(n), c.DSN("postgres").Reveal()); err != nil {
			return err
		}
	}
	if _, err := d.do(ctx, how{in: d.own}, "create", database, "--realm-key", workload.RealmKey, "--owner", owner, "--upstream", d.newApp.url); err != nil {
		return err
	}
	if err := d.startNewApp(ctx); err != nil {
		return err
	}
	return d.giveRights(ctx)
}

func (d *demo) startNewApp(ctx context.Context) error {
	cl, err := d.own.client()
	if err != nil {
		return err
	}
	if d.placement, err = cl.Placement(ctx, database); err != nil {
		return fmt.Errorf("read the placement: %w", err)
	}
	for n, c := range d.shards {
		if d.shardPools[shardName(n)], err = d.pool(ctx, c.DSN(database), "acme web", appConnections); err != nil {
			return err
		}
	}
	app := &workload.App{Backend: workload.Sharded{Placement: d.placement, Shards: d.shardPools}, Side: workload.SideShards, Logger: quiet()}
	d.newApp.running = d.start(func(ctx context.Context) error { return d.newApp.serve(ctx, app) })
	d.show.note("the application again, on the shards, at %s", d.newApp.url)
	return nil
}

// giveRights lets the owner work on the hosted side: the key goes from the vendor's command to the owner's file.
func (d *demo) giveRights(ctx context.Context) error {
	args := []string{"authorize", owner, "--databases", database}
	d.show.command(d.hosted.name, args)
	made, err := ask[api.ClientCreated](ctx, d.hosted, args...)
	if err != nil {
		return err
	}
	if _, err := keyfile.WriteKey(d.own.dir, d.hosted.url, keyfile.Key{ClientID: made.ID, ClientSecret: tenant.Secret(made.Secret)}); err != nil {
		return fmt.Errorf("keep the key of the hosted side: %w", err)
	}
	d.show.note("  client %s, which the owner keeps in own/%s", made.ID, keyfile.KeyName)
	return nil
}

// startClients lets everybody write. They go on until the checks.
func (d *demo) startClients(ctx context.Context) error {
	backend := workload.Sharded{Placement: d.placement, Shards: d.shardPools}
	writers, err := workload.NewWriters(workload.WriterConfig{
		Ledger: d.ledger, URL: d.oldURL(), HTTPWriters: httpWriters, Sockets: sockets, Source: d.source.DSN(database), DirectWriters: directWriters,
		Resolve: func(_ context.Context, realm string) (*pgxpool.Pool, error) { return backend.Pool(realm) },
		Pace:    pace, Seed: seed, Logger: quiet(),
	})
	if err != nil {
		return fmt.Errorf("start the clients: %w", err)
	}
	d.writers, d.since = writers, time.Now()
	d.writing = d.start(writers.Run)
	d.show.note("%d HTTP clients and %d WebSockets at %s, %d programs connected to the source itself", httpWriters, sockets, d.oldURL(), directWriters)
	return d.acknowledged(ctx, workload.SideSource, 200)
}

func (d *demo) oldURL() string { return d.hosted.url + "/" + database }
func (d *demo) newURL() string { return d.own.url + "/" + database }

// acknowledged waits until a side has acknowledged so many writes more.
func (d *demo) acknowledged(ctx context.Context, side string, more int64) error {
	from := d.ledger.Counts().BySide[side]
	err := eventually(ctx, writesWithin, fmt.Sprintf("the %s acknowledges %d more writes", side, more), func(context.Context) (bool, error) {
		n := d.ledger.Counts().BySide[side] - from
		d.show.progress("%d of %d writes acknowledged by the %s", n, more, side)
		return n >= more, nil
	})
	d.show.clear()
	if err != nil {
		return err
	}
	d.pulse()
	return nil
}

// pulse says how the clients fare.
func (d *demo) pulse() {
	c := d.ledger.Counts()
	d.show.note("%s", d.show.p.Paint(output.Faint, fmt.Sprintf("clients: %s writes acknowledged, %s by the source and %s by the shards; %.0f/s",
		output.Count(c.Acknowledged), output.Count(c.BySide[workload.SideSource]), output.Count(c.BySide[workload.SideShards]), perSecond(c.Acknowledged, time.Since(d.since)))))
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// writeFile keeps what a command printed, as `>` in a shell does.
func writeFile(dir, name, text string) error {
	if strings.TrimSpace(text) == "" {
		return errors.New("there is nothing to write to " + name)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
