package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// shared is the cluster that tests use which kill none.
var shared *pgcluster.Cluster

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	if conf := os.Getenv(killChild); conf != "" {
		os.Exit(serveKilled(conf))
	}
	if conf := os.Getenv(natsChild); conf != "" {
		os.Exit(serveNATS(conf))
	}
	dir, err := os.MkdirTemp("", "rehome-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "rehome")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, "github.com/rehomedb/rehome/cmd/rehome")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
		os.Exit(1)
	}
	code := pgcluster.Main(m, pgcluster.Options{Settings: clusterSettings}, &shared)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var clusterSettings = map[string]string{"max_connections": "300", "max_replication_slots": "40", "max_wal_senders": "40"}

// patience bounds every wait; the large runs (make memory, make pgbench) have more.
var patience = func() time.Duration {
	if os.Getenv("REHOME_MEMORY_MB")+os.Getenv("REHOME_PGBENCH_SCALE") != "" {
		return 30 * time.Minute
	}
	return 3 * time.Minute
}()

// installation is one server process with its control database, mailbox and working directory.
type installation struct {
	t       *testing.T
	control tenant.DSN
	url     string
	public  string // the installation's address, where another server than this one answers to it
	port    int
	dir     string // working directory: rehome.json, rehome.key
	mail    string
	extra   []string
	proc    *exec.Cmd
	log     *os.File
}

func newInstallation(t *testing.T, control tenant.DSN, extra ...string) *installation {
	t.Helper()
	dir := t.TempDir()
	port := freePort(t)
	i := &installation{t: t, control: control, dir: dir, mail: filepath.Join(dir, "mail"), port: port, url: "http://127.0.0.1:" + strconv.Itoa(port), extra: extra}
	var err error
	if i.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.kill()
		_ = i.log.Close()
		if t.Failed() {
			raw, _ := os.ReadFile(i.log.Name())
			if len(raw) > 20000 {
				raw = raw[len(raw)-20000:]
			}
			t.Logf("the server's log ends:\n%s", raw)
		}
	})
	i.must("init", "--email", "ops@example.com")
	i.start()
	return i
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("unexpected address %s", l.Addr())
	}
	return addr.Port
}

func (i *installation) env() []string {
	return append(append(os.Environ(), "TMPDIR="+i.dir, // a killed server leaves its temporary files behind
		"REHOME_DATABASE_URL="+i.control.Reveal(), "REHOME_SECRET=a secret of the tests, long enough for all", "REHOME_URL="+i.url,
		"REHOME_LISTEN=127.0.0.1:"+strconv.Itoa(i.port), "REHOME_EMAIL_URL=file://"+i.mail, "NO_COLOR=1"), i.extra...)
}

// command is the server's process, not started yet.
func (i *installation) command() *exec.Cmd {
	cmd := exec.Command(binary, "server")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = i.dir, i.env(), i.log, i.log
	if i.public != "" {
		cmd.Env = append(cmd.Env, "REHOME_URL="+i.public)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// start starts the server and waits until it is ready.
func (i *installation) start() {
	i.t.Helper()
	cmd := i.command()
	if err := cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	i.proc = cmd
	i.ready()
}

func (i *installation) ready() {
	i.t.Helper()
	eventually(i.t, "the server is ready", func() bool {
		req, err := http.NewRequestWithContext(i.t.Context(), http.MethodGet, i.url+"/readyz", nil)
		if err != nil {
			i.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// kill ends the server as a power cut would: with SIGKILL.
func (i *installation) kill() {
	if i.proc == nil {
		return
	}
	_ = i.proc.Process.Kill()
	_ = i.proc.Wait()
	i.proc = nil
}

// stop ends the server in order.
func (i *installation) stop() {
	i.t.Helper()
	if err := i.proc.Process.Signal(syscall.SIGTERM); err != nil {
		i.t.Fatal(err)
	}
	if err := i.proc.Wait(); err != nil {
		i.t.Errorf("the server did not end in order: %v", err)
	}
	i.proc = nil
}

// rss is the server's resident memory now and at its peak, in MiB.
func (i *installation) rss() (now, peak int) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.proc.Process.Pid))
	if err != nil {
		i.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 1 && f[0] == "VmRSS:":
			now, _ = strconv.Atoi(f[1])
		case len(f) > 1 && f[0] == "VmHWM:":
			peak, _ = strconv.Atoi(f[1])
		}
	}
	return now / 1024, peak / 1024
}

// run runs a command of the command line.
func (i *installation) run(args ...string) (stdout, stderr string, code int) {
	i.t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = i.dir, i.env(), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		i.t.Fatalf("rehome %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (i *installation) must(args ...string) string {
	i.t.Helper()
	out, errs, code := i.run(args...)
	if code != 0 {
		i.t.Fatalf("rehome %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// must JSON runs a command and decodes its answer.
func mustJSON[T any](i *installation, args ...string) T {
	i.t.Helper()
	out := i.must(append(args, "-o", "json")...)
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		i.t.Fatalf("rehome %s answered %q: %v", strings.Join(args, " "), out, err)
	}
	return v
}

// request asks for a code and returns the request and the code from the mailbox.
func (i *installation) request(args ...string) (id, code string) {
	i.t.Helper()
	ch := mustJSON[api.Challenge](i, append(args, "--request-otp")...)
	eventually(i.t, "the code is in the mailbox", func() bool {
		mails, err := otp.ReadMailbox(i.mail)
		if err != nil {
			i.t.Fatal(err)
		}
		for _, m := range mails {
			if m.Challenge == ch.ID {
				code = m.Code
			}
		}
		return code != ""
	})
	return ch.ID, code
}

// approved runs a command with the code that it needs.
func (i *installation) approved(args ...string) (stdout, stderr string, code int) {
	i.t.Helper()
	id, otpCode := i.request(args...)
	return i.run(append(args, "--otp-id", id, "--otp", otpCode)...)
}

func (i *installation) mustApproved(args ...string) string {
	i.t.Helper()
	out, errs, code := i.approved(args...)
	if code != 0 {
		i.t.Fatalf("rehome %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (i *installation) progress() tenant.Progress {
	i.t.Helper()
	return mustJSON[tenant.Progress](i, "replication-progress")
}

// waitPhase polls until the replication is in a phase; a pause fails the test with its reason.
func (i *installation) waitPhase(want ...tenant.Phase) tenant.Phase {
	i.t.Helper()
	var now tenant.Phase
	eventually(i.t, fmt.Sprint("phase ", want), func() bool {
		rs := mustJSON[[]api.Replication](i, "replications")
		if len(rs) == 0 {
			return false
		}
		st := rs[0].State
		now = st.Phase
		if slices.Contains(want, now) {
			return true
		}
		if now == tenant.Paused {
			i.t.Fatalf("paused: %s (%s)", st.Reason, st.Remedy)
		}
		return false
	})
	return now
}

// addShards makes a shard of each cluster.
func (i *installation) addShards(clusters ...*pgcluster.Cluster) {
	i.t.Helper()
	for n, c := range clusters {
		i.must("add-shard", "s"+strconv.Itoa(n+1), c.DSN("postgres").Reveal())
	}
}

func open(t testing.TB, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func execSQL(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func scalar[T any](t testing.TB, c *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := c.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
}
