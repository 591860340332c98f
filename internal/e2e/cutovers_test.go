package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// cutoverTries is how often a round is asked for: an attempt that does not fit into its pause restores the former state,
// and nothing is wrong with that but the time it takes.
const cutoverTries = 4

// cutoversRig is two servers with their gateways, a source and three shards, clients by Postgres and by HTTP, and a witness
// that writes to both sides all the time.
type cutoversRig struct {
	t       *testing.T
	one     *installation
	witness *torture.Witness
	clients *crowd
	side    bool // true: the shards
	rounds  []round
	retries int
	from    []string
}

// round is one move of the authority as it was measured.
type round struct {
	kind         string
	pause        float64 // ms, from the report
	steps        []tenant.StepTime
	direct, http time.Duration // the longest wait of one write
	silence      time.Duration // without any acknowledged write
	after, till  time.Duration
}

// TestCutovers moves a database there and back again, REHOME_CUTOVERS times (once among the tests), while clients write
// over Postgres and over HTTP. No acknowledged write is lost or doubled, the sides are never open both, no request of a
// client of the gateway fails; it reports how long the writes paused.
func TestCutovers(t *testing.T) {
	n := envInt(t, "REHOME_CUTOVERS", 0)
	clients, think := 32, 100*time.Millisecond
	if n == 0 {
		t.Parallel()
		n, clients, think = 1, 6, 60*time.Millisecond
	}
	r := newCutoversRig(t, clients, think)
	for range n {
		r.move(api.CommandCutover)
		r.move(api.CommandRollback)
	}
	r.clients.stop()
	r.report()
}

func newCutoversRig(t *testing.T, clients int, think time.Duration) *cutoversRig {
	t.Helper()
	r := &cutoversRig{t: t}
	settings := map[string]string{"max_connections": "200", "max_replication_slots": "20", "max_wal_senders": "20"}
	source := pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: settings})
	src := pgcluster.NewDatabase(t, source)
	conn := open(t, src)
	execSQL(t, conn, torture.WitnessSQL)
	control := pgcluster.NewDatabase(t, shared)
	r.one = newInstallation(t, control, "REHOME_SERVER_NAME=one")
	two := laterServer(t, r.one, control, "REHOME_SERVER_NAME=two")
	two.log = r.one.log
	two.start()
	t.Cleanup(two.kill)
	shards, names := map[string]*pgcluster.Cluster{}, []string{"s1", "s2", "s3"}
	var clusters []*pgcluster.Cluster
	for _, name := range names {
		shards[name] = pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: settings})
		clusters = append(clusters, shards[name])
	}
	r.one.addShards(clusters...)
	r.clients = newCrowd(t, think)
	before, after := r.clients.application(false), r.clients.application(true)
	r.one.must("create", "db", "--owner", "owner@example.com", "--upstream", after, "--source-upstream", before)
	var placement tenant.Placement
	getJSON(t, r.one, "/v1/databases/db/placement", &placement)
	dsns := map[string]tenant.DSN{}
	for name, c := range shards {
		dsns[name] = c.DSN("db")
	}
	r.one.mustApproved(moveArgs("start-replication", src.Reveal(), r.one.url+"/db")...)
	r.one.waitPhase(tenant.InSync)
	r.witness = torture.NewWitness(src, dsns, placement.ShardOf, 25*time.Millisecond)
	wctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.witness.Run(wctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.from = []string{src.Reveal(), r.one.url + "/db"}
	r.clients.start(r.witness, src, dsns, placement.ShardOf, clients, []string{r.one.url + "/db", two.url + "/db"})
	r.clients.writeOn(t)
	return r
}

// move verifies, and moves the authority with a code from the mailbox.
func (r *cutoversRig) move(kind string) {
	r.t.Helper()
	control := open(r.t, r.one.control)
	for try := 1; ; try++ {
		eventually(r.t, "a clean verification", func() bool {
			out, errs, code := r.one.run("verify", "-o", "json")
			var v tenant.Verification
			if json.Unmarshal([]byte(out), &v) == nil && v.ID != "" && !v.Clean {
				r.t.Fatalf("both sides differ: %s", out)
			}
			if code != 0 {
				r.t.Logf("verify: exit %d, %s", code, errs)
			}
			return code == 0
		})
		// So many codes in so short a time are refused to people.
		execSQL(r.t, control, `UPDATE rehome_control.challenges SET created_at = created_at - interval '2 hours'`)
		args := append([]string{kind}, "--to", r.from[1])
		if kind == api.CommandCutover {
			args = moveArgs(kind, r.from[0], r.from[1])
		}
		id, code := r.one.request(args...)
		m := round{kind: kind, after: r.witness.Now()}
		out, errs, exit := r.one.run(append(args, "--otp-id", id, "--otp", code, "-o", "json")...)
		var rep api.CutoverReport
		if err := json.Unmarshal([]byte(out), &rep); exit == 0 && err != nil {
			r.t.Fatalf("%s answered %q: %v", kind, out, err)
		}
		if exit == 7 && try < cutoverTries {
			r.t.Logf("%s: taken back: %s", kind, errs)
			r.retries++
			continue
		}
		if exit != 0 {
			r.t.Fatalf("rehome %s: exit %d\n%s%s", kind, exit, out, errs)
		}
		r.clients.writeOn(r.t)
		m.till, m.pause, m.steps = r.witness.Now(), rep.PauseMillis, rep.Steps
		r.side = kind == api.CommandCutover
		r.witness.Decided(torture.Decision{Name: kind, Target: r.side, After: m.after, Till: m.till})
		m.direct, m.http = r.clients.longest(m.after, m.till)
		r.rounds = append(r.rounds, m)
		r.t.Logf("%-8s pause %6.1f ms; the longest wait of one write: directly %d ms, over HTTP %d ms; %s", kind, m.pause, m.direct.Milliseconds(), m.http.Milliseconds(), stepText(m.steps))
		break
	}
	if err := r.witness.Check(r.t.Context(), false, r.side); err != nil {
		r.t.Fatalf("after %s: %v", kind, err)
	}
	if failed := r.clients.failures(); len(failed) > 0 {
		r.t.Fatalf("after %s: %d requests failed at the gateway, the first: %s", kind, len(failed), failed[0])
	}
}

func stepText(steps []tenant.StepTime) string {
	var parts []string
	for _, s := range steps {
		parts = append(parts, fmt.Sprintf("%s %.0f", s.Step, s.Millis))
	}
	return strings.Join(parts, ", ")
}

// report says what was measured.
func (r *cutoversRig) report() {
	t := r.t
	silences := r.witness.Pauses()
	for i := range r.rounds {
		r.rounds[i].silence = silences[i]
	}
	source, shards := r.witness.Acknowledged()
	var b strings.Builder
	fmt.Fprintf(&b, "%d moves, %d attempts were taken back and repeated; acknowledged writes: %d at the source, %d at the shards; requests over HTTP: %d, failed: %d\n",
		len(r.rounds), r.retries, source, shards, r.clients.requests.Load(), len(r.clients.failures()))
	for _, kind := range []string{api.CommandCutover, api.CommandRollback} {
		var pause, direct, http, silence []float64
		steps := map[string][]float64{}
		for _, m := range r.rounds {
			if m.kind != kind {
				continue
			}
			pause = append(pause, m.pause)
			direct, http, silence = append(direct, millis(m.direct)), append(http, millis(m.http)), append(silence, millis(m.silence))
			for _, s := range m.steps {
				steps[s.Step] = append(steps[s.Step], s.Millis)
			}
		}
		if len(pause) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s, ms                       p50    p95    max\n", kind)
		for _, line := range []struct {
			what string
			of   []float64
		}{{"pause by the report", pause}, {"longest write, directly", direct}, {"longest request, HTTP", http}, {"no write acknowledged", silence}} {
			fmt.Fprintf(&b, "  %-26s %6.0f %6.0f %6.0f\n", line.what, quantile(line.of, .5), quantile(line.of, .95), quantile(line.of, 1))
		}
		for _, name := range slices.SortedFunc(maps.Keys(steps), func(a, b string) int { return int(quantile(steps[b], .5) - quantile(steps[a], .5)) }) {
			fmt.Fprintf(&b, "    step %-21s %6.0f %6.0f %6.0f\n", name, quantile(steps[name], .5), quantile(steps[name], .95), quantile(steps[name], 1))
		}
	}
	t.Log("\n" + b.String())
	if m := r.witness.Mishaps(); len(m) > 0 {
		t.Logf("errors of the witness' clients that were no refusals: %v", m)
	}
	if f := r.clients.mishaps(); len(f) > 0 {
		t.Errorf("%d writes of direct clients met an error that is no refusal, the first: %s", len(f), f[0])
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// quantile is the smallest value that at least the share q of all does not exceed.
func quantile(of []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return s[max(int(math.Ceil(q*float64(len(s))))-1, 0)]
}
