package pgcluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// startTimeout bounds initdb and each start: both take under a second, but crash recovery on a loaded machine may not.
	startTimeout = 90 * time.Second
	// pollEvery is how often the server's state file is looked at while it starts.
	pollEvery = 10 * time.Millisecond
	// portTries is how many ports are tried: others on the machine choose ports at the same time.
	portTries = 20
)

// Options say how a cluster is started. The zero value is good for tests.
type Options struct {
	Install   Install           // default: the newest found
	Settings  map[string]string // lines of postgresql.conf, over the defaults of this package
	InitArgs  []string          // further arguments of initdb, such as --locale=C.UTF-8; the default is UTF8 with locale C
	Superuser string            // default "rehome_admin"
	Fsync     bool              // flush to disk as a real server does
	Dir       string            // where it lives; must be empty or new; default: a temporary directory
	Logger    *slog.Logger      // default: none
}

func (o Options) withDefaults() (Options, error) {
	if o.Install.BinDir == "" {
		installs, err := Find()
		if err != nil {
			return o, err
		}
		o.Install = installs[0]
	}
	if o.Superuser == "" {
		o.Superuser = "rehome_admin"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Cluster is a Postgres server that this process started. Its methods may be called from several goroutines.
type Cluster struct {
	opts     Options
	dir      string
	password string
	port     int
	user     *runAs // nil: as ourselves
	standby  bool   // it was made as a standby; read-only sessions are welcome

	mu      sync.Mutex
	process *process    // nil while stopped
	kept    []*pgx.Conn // see admin
}

// Start initialises a cluster and starts it. It returns when the server accepts connections. The context bounds the
// start only; the server runs until Stop, Kill or Remove, or until this process ends.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	user, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := makeDir(opts.Dir, user)
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts, dir: dir, password: rand.Text(), user: user}
	if err := c.initialise(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := c.startOnFreePort(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	opts.Logger.DebugContext(ctx, "postgres started", "version", opts.Install.Version, "port", c.port, "dir", dir)
	return c, nil
}

// initialise makes the data directory and writes the configuration.
func (c *Cluster) initialise(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	scratch, err := scratchDir()
	if err != nil {
		return err
	}
	if scratch != "" && c.opts.Dir == "" {
		if err := c.fromTemplate(ctx, scratch); err != nil {
			return err
		}
		return c.writeSettings()
	}
	if err := c.initdb(ctx, c.password); err != nil {
		return err
	}
	return c.writeSettings()
}

// initdb makes a data directory. The password is the superuser's, or what Postgres is to keep of it.
func (c *Cluster) initdb(ctx context.Context, password string) error {
	file := filepath.Join(c.dir, passwordFile)
	if err := c.writeFile(file, password+"\n"); err != nil {
		return err
	}
	args := append([]string{
		"--pgdata", c.data(), "--username", c.opts.Superuser, "--pwfile", file, "--auth", "scram-sha-256",
		"--encoding", "UTF8", "--locale", "C", "--no-sync",
	}, c.opts.InitArgs...)
	if out, err := runToEnd(ctx, c.user, c.dir, filepath.Join(c.BinDir(), "initdb"), args...); err != nil {
		return fmt.Errorf("initialise a cluster: %w: %s", err, strings.TrimSpace(out))
	}
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("remove the password file: %w", err)
	}
	return nil
}

// writeSettings appends to postgresql.conf: the last line of a name wins.
func (c *Cluster) writeSettings() error {
	settings := map[string]string{
		"listen_addresses":          "127.0.0.1",
		"unix_socket_directories":   c.socketDir(),
		"wal_level":                 "logical",
		"max_wal_senders":           "20",
		"max_replication_slots":     "20",
		"max_connections":           "200",
		"max_prepared_transactions": "20",
		"shared_buffers":            "64MB",
		"jit":                       "off",
		"timezone":                  "UTC",
		"log_timezone":              "UTC",
		"log_line_prefix":           "%m [%p] %q%u@%d %a ",
	}
	if !c.opts.Fsync {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if !c.opts.Fsync || os.Getenv(ScratchEnv) != "" {
		settings["dynamic_shared_memory_type"] = "mmap" // in its own directory: of a killed server nothing stays in /dev/shm
	}
	maps.Copy(settings, c.opts.Settings)
	var b strings.Builder
	b.WriteString("\n# written by rehome\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	conf := filepath.Join(c.data(), "postgresql.conf")
	old, err := os.ReadFile(conf)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	return c.writeFile(conf, string(old)+b.String())
}

// startOnFreePort tries ports until the server could bind one.
func (c *Cluster) startOnFreePort(ctx context.Context) error {
	var last error
	for range portTries {
		port, err := freePort()
		if err != nil {
			return err
		}
		c.port = port
		last = c.start(ctx)
		if !errors.Is(last, errPortTaken) {
			return last
		}
	}
	return fmt.Errorf("find a free port in %d tries: %w", portTries, last)
}

// start runs the server on its port and waits until it accepts connections. The caller holds mu or owns c alone.
func (c *Cluster) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	logSize := fileSize(c.LogFile())
	p, err := c.launch()
	if err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if c.ready(p.pid()) {
			c.process = p
			return nil
		}
		select {
		case <-p.done:
			log := c.logSince(logSize)
			if strings.Contains(log, "could not bind") || strings.Contains(log, "could not create any TCP/IP sockets") {
				return fmt.Errorf("%w: %d", errPortTaken, c.port)
			}
			return fmt.Errorf("postgres ended while it started: %s", strings.TrimSpace(log))
		case <-ctx.Done():
			p.kill()
			return fmt.Errorf("wait for postgres to start: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// DSN is the connection string of a database of this cluster, as superuser.
func (c *Cluster) DSN(database string) tenant.DSN {
	return c.DSNAs(c.opts.Superuser, c.password, database)
}

// DSNAs is the connection string of a database for another role.
func (c *Cluster) DSNAs(role, password, database string) tenant.DSN {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password), Host: fmt.Sprintf("127.0.0.1:%d", c.port),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return tenant.DSN(u.String())
}

// Port is the TCP port on 127.0.0.1.
func (c *Cluster) Port() int { return c.port }

// Dir holds everything of the cluster: the data directory "data", the log and the socket.
func (c *Cluster) Dir() string { return c.dir }

// BinDir is the folder of this version's binaries.
func (c *Cluster) BinDir() string { return c.opts.Install.BinDir }

// Version is the server's major version.
func (c *Cluster) Version() int { return c.opts.Install.Version }

// LogFile is the server's log.
func (c *Cluster) LogFile() string { return filepath.Join(c.dir, "postgres.log") }

// Pid is the postmaster's process id, 0 while stopped.
func (c *Cluster) Pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return 0
	}
	return c.process.pid()
}

// Stop shuts down fast (sessions are disconnected, a checkpoint is written). When the context ends first, the server is
// killed and the context's cause is returned. Stopping a stopped cluster does nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop(ctx)
}

func (c *Cluster) stop(ctx context.Context) error {
	p := c.process
	if p == nil {
		return nil
	}
	c.process = nil
	return p.stop(ctx)
}

// Kill ends the server and all of its sessions at once, as a power cut does, and waits until they are gone. What was
// not written to the operating system is lost; Restart then recovers from the log.
func (c *Cluster) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil
	}
	c.process.kill()
	c.process = nil
	return nil
}

// Restart stops the server if it runs, and starts it again on the same port.
func (c *Cluster) Restart(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stop(ctx); err != nil {
		return err
	}
	var last error
	for range portTries {
		if last = c.start(ctx); !errors.Is(last, errPortTaken) {
			return last
		}
		// Someone took the port meanwhile, perhaps for a moment only.
		select {
		case <-ctx.Done():
			return fmt.Errorf("restart postgres: %w", context.Cause(ctx))
		case <-time.After(20 * pollEvery):
		}
	}
	return fmt.Errorf("restart postgres: %w", last)
}

// Remove ends the server at once if it still runs, without a checkpoint, and deletes its directory.
func (c *Cluster) Remove() error {
	c.mu.Lock()
	if c.process != nil {
		c.process.quit()
		c.process = nil
	}
	c.mu.Unlock()
	removeSegment(c.data())
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove a cluster: %w", err)
	}
	return nil
}
