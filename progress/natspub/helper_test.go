package natspub

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/progress"
)

var cluster *pgcluster.Cluster

// childServer makes this test binary a nats-server: "port dir".
const childServer = "REHOME_TEST_NATS_SERVER"

func TestMain(m *testing.M) {
	if conf := os.Getenv(childServer); conf != "" {
		os.Exit(beServer(conf))
	}
	os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster))
}

const user, password = "rehome", "nats-pass-9Zx"

func serverOptions(port int, dir string) *server.Options {
	return &server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, Username: user, Password: password,
	}
}

func beServer(conf string) int {
	var port int
	var dir string
	if _, err := fmt.Sscanf(conf, "%d %s", &port, &dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	s, err := server.NewServer(serverOptions(port, dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return 1
	}
	_, _ = fmt.Fprintln(os.Stdout, "ready") // without it the parent gives up
	_, _ = io.Copy(io.Discard, os.Stdin)    // ends with the parent
	s.Shutdown()
	return 0
}

// outside is a nats-server in a process of its own, which can be killed and started again on the same port and store.
type outside struct {
	port int
	dir  string
	cmd  *exec.Cmd
	in   io.Closer
}

func startOutside(t *testing.T) *outside {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not a TCP address")
	}
	o := &outside{port: addr.Port, dir: t.TempDir()}
	_ = l.Close()
	o.start(t)
	t.Cleanup(o.kill)
	return o
}

func (o *outside) url() string {
	return "nats://" + user + ":" + password + "@127.0.0.1:" + strconv.Itoa(o.port)
}

func (o *outside) start(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.cmd = exec.Command(exe)
	o.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", childServer, o.port, o.dir))
	o.cmd.Stderr = os.Stderr
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if o.in, err = o.cmd.StdinPipe(); err != nil { // open as long as it shall live
		t.Fatal(err)
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("nats-server did not start: %q, %v", line, err)
	}
}

// stop lets it end in peace.
func (o *outside) stop() {
	_ = o.in.Close()
	_ = o.cmd.Wait()
	o.cmd = nil
}

// kill is a power cut for the process: SIGKILL.
func (o *outside) kill() {
	if o.cmd == nil {
		return
	}
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
	o.cmd = nil
}

func controlDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	conf, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal("the test's DSN does not parse")
	}
	if _, err := migrations.Up(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal("the pool cannot be made")
	}
	t.Cleanup(pool.Close)
	return pool
}

// run runs a publisher until the test ends or the returned function is called.
func run(t *testing.T, p *Publisher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { return p.Run(ctx) })
	stop = func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func newPublisher(t *testing.T, conf Config) *Publisher {
	t.Helper()
	p, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// consumer collects what a durable consumer gets, acknowledging each message.
type consumer struct {
	mu       sync.Mutex
	events   []progress.Event
	subjects []string
}

func (c *consumer) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.events)
}

// consume attaches a durable consumer with explicit acknowledgements, as an outside program would.
func consume(t *testing.T, url string) *consumer {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var cons jetstream.Consumer
	eventually(t, "the stream is there", func() bool {
		cons, err = js.CreateOrUpdateConsumer(t.Context(), StreamName, jetstream.ConsumerConfig{
			Durable: "watcher", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: Subjects, MaxAckPending: 1, AckWait: time.Second,
		})
		return err == nil
	})
	c := &consumer{}
	running, err := cons.Consume(func(m jetstream.Msg) {
		var e progress.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.events, c.subjects = append(c.events, e), append(c.subjects, m.Subject())
		c.mu.Unlock()
		_ = m.Ack() // lost acknowledgements are sent again
	}, jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Stop)
	return c
}

// ordered collects through an ordered consumer, which restarts by itself where it was.
func ordered(t *testing.T, url string) *consumer {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var cons jetstream.Consumer
	eventually(t, "the stream is there", func() bool {
		cons, err = js.OrderedConsumer(t.Context(), StreamName, jetstream.OrderedConsumerConfig{FilterSubjects: []string{Subjects}})
		return err == nil
	})
	c := &consumer{}
	running, err := cons.Consume(func(m jetstream.Msg) {
		var e progress.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.events, c.subjects = append(c.events, e), append(c.subjects, m.Subject())
		c.mu.Unlock()
	}, jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) {}), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Stop)
	return c
}

func appendEvents(t *testing.T, l *progress.Log, pool *pgxpool.Pool, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("r%d", i%3)
		_, err := l.Append(t.Context(), pool, progress.Entry{Stream: id, Database: "acme", Kind: "replication", ID: id, Event: "progress", Data: i})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func outbox(t *testing.T, l *progress.Log) []progress.Event {
	t.Helper()
	var out []progress.Event
	after := int64(0)
	for {
		got, err := l.AfterID(t.Context(), after, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return out
		}
		for _, s := range got {
			out, after = append(out, s.Event), s.ID
		}
	}
}

func unpublished(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.events WHERE published_at IS NULL`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

var errPretended = errors.New("the mark failed (pretended)")

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
