package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/tenant"
)

// tortureLease is the servers' lease (server/supervisor): what is stopped for longer has lost its work to another.
const tortureLease = 10 * time.Second

// tortureSize says how hard a run is.
type tortureSize struct {
	length, gap, quiet time.Duration
	realms, bulk, big  int
	clients            int
	think              time.Duration
	copyRate           int // bytes a second of each connection to the source while it is copied
	settle             time.Duration
}

// TestTorture breaks everything at random, in the copy and in the stream, while a checked workload writes, and compares
// both sides in the end. REHOME_TORTURE_SECONDS is how long each seed takes, REHOME_TORTURE_SEEDS how many there are,
// REHOME_TORTURE_SEED the first of them.
func TestTorture(t *testing.T) {
	seconds := envInt(t, "REHOME_TORTURE_SECONDS", 0)
	size := tortureSize{
		length: time.Duration(seconds) * time.Second, gap: 4 * time.Second, quiet: 90 * time.Second,
		realms: 24, bulk: 60_000, big: 1000, clients: 6, think: 60 * time.Millisecond, copyRate: 700_000, settle: 4 * time.Minute,
	}
	if seconds == 0 { // as one of many tests
		t.Parallel()
		size = tortureSize{
			length: 10 * time.Second, gap: 1200 * time.Millisecond,
			realms: 16, bulk: 6_000, big: 1000, clients: 3, think: 40 * time.Millisecond, copyRate: 400_000, settle: patience,
		}
	}
	first := uint64(envInt(t, "REHOME_TORTURE_SEED", 0))
	if first == 0 {
		first = 1 + rand.Uint64N(1_000_000)
	}
	var total tally
	for seed := first; seed < first+uint64(envInt(t, "REHOME_TORTURE_SEEDS", 1)); seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			r := newTortureRig(t, seed, size)
			r.run()
			total.add(r.tally)
		})
	}
	t.Log("altogether: " + total.String())
}

// tally is what a run counted.
type tally struct {
	runs, tries, acked, unknown int
	rows                        int64
	faults                      map[torture.Kind]int
	still                       time.Duration // longest time without progress
	rss                         int           // MiB, at its peak, of one server
	slot                        int64         // bytes, at its peak
}

func (a *tally) add(b tally) {
	a.runs += b.runs
	a.tries += b.tries
	a.acked += b.acked
	a.unknown += b.unknown
	a.rows += b.rows
	if a.faults == nil {
		a.faults = map[torture.Kind]int{}
	}
	for k, n := range b.faults {
		a.faults[k] += n
	}
	a.still, a.rss, a.slot = max(a.still, b.still), max(a.rss, b.rss), max(a.slot, b.slot)
}

func (a *tally) String() string {
	var b strings.Builder
	n := 0
	for _, k := range slices.Sorted(maps.Keys(a.faults)) {
		fmt.Fprintf(&b, "\n  %-18s %d", k, a.faults[k])
		n += a.faults[k]
	}
	return fmt.Sprintf("%d runs, %d transactions acknowledged of %d tried (%d unknown, looked up), %d rows compared; longest time without progress %s; peak RSS of a server %d MiB; peak WAL of the slot %.1f MB; %d faults:%s",
		a.runs, a.acked, a.tries, a.unknown, a.rows, a.still.Round(100*time.Millisecond), a.rss, float64(a.slot)/1e6, n, b.String())
}

// tortureRig is two servers, a source, three shards, a control database and a nats-server, with a bad network in between.
type tortureRig struct {
	t       *testing.T
	seed    uint64
	size    tortureSize
	dir     string // logs; stays when the test fails
	net     *torture.Network
	nodes   map[string]*node
	servers []string
	source  *pgcluster.Cluster
	src     tenant.DSN // directly
	ctl     *pgcluster.Cluster
	control tenant.DSN // directly
	shards  map[string]*pgcluster.Cluster
	nats    *outsideNATS
	from    tenant.DSN // the source, through the network
	clients tenant.DSN // the source as the workload reaches it
	load    *torture.Workload
	watch   *watcher
	tally   tally

	stopWriting  func() error
	stopWatching func()
}

func newTortureRig(t *testing.T, seed uint64, size tortureSize) *tortureRig {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("rehome-torture-%d-", seed)) //nolint:usetesting // it outlives a test that fails
	if err != nil {
		t.Fatal(err)
	}
	r := &tortureRig{
		t: t, seed: seed, size: size, dir: dir, net: torture.NewNetwork(), nodes: map[string]*node{}, shards: map[string]*pgcluster.Cluster{}, servers: []string{"a", "b"},
		tally: tally{runs: 1, faults: map[torture.Kind]int{}},
	}
	t.Cleanup(func() {
		r.net.Close()
		if t.Failed() {
			t.Logf("seed %d (REHOME_TORTURE_SEED=%d reproduces the faults); the logs are in %s", seed, seed, dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	// A transaction of some hundred rows is streamed before it ends.
	r.source = pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"logical_decoding_work_mem": "64kB", "wal_sender_timeout": "20s"}})
	r.src = pgcluster.NewDatabase(t, r.source)
	r.ctl = pgcluster.StartT(t, pgcluster.Options{})
	r.control = pgcluster.NewDatabase(t, r.ctl)
	if err := torture.Fill(t.Context(), r.src, size.realms, size.bulk); err != nil {
		t.Fatal(err)
	}
	r.nats = newOutsideNATS(t)
	r.from, r.clients = r.link("source", r.src), r.link("clients", r.src)
	r.net.Usually("clients", 4*time.Millisecond, 0) // so that a cut finds commits on their way
	news := "REHOME_NATS_URL=" + r.nats.url()
	first := newInstallation(t, r.link("control-a", r.control), news)
	first.kill()
	_ = first.log.Close()
	r.nodes["a"] = keepNode(t, "a", dir, first)
	r.nodes["b"] = keepNode(t, "b", dir, laterServer(t, first, r.link("control-b", r.control), news))
	for _, n := range r.nodes {
		n.ready()
	}
	for i := range 3 {
		name := fmt.Sprint("s", i+1)
		// A shard that is killed loses what it has not flushed. Long enough that acknowledging it too early would show.
		r.shards[name] = pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"wal_writer_delay": "2s"}})
		first.must("add-shard", name, r.link(name, r.shards[name].DSN("postgres")).Reveal())
	}
	first.must("create", "db", "--realm-key", torture.RealmKey, "--owner", "owner@example.com")
	return r
}

func (r *tortureRig) link(name string, dsn tenant.DSN) tenant.DSN {
	r.t.Helper()
	out, err := r.net.Link(name, dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// run is the whole of it.
func (r *tortureRig) run() {
	t := r.t
	plan := torture.Plan(torture.PlanConfig{
		Seed: r.seed, Length: r.size.length, Gap: r.size.gap, Quiet: r.size.quiet, Lease: tortureLease, Servers: r.servers, Shards: slices.Sorted(maps.Keys(r.shards)),
		Source: "the source", Control: "the control database", NATS: "nats", Links: []string{"source", "s1", "s2", "s3", "control-a", "control-b", "clients"},
	})
	t.Logf("seed %d: %d faults over %s", r.seed, len(plan), r.size.length)
	r.start(plan)
	calm := time.Now()
	r.await("the stream goes on by itself", func(s seen) bool { return s.phase == tenant.InSync || s.phase == tenant.CatchingUp })
	acked := r.load.Acked()
	r.await("some more transactions", func(seen) bool { return r.load.Acked() > acked+50 })
	t.Logf("%s after the last fault the stream goes on", time.Since(calm).Round(100*time.Millisecond))
	r.finish()
}

// torment does what the plan says, each fault at its time.
func (r *tortureRig) torment(plan []torture.Fault) {
	ctx, stop := context.WithCancel(r.t.Context())
	defer stop()
	began := time.Now()
	var g errgroup.Group
	for _, f := range plan {
		for time.Since(began) < f.At && r.watch.problem() == "" {
			r.watch.tick(ctx)
		}
		if r.watch.problem() != "" {
			break
		}
		r.watch.log("fault " + f.String())
		r.tally.faults[f.Kind]++
		g.Go(func() error {
			if err := r.inflict(ctx, f); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			r.watch.log("mended " + f.String())
			return nil
		})
		// The copy has had its share.
		if time.Since(began) > r.size.length/4 {
			r.net.Usually("source", 0, 0)
		}
	}
	if err := g.Wait(); err != nil {
		r.t.Fatal(err)
	}
	if p := r.watch.problem(); p != "" {
		r.t.Fatal(p)
	}
}

// inflict does one fault and mends it.
func (r *tortureRig) inflict(ctx context.Context, f torture.Fault) error {
	rest := func() {
		select {
		case <-ctx.Done():
		case <-time.After(f.For):
		}
	}
	crash := func(c *pgcluster.Cluster) error {
		if err := c.Kill(); err != nil {
			return err
		}
		rest()
		return c.Restart(context.WithoutCancel(ctx))
	}
	switch f.Kind {
	case torture.ServerKill:
		n := r.nodes[f.Target]
		n.takeDown(syscall.SIGKILL, patience)
		rest()
		n.letUp()
	case torture.ServerStop:
		n := r.nodes[f.Target]
		n.signal(syscall.SIGSTOP)
		rest()
		n.signal(syscall.SIGCONT)
	case torture.ServerRestart:
		n := r.nodes[f.Target]
		inTime := n.takeDown(syscall.SIGTERM, patience)
		rest()
		n.letUp()
		if !inTime {
			return fmt.Errorf("the server did not stop within %s", patience)
		}
	case torture.SourceKill:
		return crash(r.source)
	case torture.ShardKill:
		return crash(r.shards[f.Target])
	case torture.ControlKill:
		return crash(r.ctl)
	case torture.NATSStop:
		_ = r.nats.in.Close()
		_ = r.nats.cmd.Wait()
		rest()
		return r.nats.launch()
	case torture.NetLatency:
		r.net.Slow(f.Target, time.Duration(f.Amount)*time.Millisecond)
		rest()
		r.net.Clear(f.Target)
	case torture.NetBandwidth:
		r.net.Narrow(f.Target, f.Amount)
		rest()
		r.net.Clear(f.Target)
	case torture.NetStall:
		r.net.Silence(f.Target)
		rest()
		r.net.Clear(f.Target)
	case torture.NetHalfOpen, torture.NetCut:
		if f.Kind == torture.NetHalfOpen {
			r.net.Silence(f.Target)
			rest()
		}
		r.net.Cut(f.Target)
		if f.Kind == torture.NetCut {
			rest()
		}
		return r.net.Mend(f.Target)
	}
	return nil
}

// await waits for what must come by itself, and fails on a pause or when the time is over.
func (r *tortureRig) await(what string, ok func(seen) bool) {
	r.t.Helper()
	deadline := time.Now().Add(r.size.settle)
	for {
		s := r.watch.now()
		if p := r.watch.problem(); p != "" {
			r.t.Fatal(p)
		}
		if ok(s) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %s: %s; phase %s (%s), applied everywhere up to %s of %s, %s", r.size.settle, what, s.phase, s.blocked, s.least, s.head, s.trouble)
		}
		r.watch.tick(r.t.Context())
	}
}

// judge compares both sides in two ways and looks at what the servers did.
func (r *tortureRig) judge() {
	t := r.t
	a := r.nodes["a"]
	for _, n := range r.nodes {
		n.ready()
	}
	var placement tenant.Placement
	getJSON(t, a.installation, "/v1/databases/db/placement", &placement)
	sides := torture.Sides{Source: r.src, Shards: map[string]tenant.DSN{}, Ranges: placement.Ranges}
	for name, c := range r.shards {
		sides.Shards[name] = c.DSN("db")
		r.epochsRise(name, c.DSN("db"))
	}
	tries := r.load.Tries()
	found, err := torture.Compare(t.Context(), sides, tries, torture.Money(r.size.realms))
	if err != nil {
		t.Error(err)
	}
	if found.Acked < 50 {
		t.Errorf("only %d transactions were acknowledged: this shows nothing", found.Acked)
	}
	out, errs, code := a.run("verify", "-o", "json")
	var v tenant.Verification
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || !v.Clean || v.Rows != found.Rows {
		t.Errorf("verify: exit %d, %d rows of %d, %v\n%s\n%s", code, v.Rows, found.Rows, err, out, errs)
	}
	for _, n := range r.nodes {
		for _, how := range n.endedByItself() {
			t.Errorf("server %s ended by itself: %s", n.name, how)
		}
	}
	r.tally.tries, r.tally.acked, r.tally.unknown, r.tally.rows = len(tries), found.Acked, found.Unknown, found.Rows
	t.Logf("%d tables; of %d transactions with an unknown outcome %d were committed; the lease was taken %d times", found.Tables, found.Unknown, found.Resolved, r.watch.now().epoch)
	t.Log(r.tally.String())
}

// epochsRise: whoever lost the lease has committed nothing since.
func (r *tortureRig) epochsRise(name string, dsn tenant.DSN) {
	r.t.Helper()
	c := open(r.t, dsn)
	if n := scalar[int](r.t, c, `SELECT count(*)::int FROM (SELECT epoch, seq, lag(epoch) OVER (ORDER BY seq) before, lag(seq) OVER (ORDER BY seq) last FROM rehome.progress) p WHERE epoch < before OR seq <> last + 1`); n != 0 {
		r.t.Errorf("shard %s: %d progress rows do not follow the one before", name, n)
	}
}
