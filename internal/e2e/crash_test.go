package e2e

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// crashRig is a move of pgbench's database whose every part can be killed.
type crashRig struct {
	*installation
	source *pgcluster.Cluster
	src    tenant.DSN
	shards []*pgcluster.Cluster
	args   []string
}

func newCrashRig(t *testing.T, scale int) *crashRig {
	t.Helper()
	r := &crashRig{source: pgcluster.StartT(t, pgcluster.Options{Fsync: true})}
	r.src = pgcluster.NewDatabase(t, r.source)
	initPgbench(t, r.source, r.src, scale)
	for range 2 {
		r.shards = append(r.shards, pgcluster.StartT(t, pgcluster.Options{Fsync: true})) // a killed shard must not lose what it had on disk
	}
	r.installation = newInstallation(t, pgcluster.NewDatabase(t, shared))
	r.addShards(r.shards...)
	r.must("create", "bench", "--realm-key", "bid", "--owner", "owner@example.com")
	r.args = moveArgs("start-replication", r.src.Reveal(), r.url+"/bench", append([]string{"--realm-key", "bid", "--fix-identity"}, accepted...)...)
	return r
}

// load writes at a steady rate until it is stopped or refused.
func (r *crashRig) load() *pgbench {
	r.t.Helper()
	return startPgbench(r.t, r.source, r.src, "-n", "-c", "4", "-j", "1", "-R", "150", "-T", "600")
}

func (b *pgbench) stop() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// clean verifies through the command line; the stream may be coming back just now.
func (r *crashRig) clean(after string) {
	r.t.Helper()
	r.waitPhase(tenant.InSync)
	v := mustJSON[tenant.Verification](r.installation, "verify")
	if !v.Clean || v.Rows == 0 {
		r.t.Fatalf("after %s: %+v", after, v)
	}
	r.t.Logf("after %s: clean, %d rows at %s", after, v.Rows, v.LSN)
}

// TestEverythingDiesOnce kills the server in every phase, the source and a shard, under load. The replication goes on by
// itself each time, and both sides are equal.
func TestEverythingDiesOnce(t *testing.T) {
	t.Parallel()
	r := newCrashRig(t, 2)
	load := r.load()
	r.mustApproved(r.args...)
	r.waitPhase(tenant.Copying, tenant.CatchingUp)
	r.kill()
	r.start()
	r.clean("kill -9 during the copy")

	r.kill()
	r.start()
	r.clean("kill -9 while streaming")

	if err := r.shards[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.shards[0].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.clean("kill and restart of a shard")

	load.stop()
	if err := r.source.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	load = r.load()
	r.clean("restart of the source")

	r.stop()
	r.start()
	r.clean("orderly stop and start of the server")
	load.stop()
	r.clean("the end of the load") // its position lies behind the last write, so that the shards have all of it
	checkTPCB(t, r.installation, r.src, r.shards)
}

// TestServerDiesBehindTheFence kills the server between the fence and the decision. The source opens again by itself,
// the next server settles the attempt at the gate, and the cutover can be had again.
func TestServerDiesBehindTheFence(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	r := newCrashRig(t, 1)
	r.mustApproved(r.args...)
	r.clean("start")
	load := r.load()

	// A lane that is stopped keeps the drain from ending, so that the server stands between fence and decision.
	shard := open(t, r.shards[1].DSN("bench"))
	lane := scalar[int](t, shard, `SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'rehome-lane-%'`)
	control := open(t, r.control)
	id, code := r.request("cutover", "--max-pause", "1m")
	type answer struct {
		out, errs string
		code      int
	}
	done := make(chan answer, 1)
	go func() {
		out, errs, code := r.run("cutover", "--max-pause", "1m", "--otp-id", id, "--otp", code)
		done <- answer{out, errs, code}
	}()
	eventually(t, "the attempt begins", func() bool {
		return scalar[bool](t, control, `SELECT EXISTS (SELECT FROM rehome_control.cutovers WHERE direction = 'cutover')`)
	})
	if err := syscall.Kill(lane, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(lane, syscall.SIGCONT) })
	fenced := open(t, r.src)
	execSQL(t, fenced, `SET lock_timeout = '300ms'`)
	// The fence itself, and not a row that a client of pgbench holds just now.
	eventually(t, "the fence stands", func() bool {
		return scalar[bool](t, fenced, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'pgbench_branches'::regclass AND mode = 'ShareRowExclusiveLock' AND granted)`)
	})
	if _, err := fenced.Exec(t.Context(), `UPDATE pgbench_branches SET filler = 'x' WHERE bid = 1`); err == nil {
		t.Fatal("the source accepts writes behind the fence")
	}
	if scalar[bool](t, control, `SELECT outcome IS NOT NULL FROM rehome_control.cutovers`) {
		t.Fatal("the cutover was decided before its server could be killed")
	}
	r.kill()
	killed := time.Now()
	eventually(t, "the source accepts writes again without any server", func() bool {
		_, err := fenced.Exec(t.Context(), `UPDATE pgbench_branches SET filler = 'y' WHERE bid = 1`)
		return err == nil
	})
	t.Logf("the source was open again %s after its coordinator died", time.Since(killed).Round(time.Millisecond))
	if err := syscall.Kill(lane, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	r.start()
	r.clean("kill -9 between fence and decision")
	if a := <-done; a.code == 0 {
		t.Errorf("the cutover whose server died is reported as done:\n%s%s", a.out, a.errs)
	}
	if side := scalar[string](t, control, `SELECT outcome FROM rehome_control.cutovers ORDER BY started_at LIMIT 1`); side != "source" {
		t.Errorf("the attempt's outcome is %q", side)
	}
	for i, c := range r.shards {
		if _, err := open(t, c.DSN("bench")).Exec(t.Context(), `UPDATE pgbench_branches SET bbalance = 0`); err == nil {
			t.Errorf("shard %d accepts writes though the source does", i+1)
		}
	}

	r.mustApproved("cutover")
	load.stop()
	r.waitPhase(tenant.CutOver)
	checkTPCB(t, r.installation, r.src, r.shards)
	if _, err := fenced.Exec(t.Context(), `UPDATE pgbench_branches SET filler = 'z' WHERE bid = 1`); err == nil {
		t.Error("the source accepts writes after the cutover")
	}
	for i, c := range r.shards {
		conn := open(t, c.DSN("bench"))
		if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.WithoutCancel(t.Context()), `UPDATE pgbench_branches SET filler = 'new'`)
			return err
		}); err != nil {
			t.Errorf("shard %d does not accept writes after the cutover: %v", i+1, err)
		}
	}
	commands := mustJSON[[]api.Replication](r.installation, "replications")
	if len(commands) != 1 || commands[0].State.Phase != tenant.CutOver {
		t.Errorf("replications: %+v", commands)
	}
}
