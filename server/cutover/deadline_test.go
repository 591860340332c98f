package cutover_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// missed runs a cutover that does not fit into its pause, demands that it names who was in the way, and that the former state
// is restored: the source takes writes again at once, no shard does, and the next attempt succeeds when free is done.
func missed(t *testing.T, w *world, inTheWay func() (named []string, free func()), at func(string) error) {
	t.Helper()
	ctx := t.Context()
	l := w.load(t)
	waitForWrites(t, l)
	var named []string
	var free func()
	begin := func() { named, free = inTheWay() }
	if at == nil {
		begin()
	}
	start := time.Now()
	const pause = 3 * time.Second
	rep, err := w.coordinator(t, func(step string) error {
		if at != nil && step == cutover.StepPrelock { // after the preflight, before the pause
			begin()
		}
		return nil
	}).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "missed", MaxPause: pause})
	took := time.Since(start)
	te := tenant.AsError(err)
	if te == nil || te.Kind.ExitCode() != 7 || te.Code != "cutover-timed-out" || rep.Outcome != cutover.OutcomeSource || rep.PauseMillis > 1000+float64(pause.Milliseconds()) {
		t.Errorf("error %v, report %+v", err, rep)
	}
	all := strings.Join(rep.Culprits, "\n")
	for _, n := range named {
		if !strings.Contains(all, n) {
			t.Errorf("%q is not named: %s", n, all)
		}
	}
	t.Logf("taken back after %s, paused for %.0f ms: %s", took.Round(time.Millisecond), rep.PauseMillis, all)
	if got := w.outcome(t, "missed"); got != cutover.OutcomeSource {
		t.Errorf("recorded as %s", got)
	}
	n := l.count(false)
	eventually(t, "writes at the source go on", func() bool { return l.count(false) > n+5 })
	free()
	_, err = w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "next", MaxPause: patient})
	must(t, err)
	waitForTarget(t, l)
	w.check(t, l, gate.SideTarget)
}

// afterPreflight lets missed begin what is in the way when the preflight is over.
func afterPreflight(string) error { return nil }

func TestStuckClientIsNamed(t *testing.T) {
	t.Parallel()
	limit(t)
	w := newWorld(t, 1)
	missed(t, w, func() ([]string, func()) {
		c := connect(t, w.job.Source)
		exec(t, c, "SET application_name = 'stuck app'; BEGIN; SELECT 1; UPDATE orders SET realm_id = realm_id /* forgotten */")
		return []string{"source: pid " + strconv.Itoa(int(c.PgConn().PID())), "stuck app", "idle in transaction", "forgotten"}, func() { exec(t, c, "ROLLBACK") }
	}, afterPreflight)
}

func TestTableLockIsNamed(t *testing.T) {
	t.Parallel()
	limit(t)
	w := newWorld(t, 1)
	missed(t, w, func() ([]string, func()) {
		c := connect(t, w.job.Source)
		exec(t, c, "BEGIN; LOCK TABLE orders_2026 IN ROW EXCLUSIVE MODE")
		return []string{"source: pid " + strconv.Itoa(int(c.PgConn().PID())), "LOCK TABLE orders_2026"}, func() { exec(t, c, "ROLLBACK") }
	}, afterPreflight)
}

func TestPreparedTransactionAfterThePreflightIsNamed(t *testing.T) {
	t.Parallel()
	limit(t)
	w := newWorld(t, 1)
	gid := "late " + w.job.SourceLabel + strconv.Itoa(int(time.Now().UnixNano()))
	missed(t, w, func() ([]string, func()) {
		c := connect(t, w.job.Source)
		exec(t, c, "BEGIN; UPDATE orders SET realm_id = realm_id; PREPARE TRANSACTION '"+gid+"'")
		return []string{"source: prepared transaction " + gid}, func() { exec(t, c, "ROLLBACK PREPARED '"+gid+"'") }
	}, afterPreflight)
}

// Whoever keeps a shard from applying what is left is named with its process, and so is the shard.
func TestBlockedShardIsNamed(t *testing.T) {
	t.Parallel()
	limit(t)
	w := newWorld(t, 2)
	seed := connect(t, w.job.Shards[1].DSN)
	must(t, gate.SetPass(t.Context(), seed, pass))
	exec(t, seed, "INSERT INTO entries VALUES ('locked', 'x')")
	missed(t, w, func() ([]string, func()) {
		c := connect(t, w.job.Shards[1].DSN)
		exec(t, c, "SET application_name = 'report'; BEGIN; SELECT FROM entries FOR UPDATE /* a report */")
		return []string{"shard eu-2: pid " + strconv.Itoa(int(c.PgConn().PID())), "a report"}, func() { exec(t, c, "ROLLBACK") }
	}, afterPreflight)
}

// A shard's server that stops in the pause is named, and holds nothing up at the source.
func TestSilentShardIsNamed(t *testing.T) {
	t.Parallel()
	limit(t)
	third, err := pgcluster.Start(t.Context(), pgcluster.Options{})
	must(t, err)
	t.Cleanup(func() { _ = third.Remove() })
	w := newWorld(t, 2)
	w.move(t, 1, third)
	missed(t, w, func() ([]string, func()) {
		group := processes(t, third)
		signal(t, group, syscall.SIGSTOP)
		t.Cleanup(func() { signal(t, group, syscall.SIGCONT) })
		return []string{"shard eu-2: it did not answer"}, func() { signal(t, group, syscall.SIGCONT) }
	}, afterPreflight)
}

// move puts a shard onto another cluster.
func (w *world) move(t *testing.T, i int, to *pgcluster.Cluster) {
	t.Helper()
	ctx := t.Context()
	dsn := pgcluster.NewDatabase(t, to)
	conn := connect(t, dsn)
	exec(t, conn, strings.Split(schemaSQL, "INSERT")[0])
	must(t, gate.InstallShard(ctx, conn, pass))
	_, err := gate.FenceShardTables(ctx, conn)
	must(t, err)
	w.job.Shards[i].DSN = dsn
	w.stream.shards = w.job.Shards
}

// processes lists a cluster's processes: the postmaster and its children.
func processes(t *testing.T, c *pgcluster.Cluster) []int {
	t.Helper()
	conn := connect(t, c.DSN("postgres"))
	var dir string
	must(t, conn.QueryRow(context.Background(), `SHOW data_directory`).Scan(&dir))
	raw, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	must(t, err)
	first, _, _ := strings.Cut(string(raw), "\n")
	main, err := strconv.Atoi(first)
	must(t, err)
	out := []int{main}
	raw, err = os.ReadFile("/proc/" + first + "/task/" + first + "/children")
	must(t, err)
	for f := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(f)
		must(t, err)
		out = append(out, pid)
	}
	return out
}

func signal(t *testing.T, pids []int, s syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		_ = syscall.Kill(pid, s) // a backend may have ended
	}
}
