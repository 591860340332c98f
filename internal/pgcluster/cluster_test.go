package pgcluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

var shared *pgcluster.Cluster

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(orphanMaker())
	}
	os.Exit(pgcluster.Main(m, pgcluster.Options{}, &shared))
}

func connect(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func show[T any](t *testing.T, conn *pgx.Conn, sql string) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func mustExec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestFindNamesVersions(t *testing.T) {
	t.Parallel()
	installs, err := pgcluster.Find()
	if err != nil {
		t.Fatal(err)
	}
	for i, in := range installs {
		if in.Version < 9 || in.BinDir == "" {
			t.Errorf("install %d: %+v", i, in)
		}
		if i > 0 && in.Version > installs[i-1].Version {
			t.Errorf("%d comes after %d: newest first", in.Version, installs[i-1].Version)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	conn := connect(t, shared.DSN("postgres"))
	for name, want := range map[string]string{
		"wal_level": "logical", "fsync": "off", "listen_addresses": "127.0.0.1", "max_wal_senders": "20",
		"server_encoding": "UTF8", "port": strconv.Itoa(shared.Port()),
	} {
		if got := show[string](t, conn, "SHOW "+name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	if got := show[string](t, conn, "SELECT current_user"); got != "rehome_admin" {
		t.Errorf("superuser is %s", got)
	}
}

func TestPasswordIsNeeded(t *testing.T) {
	t.Parallel()
	_, err := pgx.Connect(t.Context(), shared.DSNAs("rehome_admin", "wrong", "postgres").Reveal())
	if err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Fatalf("a wrong password gives %v, want 28P01", err)
	}
}

func TestNewDatabaseIsDroppedWithItsSlot(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("uses a database", func(t *testing.T) {
		conn := connect(t, pgcluster.NewDatabase(t, shared))
		name = show[string](t, conn, "SELECT current_database()::text")
		mustExec(t, conn, "CREATE TABLE t (a int)")
		mustExec(t, conn, "SELECT pg_create_logical_replication_slot('"+name+"', 'pgoutput')")
	})
	conn := connect(t, shared.DSN("postgres"))
	if show[bool](t, conn, "SELECT exists(SELECT FROM pg_database WHERE datname = '"+name+"')") {
		t.Error("the database is still there")
	}
	if show[bool](t, conn, "SELECT exists(SELECT FROM pg_replication_slots WHERE slot_name = '"+name+"')") {
		t.Error("the slot is still there")
	}
}

func TestStopKillRestartKeepDataAndPort(t *testing.T) {
	t.Parallel()
	c := pgcluster.StartT(t, pgcluster.Options{Superuser: "boss", Settings: map[string]string{"work_mem": "7MB"}})
	dsn := c.DSN("postgres")
	mustExec(t, connect(t, dsn), "CREATE TABLE t AS SELECT 1 AS n")

	steps := map[string]func() error{
		"stop":    func() error { return c.Stop(t.Context()) },
		"kill":    c.Kill,
		"restart": func() error { return c.Restart(t.Context()) },
	}
	for _, order := range [][]string{{"stop", "restart"}, {"kill", "restart"}, {"restart"}, {"kill", "kill", "stop", "restart"}} {
		before := c.Pid()
		open := connect(t, dsn) // a session must not hold anything up
		for _, step := range order {
			if err := steps[step](); err != nil {
				t.Fatalf("%v: %s: %v", order, step, err)
			}
			if step != "restart" && c.Pid() != 0 {
				t.Errorf("%v: still has pid %d", order, c.Pid())
			}
		}
		if err := open.Ping(t.Context()); err == nil {
			t.Errorf("%v: the old session still answers", order)
		}
		if c.Pid() == before {
			t.Errorf("%v: the same process", order)
		}
		conn := connect(t, dsn)
		if n := show[int](t, conn, "SELECT n FROM t"); n != 1 {
			t.Errorf("%v: row is %d", order, n)
		}
		if got := show[string](t, conn, "SHOW work_mem"); got != "7MB" {
			t.Errorf("%v: work_mem %s", order, got)
		}
		if got := show[string](t, conn, "SHOW fsync"); got != "off" {
			t.Errorf("%v: fsync %s", order, got)
		}
	}
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestKilledServerLosesUnfinishedWork(t *testing.T) {
	t.Parallel()
	c := pgcluster.StartT(t, pgcluster.Options{Fsync: true})
	conn := connect(t, c.DSN("postgres"))
	mustExec(t, conn, "CREATE TABLE t (a int)")
	mustExec(t, conn, "BEGIN; INSERT INTO t VALUES (1)")
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := show[int](t, connect(t, c.DSN("postgres")), "SELECT count(*)::int FROM t"); n != 0 {
		t.Errorf("%d rows of an unfinished transaction", n)
	}
}

func TestRestartWaitsForItsPort(t *testing.T) {
	t.Parallel()
	c := pgcluster.StartT(t, pgcluster.Options{})
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port())))
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(300*time.Millisecond, func() { _ = l.Close() })
	defer timer.Stop()
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestOwnDirectoryMustBeEmpty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pgcluster.Start(t.Context(), pgcluster.Options{Dir: dir}); !errors.Is(err, os.ErrExist) {
		t.Errorf("start in a used directory: %v", err)
	}
}

func TestOwnDirectory(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "pgcluster") //nolint:usetesting // t.TempDir is closed to the server's account
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) }) // the cluster's own clean-up removes what matters
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "deep", strings.Repeat("long", 25)) // too long for a socket, too
	c := pgcluster.StartT(t, pgcluster.Options{Dir: dir})
	if c.Dir() != dir {
		t.Errorf("directory is %s", c.Dir())
	}
	if got := show[string](t, connect(t, c.DSN("postgres")), "SELECT current_setting('data_directory')"); got != filepath.Join(dir, "data") {
		t.Errorf("data is in %s", got)
	}
}

func TestBadSettingIsReported(t *testing.T) {
	t.Parallel()
	_, err := pgcluster.Start(t.Context(), pgcluster.Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("the error does not show the server's reason: %v", err)
	}
}

const childEnv = "PGCLUSTER_TEST_CHILD"

// orphanMaker starts a cluster, tells its pid and directory, and waits to be killed.
func orphanMaker() int {
	c, err := pgcluster.Start(context.Background(), pgcluster.Options{})
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	if _, err := os.Stdout.WriteString(strconv.Itoa(c.Pid()) + " " + c.Dir() + "\n"); err != nil {
		return 1
	}
	select {}
}

func TestServerEndsWithItsParent(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir string
	if _, err := fmt.Fscanln(out, &pid, &dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // the server may still be writing its last lines
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !gone(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("postgres %d still runs after its parent was killed", pid)
		}
		<-tick.C
	}
}

// gone reports whether a process has ended, also when nobody has waited for it yet.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(b), ") Z ")
}
