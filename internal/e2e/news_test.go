package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// natsChild makes this test binary a nats-server: "port dir".
const natsChild = "REHOME_E2E_NATS_SERVER"

const natsUser, natsPassword = "rehome", "Nats-Pa55-9Zx"

// serveNATS is an outside nats-server; it ends with its parent.
func serveNATS(conf string) int {
	var port int
	var dir string
	if _, err := fmt.Sscanf(conf, "%d %s", &port, &dir); err != nil {
		return 2
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, Username: natsUser, Password: natsPassword,
	})
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		return 1
	}
	_, _ = fmt.Fprintln(os.Stdout, "ready") // without it the parent gives up
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Shutdown()
	s.WaitForShutdown()
	return 0
}

// outsideNATS is a nats-server in a process of its own, on one port and store however often it starts.
type outsideNATS struct {
	t    *testing.T
	port int
	dir  string
	cmd  *exec.Cmd
	in   io.Closer
}

func newOutsideNATS(t *testing.T) *outsideNATS {
	t.Helper()
	o := &outsideNATS{t: t, port: freePort(t), dir: t.TempDir()}
	t.Cleanup(func() {
		if o.cmd != nil {
			_ = o.cmd.Process.Kill()
			_ = o.cmd.Wait()
		}
	})
	o.start()
	return o
}

func (o *outsideNATS) url() string {
	return "nats://" + natsUser + ":" + natsPassword + "@127.0.0.1:" + strconv.Itoa(o.port)
}

func (o *outsideNATS) start() {
	o.t.Helper()
	if err := o.launch(); err != nil {
		o.t.Fatal(err)
	}
}

// launch is start for goroutines that may not end the test.
func (o *outsideNATS) launch() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", natsChild, o.port, o.dir))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if o.in, err = cmd.StdinPipe(); err != nil { // open as long as it shall live
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	o.cmd = cmd
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("nats-server did not start: %q: %w", line, err)
	}
	return nil
}

// stop ends it in order; its store stays.
func (o *outsideNATS) stop() {
	o.t.Helper()
	_ = o.in.Close()
	if err := o.cmd.Wait(); err != nil {
		o.t.Errorf("the nats-server did not end in order: %v", err)
	}
	o.cmd = nil
}

// news collects events as texts, in the order in which they came.
type news struct {
	mu     sync.Mutex
	events []string
}

func (n *news) add(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, text)
}

func (n *news) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string{}, n.events...)
}

// consume is somebody else's program: a durable consumer over a connection of its own. What JetStream delivers again
// because an acknowledgement was lost has the same number in the stream, and is left out as any consumer would.
func consume(t *testing.T, url string, into *news) (leave func()) {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var c jetstream.Consumer
	eventually(t, "the JetStream stream is there", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c, err = js.CreateOrUpdateConsumer(ctx, "REHOME", jetstream.ConsumerConfig{
			Durable: "somebody", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "rehome.v1.*.bench.replication.>", MaxAckPending: 1, AckWait: time.Second,
		})
		return err == nil
	})
	var last uint64
	running, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			t.Errorf("a message without metadata: %v", err)
			return
		}
		if meta.Sequence.Stream > last {
			last = meta.Sequence.Stream
			into.add(string(m.Data()))
		}
		_ = m.Ack() // a lost acknowledgement is asked for again
	}, jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) {}), jetstream.PullExpiry(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	leave = sync.OnceFunc(func() {
		running.Drain()
		<-running.Closed()
		nc.Close()
	})
	t.Cleanup(leave)
	return leave
}

// watch runs `replication-progress --watch -o json` as people do, and collects its lines.
func watch(i *installation, id string, into *news) (wait func() error) {
	i.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(i.t.Context()), binary, "replication-progress", id, "--watch", "-o", "json")
	cmd.Dir, cmd.Env = i.dir, i.env()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		i.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 8<<20)
		for lines.Scan() {
			into.add(lines.Text())
		}
		read <- lines.Err()
	}()
	wait = sync.OnceValue(func() error {
		if err := <-read; err != nil {
			return err
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, &errs)
		}
		return nil
	})
	i.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = wait()
	})
	return wait
}

// outboxOf is the truth: a replication's events in the control database.
func outboxOf(t *testing.T, control *pgx.Conn, stream string) []string {
	t.Helper()
	rows, err := control.Query(t.Context(), `SELECT event::text FROM rehome_control.events WHERE stream = $1 ORDER BY seq`, stream)
	if err != nil {
		t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// decoded are events as values, so that blanks and the order of keys do not count.
func decoded(t *testing.T, texts []string) (events []map[string]any) {
	t.Helper()
	for _, s := range texts {
		var e map[string]any
		if err := json.Unmarshal([]byte(s), &e); err != nil {
			t.Fatalf("%v in %q", err, s)
		}
		events = append(events, e)
	}
	return events
}

// places names events by number and kind, for a short account of a difference.
func places(t *testing.T, texts []string) (names []string) {
	t.Helper()
	for _, s := range texts {
		var e progress.Event
		if err := json.Unmarshal([]byte(s), &e); err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%d %s", e.Sequence, strings.TrimPrefix(e.Type, "dev.rehome.")))
	}
	return names
}

func sameNews(t *testing.T, who string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(places(t, want), places(t, got)); diff != "" {
		t.Errorf("%s saw other events than the outbox has (-outbox +seen):\n%s", who, diff)
		return
	}
	if diff := cmp.Diff(decoded(t, want), decoded(t, got)); diff != "" {
		t.Errorf("%s saw events with another content (-outbox +seen):\n%s", who, diff)
	}
}

// TestNews follows a replication's whole life by two ways, NATS and the command line, while the message server and our
// own server go away and come back. Both tell exactly what the outbox holds, and the work waits for neither.
func TestNews(t *testing.T) {
	t.Parallel()
	outside := newOutsideNATS(t)
	src := pgcluster.NewDatabase(t, shared)
	initPgbench(t, shared, src, envInt(t, "REHOME_NEWS_SCALE", 5))
	inst := newInstallation(t, pgcluster.NewDatabase(t, shared), "REHOME_NATS_URL="+outside.url())
	inst.addShards(pgcluster.StartT(t, pgcluster.Options{}))
	inst.must("create", "bench", "--realm-key", "bid", "--owner", "owner@example.com")
	control := open(t, inst.control)
	count := func() int { return scalar[int](t, control, `SELECT count(*)::int FROM rehome_control.events`) }
	unpublished := func() int {
		return scalar[int](t, control, `SELECT count(*)::int FROM rehome_control.events WHERE published_at IS NULL`)
	}
	var info api.Installation
	getJSON(t, inst, "/v1/installation", &info)
	if !strings.Contains(info.NATS, strconv.Itoa(outside.port)) || strings.Contains(info.NATS, natsPassword) {
		t.Errorf("the installation says of NATS: %q", info.NATS)
	}

	var heard, seen news
	leave := consume(t, outside.url(), &heard)
	out := inst.mustApproved(append(moveArgs("start-replication", src.Reveal(), inst.url+"/bench", "--realm-key", "bid", "--fix-identity"), "-o", "json")...)
	var r api.Replication
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	done := watch(inst, r.ID, &seen)

	// The message server goes away during the copy; the replication gets in sync without it.
	eventually(t, "both hear of the copy", func() bool { return len(heard.all()) >= 2 && len(seen.all()) >= 2 })
	phase := func() tenant.Phase {
		return tenant.Phase(scalar[string](t, control, `SELECT phase FROM rehome_control.replications WHERE id = $1`, r.ID))
	}
	eventually(t, "the copy begins", func() bool { return phase() != tenant.Created && phase() != tenant.Preparing })
	outside.stop()
	if phase() == tenant.InSync {
		t.Error("the copy was over before the message server was stopped; REHOME_NEWS_SCALE must be larger")
	}
	inst.waitPhase(tenant.InSync)
	eventually(t, "events wait in the outbox", func() bool { return unpublished() > 0 })
	getJSON(t, inst, "/v1/installation", &info)
	if info.NATSUp {
		t.Error("the installation says that NATS is up")
	}

	// Our server dies too, and starts without NATS.
	before, shown := count(), len(seen.all())
	inst.kill()
	inst.start()
	inst.waitPhase(tenant.InSync)
	if v := mustJSON[tenant.Verification](inst, "verify"); !v.Clean || v.Rows == 0 {
		t.Fatalf("without NATS: %+v", v)
	}
	eventually(t, "the watcher goes on by itself", func() bool { return count() > before && len(seen.all()) > shown })

	// NATS comes back, and our server dies once more while it catches up: what it publishes again is recognised.
	told := len(heard.all())
	outside.start()
	eventually(t, "the consumer hears again", func() bool { return len(heard.all()) > told })
	inst.kill()
	inst.start()
	eventually(t, "the news catch up", func() bool { return unpublished() == 0 })
	inst.waitPhase(tenant.InSync)
	// The consumer leaves and comes again; what it misses waits for it.
	leave()
	inst.must("pause-replication", "--reason", "the test wants it")
	inst.waitPaused()
	consume(t, outside.url(), &heard)
	inst.must("resume-replication")
	inst.waitPhase(tenant.InSync)
	inst.must("cancel-replication", "--yes")
	if err := done(); err != nil {
		t.Errorf("the watcher did not end in order: %v", err)
	}

	eventually(t, "everything is published", func() bool { return unpublished() == 0 })
	want := outboxOf(t, control, r.ID)
	eventually(t, "the consumer has as many events as the outbox", func() bool { return len(heard.all()) >= len(want) })
	if n := scalar[int](t, control, `SELECT max(seq)::int FROM rehome_control.events WHERE stream = $1`, r.ID); n != len(want) {
		t.Errorf("the outbox has %d events up to number %d", len(want), n)
	}
	if now := outboxOf(t, control, r.ID); len(now) != len(want) {
		t.Errorf("%d events were added after the end: %v", len(now)-len(want), places(t, now[len(want):]))
	}
	sameNews(t, "the consumer", want, heard.all())
	sameNews(t, "the watcher", want, seen.all())
	for i := range min(len(heard.all()), len(seen.all())) {
		if a, b := heard.all()[i], seen.all()[i]; a != b {
			t.Errorf("NATS and the command line write event %d differently:\n%s\n%s", i+1, a, b)
			break
		}
	}
	t.Logf("%d events, each once, by both ways", len(want))
	noneShows(t, inst.traces(), natsPassword, passwordOf(t, src))
}

// waitPaused waits until the replication has paused on purpose.
func (i *installation) waitPaused() {
	i.t.Helper()
	eventually(i.t, "the replication is paused", func() bool { return i.progress().Phase == tenant.Paused })
}
