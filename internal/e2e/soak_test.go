package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/tenant"
)

// soakFigures are what must not grow while the writes are steady.
type soakFigures struct {
	at        time.Duration
	slotWAL   int64 // bytes that the slot holds back at the source
	rss       int   // MiB, of the larger server
	heap      int64 // bytes in use in it
	routines  int   // of both servers
	fds       int   // of both servers
	progress  int64 // rows of the shard that has most
	carry     int64 // rows waiting for another shard, all together
	spill     int64 // bytes in the servers' temporary files
	lagMillis float64
}

// soakBounds say how much larger a figure may be in the last third than in the first, beyond a tenth: what a collection of
// garbage, a checkpoint or one large transaction more makes of it.
var soakBounds = struct {
	slotWAL, heap, progress, carry, spill int64
	rss, routines, fds                    int
}{slotWAL: 48 << 20, heap: 32 << 20, progress: 300, carry: 50, spill: 16 << 20, rss: 48, routines: 40, fds: 20}

// TestSoak writes at a steady rate for REHOME_SOAK_SECONDS and shows the figures at the start, in the middle and in the end.
func TestSoak(t *testing.T) {
	if os.Getenv("REHOME_SOAK_SECONDS") == "" && os.Getenv("REHOME_LONG") == "" {
		return // make soak, make long
	}
	t.Parallel()
	seconds := envInt(t, "REHOME_SOAK_SECONDS", 15)
	size := tortureSize{length: time.Duration(seconds) * time.Second, realms: 16, bulk: 5000, big: 2000, clients: 5, think: 50 * time.Millisecond, settle: patience}
	r := newTortureRig(t, uint64(envInt(t, "REHOME_TORTURE_SEED", 1)), size)
	r.start(nil)
	r.await("in sync", func(s seen) bool { return s.phase == tenant.InSync })
	var all []soakFigures
	conns := map[string]*pgx.Conn{"source": open(t, r.src)}
	for name, c := range r.shards {
		conns[name] = open(t, c.DSN("db"))
	}
	every := max(size.length/120, time.Second)
	began := time.Now()
	acked := r.load.Acked()
	for time.Since(began) < size.length {
		r.await("the next look", func(seen) bool { return time.Since(began) >= time.Duration(len(all))*every })
		f := r.figures(conns)
		f.at = time.Since(began)
		all = append(all, f)
	}
	rate := float64(r.load.Acked()-acked) / time.Since(began).Seconds()
	r.finish()
	t.Logf("%.0f transactions a second over %s\n%s", rate, time.Since(began).Round(time.Second), soakTable(all))
	if rate < 10 {
		t.Errorf("%.0f transactions a second show nothing", rate)
	}
	first, last := worst(all[:len(all)/3]), worst(all[len(all)*2/3:])
	grown := func(what string, from, to, slack int64) {
		if to > from+from/10+slack {
			t.Errorf("%s grew from %d to %d; at most %d more than a tenth are allowed", what, from, to, slack)
		}
	}
	grown("WAL of the slot", first.slotWAL, last.slotWAL, soakBounds.slotWAL)
	grown("RSS (MiB)", int64(first.rss), int64(last.rss), int64(soakBounds.rss))
	grown("heap", first.heap, last.heap, soakBounds.heap)
	grown("goroutines", int64(first.routines), int64(last.routines), int64(soakBounds.routines))
	grown("open files", int64(first.fds), int64(last.fds), int64(soakBounds.fds))
	grown("progress rows", first.progress, last.progress, soakBounds.progress)
	grown("carry rows", first.carry, last.carry, soakBounds.carry)
	grown("spilled bytes", first.spill, last.spill, soakBounds.spill)
}

func (r *tortureRig) figures(conns map[string]*pgx.Conn) (f soakFigures) {
	t := r.t
	f.slotWAL = scalar[int64](t, conns["source"], `SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots WHERE database = current_database()`)
	for name := range r.shards {
		c := conns[name]
		f.progress = max(f.progress, scalar[int64](t, c, `SELECT count(*) FROM rehome.progress`))
		if scalar[bool](t, c, `SELECT to_regclass('rehome.carry') IS NOT NULL`) {
			f.carry += scalar[int64](t, c, `SELECT count(*) FROM rehome.carry`)
		}
	}
	for _, n := range r.nodes {
		own := figuresOf(n.process())
		f.rss = max(f.rss, own.rssMiB)
		f.fds += own.fds
		f.heap = max(f.heap, int64(metric(t, n.url, "go_memstats_heap_inuse_bytes")))
		f.routines += int(metric(t, n.url, "go_goroutines"))
		f.spill += openTemporary(n.process())
	}
	f.lagMillis = r.watch.now().lagMillis
	return f
}

// openTemporary is the size of a process' temporary files, also of those that have no name any more.
func openTemporary(pid int) (sum int64) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, fd := range fds {
		name, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil || !strings.HasPrefix(name, os.TempDir()) || strings.HasSuffix(name, ".log") {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
	}
	return sum
}

// metric reads one figure of a server's own.
func metric(t *testing.T, url, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), " "); ok && key == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("%s/metrics does not tell of %s", url, name)
	return 0
}

// worst has the largest of each figure.
func worst(all []soakFigures) (w soakFigures) {
	for _, f := range all {
		w.slotWAL, w.heap, w.progress, w.carry, w.spill = max(w.slotWAL, f.slotWAL), max(w.heap, f.heap), max(w.progress, f.progress), max(w.carry, f.carry), max(w.spill, f.spill)
		w.rss, w.routines, w.fds, w.lagMillis = max(w.rss, f.rss), max(w.routines, f.routines), max(w.fds, f.fds), max(w.lagMillis, f.lagMillis)
	}
	return w
}

// soakTable shows each third's median and worst.
func soakTable(all []soakFigures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %-7s %10s %8s %9s %10s %6s %9s %6s %9s %8s\n", "part", "", "slot WAL", "RSS", "heap", "goroutines", "files", "progress", "carry", "spilled", "lag")
	line := func(part, what string, f soakFigures) {
		fmt.Fprintf(&b, "%-8s %-7s %7.1f MB %4d MiB %6.1f MB %10d %6d %9d %6d %6.1f MB %5.0f ms\n", part, what, float64(f.slotWAL)/1e6, f.rss, float64(f.heap)/1e6, f.routines, f.fds, f.progress, f.carry, float64(f.spill)/1e6, f.lagMillis)
	}
	n := len(all)
	for i, part := range []string{"start", "middle", "end"} {
		third := all[n*i/3 : n*(i+1)/3]
		line(part, "median", median(third))
		line("", "worst", worst(third))
	}
	return b.String()
}

func median(all []soakFigures) soakFigures {
	mid := func(of func(soakFigures) float64) float64 {
		v := make([]float64, 0, len(all))
		for _, f := range all {
			v = append(v, of(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return soakFigures{
		slotWAL: int64(mid(func(f soakFigures) float64 { return float64(f.slotWAL) })), rss: int(mid(func(f soakFigures) float64 { return float64(f.rss) })),
		heap: int64(mid(func(f soakFigures) float64 { return float64(f.heap) })), routines: int(mid(func(f soakFigures) float64 { return float64(f.routines) })),
		fds: int(mid(func(f soakFigures) float64 { return float64(f.fds) })), progress: int64(mid(func(f soakFigures) float64 { return float64(f.progress) })),
		carry: int64(mid(func(f soakFigures) float64 { return float64(f.carry) })), spill: int64(mid(func(f soakFigures) float64 { return float64(f.spill) })),
		lagMillis: mid(func(f soakFigures) float64 { return f.lagMillis }),
	}
}

// start begins to write and to replicate, and to break what plan says while it does.
func (r *tortureRig) start(plan []torture.Fault) {
	t := r.t
	a := r.nodes["a"]
	r.load = torture.NewWorkload(torture.Config{
		DSN: r.clients, Seed: r.seed, Realms: r.size.realms, Clients: r.size.clients, Think: r.size.think, Big: r.size.big,
		ToastMoves: os.Getenv("REHOME_TORTURE_NO_TOAST") == "", DDL: os.Getenv("REHOME_TORTURE_NO_DDL") == "",
	})
	writing, stopWriting := context.WithCancel(t.Context())
	watching, stopWatching := context.WithCancel(t.Context())
	var writers, eyes errgroup.Group
	writers.Go(func() error { return r.load.Run(writing) })
	r.stopWriting = func() error { stopWriting(); return writers.Wait() }
	r.stopWatching = func() { stopWatching(); _ = eyes.Wait() } // it has no error of its own
	t.Cleanup(func() { _ = r.stopWriting(); r.stopWatching() }) // its error was seen, or another was
	if len(plan) > 0 {
		r.net.Usually("source", 0, r.size.copyRate)
	}
	a.mustApproved(moveArgs("start-replication", r.from.Reveal(), a.url+"/db", "--realm-key", torture.RealmKey, "--reference", torture.ReferenceTable)...)
	r.watch = newWatcher(r)
	eyes.Go(func() error { r.watch.run(watching); return nil })
	if len(plan) > 0 {
		r.torment(plan)
		r.net.Usually("source", 0, 0)
	}
}

// finish stops the writers, waits until everything is applied and compares both sides.
func (r *tortureRig) finish() {
	t := r.t
	calm := time.Now()
	if err := r.stopWriting(); err != nil {
		t.Fatal(err)
	}
	end := scalar[tenant.LSN](t, open(t, r.src), `SELECT pg_current_wal_insert_lsn()::text`)
	r.await(fmt.Sprint("in sync, and everything before ", end, " applied"), func(s seen) bool { return s.phase == tenant.InSync && s.least >= end })
	t.Logf("%s after the last write everything is applied", time.Since(calm).Round(100*time.Millisecond))
	r.stopWatching()
	r.tally.still, r.tally.rss, r.tally.slot = r.watch.still, r.watch.rss, r.watch.slot
	r.judge()
}
