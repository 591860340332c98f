package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// TestExitCodes holds the command line's contract at the process: a script can tell what happened by the exit code, a
// person by the message.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	inst := newInstallation(t, pgcluster.NewDatabase(t, shared))
	inst.addShards(pgcluster.StartT(t, pgcluster.Options{}))
	inst.must("create", "acme", "--owner", "owner@example.com")
	src := pgcluster.NewDatabase(t, pgcluster.StartT(t, pgcluster.Options{Fsync: true})) // the decision of a cutover must be durable
	execSQL(t, open(t, src), goodTable)
	from, to := src.Reveal(), inst.url+"/acme"

	type call struct {
		exit int
		code string // of the problem; "" if it does not matter
		args []string
	}
	check := func(t *testing.T, inst *installation, c call) {
		t.Helper()
		p := inst.refused(c.exit, c.args...)
		if c.code != "" && p.Code != c.code {
			t.Errorf("rehome %s: code %q, want %q (%s)", strings.Join(c.args, " "), p.Code, c.code, p.Detail)
		}
		_, errs, _ := inst.run(c.args...)
		if !strings.Contains(errs, "hint:") {
			t.Errorf("rehome %s: no hint what to do:\n%s", strings.Join(c.args, " "), errs)
		}
		noneShows(t, map[string]string{"the problem": p.Detail + p.Hint, "stderr": errs}, passwordOf(t, src), "half-Way-Pa55", "shard-Pa55-Typo")
	}
	group := func(name string, inst *installation, calls ...call) {
		t.Run(name, func(t *testing.T) {
			for _, c := range calls {
				check(t, inst.in(t), c)
			}
		})
	}

	group("usage", inst,
		call{2, "", []string{"migrate-all"}},
		call{2, "", []string{"create"}},
		call{2, "", []string{"shards", "--sideways"}},
		call{2, "", []string{"create", "Not A Name"}},
		call{2, "", []string{"preflight", "--to", to}},
		call{2, "bad-accept", moveArgs("preflight", from, to, "--accept", "all")},
		call{2, "bad-table-key", moveArgs("preflight", from, to, "--table-key", "notes")},
		call{2, "source-not-supported", moveArgs("preflight", "https://hosted.example/acme", to)},
		call{2, "bad-source", moveArgs("preflight", "postgres://me:half-Way-Pa55@[half/acme", to)},
		call{2, "otp-flags", moveArgs("start-replication", from, to, "--otp", "12345678")},
		call{2, "bad-phase", []string{"replication-progress", "--until", "done"}},
	)
	group("not found", inst,
		call{5, "", moveArgs("preflight", from, inst.url+"/nobody")},
		call{5, "", moveArgs("start-replication", from, inst.url+"/nobody", "--request-otp")},
		call{5, "", []string{"realms", "--db", inst.url + "/nobody"}},
		call{5, "no-replication", []string{"cutover", "--request-otp"}},
		call{5, "", []string{"replication-progress", "abcdefghijkl"}},
		call{5, "", []string{"remove-shard", "s9", "--yes"}},
	)
	// Elsewhere there is no rehome.key, and the secret is another one.
	stranger := inst.with("REHOME_SECRET=another secret, as long as the right one")
	stranger.dir = t.TempDir()
	group("not authorised", stranger,
		call{4, "bad-credentials", []string{"shards"}},
		call{4, "bad-credentials", moveArgs("preflight", from, to)},
		call{4, "bad-credentials", moveArgs("start-replication", from, to, "--request-otp")},
	)
	group("no code", inst, call{4, "code-needed", moveArgs("start-replication", from, to)})

	inst.mustApproved(moveArgs("start-replication", from, to)...)
	inst.waitPhase(tenant.InSync)
	inst.must("adopt", "hosted", from)
	group("in sync", inst,
		call{3, "not-verified", []string{"cutover", "--request-otp"}},
		call{6, "", []string{"rollback", "--request-otp"}},
		call{6, "", []string{"complete", "--yes"}},
		call{6, "replication-exists", moveArgs("start-replication", from, to, "--request-otp")},
		call{3, "", []string{"remove-shard", "s1", "--yes"}},
		call{1, "postgres-unreachable", []string{"add-shard", "s2", shared.DSNAs("rehome_admin", "shard-Pa55-Typo", "postgres").Reveal()}},
		call{6, "", []string{"add-shard", "s1", shared.DSN("postgres").Reveal()}},
		call{3, "source-still-writes", []string{"redirect", "--from", inst.url + "/hosted", "--to", to, "--request-otp"}},
	)
	t.Run("timed out", func(t *testing.T) { cutoverInTheWay(t, inst.in(t), src) })
	t.Run("interrupted", func(t *testing.T) { watchInterrupted(t, inst.in(t)) })
	inst.must("pause-replication", "--reason", "the test wants it")
	group("paused", inst,
		call{6, "", []string{"cutover", "--request-otp"}},
		call{6, "", []string{"verify"}},
	)
	inst.must("resume-replication")
	inst.waitPhase(tenant.InSync)
	inst.must("cancel-replication", "--yes")
	group("cancelled", inst,
		call{5, "no-replication", []string{"cutover", "--request-otp"}},
		call{5, "no-replication", []string{"cancel-replication", "--yes"}},
	)
}

// cutoverInTheWay: a transaction that stays open keeps the fence from closing. The attempt is taken back (exit 7), the
// report names who was in the way, and the source takes writes as before.
func cutoverInTheWay(t *testing.T, inst *installation, src tenant.DSN) {
	inst.must("verify")
	writer := open(t, src)
	execSQL(t, writer, `BEGIN; UPDATE notes SET body = 'in the way' WHERE id = 1`)
	out, errs, code := inst.approved("cutover", "--max-pause", "1s", "-o", "json")
	if code != 7 {
		t.Fatalf("exit %d, want 7\n%s%s", code, out, errs)
	}
	var report api.CutoverReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if report.Outcome != "source" || !slices.ContainsFunc(report.Culprits, func(c string) bool { return strings.Contains(c, "in the way") }) {
		t.Errorf("the report: %+v", report)
	}
	execSQL(t, writer, `COMMIT`)
	execSQL(t, writer, `SET statement_timeout = '5s'; UPDATE notes SET body = 'free' WHERE id = 1`)
	inst.waitPhase(tenant.InSync)
}

// watchInterrupted: Ctrl-C ends the watching, not the work.
func watchInterrupted(t *testing.T, inst *installation) {
	cmd := exec.CommandContext(t.Context(), binary, "replication-progress", "--watch", "-o", "json")
	cmd.Dir, cmd.Env = inst.dir, inst.env()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(errs.String(), "goes on") {
		t.Errorf("exit %d, want 130, and stderr says %q", code, &errs)
	}
	if phase := inst.progress().Phase; phase != tenant.InSync {
		t.Errorf("the replication is %s", phase)
	}
}
