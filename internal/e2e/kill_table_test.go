package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
)

// killRows is the whole table. What kills a coordinator comes with one rival and with two; of the rest, which restarts a
// Postgres, every other row has two.
func killRows() []killRow {
	var rows []killRow
	add := func(direction string, steps []string) {
		for n, step := range steps {
			for m, victim := range killVictims {
				rivals := []int{1, 2}
				if victim != killedServer && victim != silentServer {
					rivals = []int{1 + (n+m)%2}
				}
				for _, k := range rivals {
					rows = append(rows, killRow{direction: direction, step: step, victim: victim, rivals: k})
				}
			}
		}
	}
	add(api.CommandCutover, cutover.Steps)
	commits := func(direction, step, relay, app, after string, wants [5]string) {
		for i, victim := range []string{lateCommit, waitingCommit, lostCommit, unansweredCommit, unansweredKilled} {
			t := killTrick{relay: relay, app: app, after: after, do: []torture.Trick{torture.Late, torture.Late, torture.Lost, torture.Unanswered, torture.Unanswered}[i], want: wants[i]}
			for rivals := 1; rivals <= 2; rivals++ {
				rows = append(rows, killRow{direction: direction, step: step, victim: victim, rivals: rivals, trick: &t})
			}
		}
	}
	// The decision, and a shard that opens after it.
	commits(api.CommandCutover, "commit", torture.AtSource, "rehome gate fence", "", [5]string{"source", "target", "source", "target", "target"})
	commits(api.CommandCutover, "a shard's commit", "s1", "rehome gate shard", cutover.StepCommitting, [5]string{"target", "target", "target", "target", "target"})
	add(api.CommandRollback, cutover.RollbackSteps)
	commits(api.CommandRollback, "commit", torture.AtSource, "rehome gate fence", "", [5]string{"target", "source", "target", "source", "source"})
	// A shard that closes before the decision: until that, the target has the authority.
	commits(api.CommandRollback, "a shard's commit", "s1", "rehome gate fence", "", [5]string{"target", "target", "target", "target", "target"})
	return rows
}

// TestKillTable kills coordinator, source, shard and control database at every step, with rivals, and is late with
// COMMITs; the witness says what became of it. REHOME_KILL_TABLE names the file for the table of all rows; otherwise a
// few are drawn. With REHOME_KILL_SECONDS no further row begins after that time, and those that were
// played are any of all.
func TestKillTable(t *testing.T) {
	t.Parallel()
	rows := killRows()
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	file := os.Getenv("REHOME_KILL_TABLE")
	lanes := envInt(t, "REHOME_KILL_LANES", 2)
	if only := os.Getenv("REHOME_KILL_ONLY"); only != "" {
		rows = keep(rows, only)
	} else if file == "" {
		rows, lanes = sample(rows), 1
	}
	limit := time.Duration(envInt(t, "REHOME_KILL_SECONDS", 0)) * time.Second
	began := time.Now()
	queue := newKillQueue(rows)
	var mu sync.Mutex
	var results []killResult
	t.Run("lanes", func(t *testing.T) {
		for n := range lanes {
			t.Run(fmt.Sprint(n+1), func(t *testing.T) {
				t.Parallel()
				r := newKillRig(t)
				for {
					row, ok := queue.next(r.world != nil && r.world.target)
					if !ok {
						break
					}
					if limit > 0 && time.Since(began) > limit {
						break
					}
					res := r.play(row)
					t.Logf("%s: %s after %s, open: %s", row, res.outcome, res.resolved.Round(time.Millisecond), res.open)
					mu.Lock()
					results = append(results, res)
					mu.Unlock()
				}
				if r.world != nil {
					source, shards := r.world.witness.Acknowledged()
					t.Logf("in the last world the source acknowledged %d writes, the shards %d; mishaps %v", source, shards, r.world.witness.Mishaps())
				}
			})
		}
	})
	if len(results) < len(rows) && limit == 0 {
		t.Errorf("%d of %d rows were played", len(results), len(rows))
	}
	table := killTable(results)
	t.Log("\n" + table)
	if file != "" && !t.Failed() {
		if err := os.WriteFile(file, []byte(killHead(len(results), len(rows), time.Since(began))+table), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// sampleRows is what fits among the other tests: some seconds each.
const sampleRows = 3

// sample keeps the first rows, with another victim each.
func sample(rows []killRow) []killRow {
	seen := map[string]bool{}
	var out []killRow
	for _, row := range rows {
		if !seen[row.victim] && len(out) < sampleRows {
			seen[row.victim] = true
			out = append(out, row)
		}
	}
	return out
}

func keep(rows []killRow, only string) []killRow {
	var out []killRow
	for _, row := range rows {
		if strings.Contains(row.String(), only) {
			out = append(out, row)
		}
	}
	return out
}

// killQueue hands rows out, those first that begin where a world stands.
type killQueue struct {
	mu   sync.Mutex
	rows map[bool][]killRow // whether they begin at the target
}

func newKillQueue(rows []killRow) *killQueue {
	q := &killQueue{rows: map[bool][]killRow{}}
	for _, row := range rows {
		from := row.direction == api.CommandRollback
		q.rows[from] = append(q.rows[from], row)
	}
	return q
}

func (q *killQueue) next(target bool) (killRow, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, from := range []bool{target, !target} {
		if rows := q.rows[from]; len(rows) > 0 {
			q.rows[from] = rows[1:]
			return rows[0], true
		}
	}
	return killRow{}, false
}

func killHead(played, rows int, took time.Duration) string {
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	return fmt.Sprintf(`# What was killed at every step

Written by `+"`make kill-table`"+`: %d of %d rows in %s, %s, %s, rehome %s.

Three servers in processes of their own, a source, two shards and a control database; clients write to the source and to each shard all the time. After each row: no two sides
ever accepted writes at one time, every acknowledged write is there once, and the open side is the recorded one.

- *after*: the step that the coordinator had just done; *commit*: while the message of the decision, or that of a shard, was
  on its way.
- *rivals*: servers that took the work over at once, as if the lease of the coordinator's server had run out then (a lease
  lasts 10 s). Two: the second while the first resolved. A coordinator that lives on resolves beside them.
- *resolved*: from the death to the recorded outcome, restart of what was killed included. The shards are open, or closed,
  by then.
- *silent*: the process is stopped with its sockets open (SIGSTOP), and wakes up after the resolution.

`, played, rows, took.Round(time.Second), postgresVersion(), runtime.Version(), strings.TrimSpace(string(commit)))
}

func postgresVersion() string {
	if shared == nil {
		return "Postgres"
	}
	out, err := exec.Command(filepath.Join(shared.BinDir(), "postgres"), "--version").Output()
	if err != nil {
		return fmt.Sprintf("Postgres %d", shared.Version())
	}
	return strings.TrimSpace(string(out))
}

func killTable(results []killResult) string {
	order := map[string]int{}
	for i, row := range killRows() {
		order[row.String()] = i
	}
	slices.SortFunc(results, func(a, b killResult) int { return order[a.String()] - order[b.String()] })
	var b strings.Builder
	b.WriteString("| direction | after | killed | rivals | outcome | resolved | open afterwards |\n|---|---|---|---:|---|---:|---|\n")
	var longest, sum time.Duration
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %d ms | %s |\n", r.direction, r.step, r.victim, r.rivals, r.outcome, r.resolved.Milliseconds(), r.open)
		longest = max(longest, r.resolved)
		sum += r.resolved
	}
	if n := len(results); n > 0 {
		fmt.Fprintf(&b, "\nThe longest resolution took %d ms, the average one %d ms.\n", longest.Milliseconds(), (sum / time.Duration(n)).Milliseconds())
	}
	return b.String()
}
