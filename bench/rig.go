package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// targetsMax is to how many clusters a workload copies at most.
const targetsMax = 3

// TargetDB is the name of the database that contenders fill, at each target.
const TargetDB = "bench"

// settings are those of every cluster: what an operator would give a server for such a load, durable as in production.
func settings(fsync bool) map[string]string {
	s := map[string]string{
		"shared_buffers":       "512MB",
		"maintenance_work_mem": "256MB",
		"max_wal_size":         "4GB", // few checkpoints within a turn; one is made before each
		"min_wal_size":         "1GB",
		"checkpoint_timeout":   "30min",
		"autovacuum":           "off", // it would begin at odd times
		"max_worker_processes": "24", "max_logical_replication_workers": "16",
		// Up to 15 the launcher starts at most one worker per interval, 5 s by default: that would measure the clock.
		"wal_retrieve_retry_interval": "100ms",
		"log_checkpoints":             "off",
		"fsync":                       "on",
	}
	if !fsync {
		s["fsync"] = "off"
	}
	return s
}

// Rig is the clusters and programs that all contenders share.
type Rig struct {
	Dir     string // working directory: logs, dumps, files of limits
	Source  *pgcluster.Cluster
	Targets []*pgcluster.Cluster
	Control *pgcluster.Cluster // of Rehome's own records
	Rehome  string             // the program under test
	dirs    string             // where clusters live
	fsync   bool
	tools   map[string]string // programs of the clusters' version that run, by name
}

// StartRig starts all clusters: source, control and targets.
func StartRig(ctx context.Context, o Options, targets int) (r *Rig, err error) {
	r = &Rig{dirs: o.Dir, Rehome: o.Rehome, fsync: o.Fsync}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close(false))
		}
	}()
	if r.Dir, err = os.MkdirTemp(o.Dir, "rehome-bench-"); err != nil {
		return r, fmt.Errorf("make the working directory: %w", err)
	}
	if err := os.Chmod(r.Dir, 0o755); err != nil { //nolint:gosec // the servers' account reads and writes files below it
		return r, fmt.Errorf("open the working directory: %w", err)
	}
	if r.Rehome == "" {
		r.Rehome = filepath.Join(r.Dir, "rehome")
		if err := buildRehome(ctx, r.Rehome, "-trimpath"); err != nil { // as `make build` does
			return r, err
		}
	} else if r.Rehome, err = filepath.Abs(r.Rehome); err != nil {
		return r, fmt.Errorf("find rehome: %w", err)
	}
	r.Targets = make([]*pgcluster.Cluster, targets)
	g, start := errgroup.WithContext(ctx)
	g.Go(func() (err error) { r.Source, err = r.cluster(start, "source"); return err })
	g.Go(func() (err error) { r.Control, err = r.cluster(start, "control"); return err })
	for n := range r.Targets {
		g.Go(func() (err error) { r.Targets[n], err = r.cluster(start, fmt.Sprintf("target%d", n+1)); return err })
	}
	if err := g.Wait(); err != nil {
		return r, err
	}
	r.findTools(ctx)
	return r, nil
}

// buildRehome builds the program under test, with these flags.
func buildRehome(ctx context.Context, path string, flags ...string) error {
	args := append(append([]string{"build"}, flags...), "-o", path, "github.com/rehomedb/rehome/cmd/rehome")
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own path and flags
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build rehome: %w: %s", err, out)
	}
	return nil
}

func (r *Rig) cluster(ctx context.Context, name string) (*pgcluster.Cluster, error) {
	opts := pgcluster.Options{Settings: settings(r.fsync), Fsync: true, Superuser: "postgres"}
	if r.dirs != "" {
		opts.Dir = filepath.Join(r.Dir, name)
	}
	c, err := pgcluster.Start(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("start the %s cluster: %w", name, err)
	}
	return c, nil
}

// Close removes everything; keep leaves the working directory.
func (r *Rig) Close(keep bool) error {
	var errs []error
	for _, c := range append([]*pgcluster.Cluster{r.Source, r.Control}, r.Targets...) {
		if c != nil {
			errs = append(errs, c.Remove())
		}
	}
	if !keep && r.Dir != "" {
		errs = append(errs, os.RemoveAll(r.Dir))
	}
	return errors.Join(errs...)
}

// clientTools are the programs of Postgres that contenders run.
var clientTools = [...]string{"psql", "pg_dump", "pg_restore", "pgbench", "pg_recvlogical"}

// findTools takes the programs beside the server's binaries where they run: of a version that was unpacked from elsewhere some may
// not, and those of the machine do as well where they are not older than needed.
func (r *Rig) findTools(ctx context.Context) {
	r.tools = map[string]string{}
	for _, name := range clientTools {
		path := filepath.Join(r.Source.BinDir(), name)
		if err := exec.CommandContext(ctx, path, "--version").Run(); err == nil { //nolint:gosec // the folder is the operator's own choice
			r.tools[name] = path
		}
	}
}

// Tool is the path of a program beside the server's binaries, or the bare name where there is none that runs.
func (r *Rig) Tool(name string) string {
	if path := r.tools[name]; path != "" {
		return path
	}
	return name
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// clusters are all that a turn may use.
func (r *Rig) clusters() []*pgcluster.Cluster {
	return append([]*pgcluster.Cluster{r.Source, r.Control}, r.Targets...)
}

// Checkpoint makes every turn begin alike: no dirty buffers, the whole of max_wal_size to go.
func (r *Rig) Checkpoint(ctx context.Context) error {
	for _, c := range r.clusters() {
		if err := Exec(ctx, c.DSN("postgres"), "CHECKPOINT"); err != nil {
			return err
		}
	}
	return nil
}

// CPU is what source, targets and control database have used since they were started.
func (r *Rig) CPU() (cpu CPU, err error) {
	if cpu.Source, err = TreeCPU(r.Source.Pid()); err != nil {
		return cpu, err
	}
	for _, c := range r.Targets {
		used, err := TreeCPU(c.Pid())
		if err != nil {
			return cpu, err
		}
		cpu.Targets += used
	}
	cpu.Control, err = TreeCPU(r.Control.Pid())
	return cpu, err
}

// Exec runs statements on a session of their own, one after the other.
func Exec(ctx context.Context, dsn tenant.DSN, statements ...string) error {
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := c.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", first(sql), err)
		}
	}
	return nil
}

// first is enough of a statement to know it.
func first(sql string) string {
	sql = strings.Join(strings.Fields(sql), " ")
	return sql[:min(len(sql), 80)]
}

// Scalar asks for one value on a session of its own.
func Scalar[T any](ctx context.Context, dsn tenant.DSN, sql string, args ...any) (v T, err error) {
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return v, fmt.Errorf("connect: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	if err := c.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
		return v, fmt.Errorf("%s: %w", first(sql), err)
	}
	return v, nil
}

// CreateDatabase makes an empty database.
func CreateDatabase(ctx context.Context, c *pgcluster.Cluster, name string) error {
	return Exec(ctx, c.DSN("postgres"), "CREATE DATABASE "+tenant.QuoteIdent(name)+" TEMPLATE template0")
}

// DropDatabase drops a database, if it is there, with its subscriptions, slots and sessions.
func DropDatabase(ctx context.Context, c *pgcluster.Cluster, name string) error {
	there, err := Scalar[bool](ctx, c.DSN("postgres"), `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name)
	if err != nil || !there {
		return err
	}
	if err := DropSubscriptions(ctx, c.DSN(name)); err != nil {
		return err
	}
	if err := DropSlots(ctx, c, name); err != nil {
		return err
	}
	return Exec(ctx, c.DSN("postgres"), "DROP DATABASE "+tenant.QuoteIdent(name)+" WITH (FORCE)")
}

// DropSubscriptions drops all of a database. Their slots stay: DropSlots drops them at the other side.
func DropSubscriptions(ctx context.Context, dsn tenant.DSN) error {
	names, err := Scalar[[]string](ctx, dsn, `SELECT coalesce(array_agg(subname::text), '{}') FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return err
	}
	for _, n := range names {
		sub := "ALTER SUBSCRIPTION " + tenant.QuoteIdent(n)
		if err := Exec(ctx, dsn, sub+" DISABLE", sub+" SET (slot_name = NONE)", "DROP SUBSCRIPTION "+tenant.QuoteIdent(n)); err != nil {
			return err
		}
	}
	return nil
}

// DropSlots ends and drops the slots of a database.
func DropSlots(ctx context.Context, c *pgcluster.Cluster, database string) error {
	return eventually(ctx, slotsWithin, "the slots of "+database+" are dropped", func(ctx context.Context) (bool, error) {
		admin := c.DSN("postgres")
		left, err := Scalar[int](ctx, admin, `SELECT count(*)::int FROM pg_replication_slots WHERE database = $1`, database)
		if err != nil || left == 0 {
			return left == 0, err
		}
		if err := execArgs(ctx, admin, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NOT NULL`, database); err != nil {
			return false, err
		}
		// Whoever was ended may hold its slot for a moment: then it is tried again.
		_ = execArgs(ctx, admin, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NULL`, database)
		return false, nil
	})
}

func execArgs(ctx context.Context, dsn tenant.DSN, sql string, args ...any) error {
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	if _, err := c.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %w", first(sql), err)
	}
	return nil
}
