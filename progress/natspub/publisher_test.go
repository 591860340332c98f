package natspub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/rehomedb/rehome/progress"
)

// sameAsOutbox compares what a consumer saw with the outbox: same objects, same order, nothing missing, nothing twice.
func (c *consumer) sameAsOutbox(t *testing.T, l *progress.Log) {
	t.Helper()
	want := outbox(t, l)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range min(len(want), len(c.events)) {
		if want[i].ID != c.events[i].ID {
			t.Errorf("from place %d of %d on the consumer (%d) saw others than the outbox: %v, want %v", i, len(want), len(c.events),
				names(c.events[max(i-3, 0):min(i+5, len(c.events))]), names(want[max(i-3, 0):min(i+5, len(want))]))
			return
		}
	}
	if diff := cmp.Diff(want, c.events); diff != "" {
		t.Errorf("the consumer saw other events than the outbox has: %s", diff)
	}
	for i, s := range c.subjects {
		if s != c.events[i].Subject {
			t.Errorf("event %s came on %s", c.events[i].ID, s)
		}
	}
}

func names(events []progress.Event) []string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprintf("%s/%d", e.Stream, e.Sequence))
	}
	return out
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	appendEvents(t, l, pool, 5)
	p := newPublisher(t, Config{Pool: pool, Log: l, ListenPort: -1})
	if p.Up() || p.Describe() != "embedded" || p.ClientURL() != "" {
		t.Error("up before it runs")
	}
	stop := run(t, p)
	eventually(t, "it is up", p.Up)
	c := consume(t, p.ClientURL())
	appendEvents(t, l, pool, 250)
	eventually(t, "all are consumed", func() bool { return c.count() == 255 })
	c.sameAsOutbox(t, l)
	eventually(t, "all are marked", func() bool { return unpublished(t, pool) == 0 })

	// A stranger may read, but neither forge news nor delete them.
	nc, err := nats.Connect(p.ClientURL(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := js.Publish(ctx, "rehome.v1.inst.x.y.z.forged", nil); err == nil {
		t.Error("a stranger published")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := js.DeleteStream(ctx, StreamName); err == nil {
		t.Error("a stranger deleted the stream")
	}
	stop()
	if p.Up() {
		t.Error("up after its end")
	}
}

// A fresh store gets the last hour again; older news stay in the outbox.
func TestEmbeddedFreshStoreIsRefilled(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	appendEvents(t, l, pool, 10)
	if _, err := pool.Exec(t.Context(), `UPDATE rehome_control.events SET published_at = now() - CASE WHEN id <= 4 THEN interval '2 hours' ELSE interval '1 minute' END WHERE id <= 8`); err != nil {
		t.Fatal(err)
	}
	p := newPublisher(t, Config{Pool: pool, Log: l, ListenPort: -1})
	run(t, p)
	eventually(t, "it is up", p.Up)
	c := consume(t, p.ClientURL())
	eventually(t, "six are consumed", func() bool { return c.count() == 6 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(outbox(t, l)[4:], c.events); diff != "" {
		t.Error(diff)
	}
}

// The outside server goes away and comes back while events are appended: the news catch up, in order, each once.
func TestOutsideServerGoneAndBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*outside){"stopped": (*outside).stop, "killed": (*outside).kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := controlDatabase(t)
			l := progress.NewLog(pool, "inst", "https://own.example")
			o := startOutside(t)
			var log lockedBuffer
			p := newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			run(t, p)
			eventually(t, "it is up", p.Up)
			durable, inOrder := consume(t, o.url()), ordered(t, o.url())
			total := 0
			for range 3 {
				appendEvents(t, l, pool, 150)
				total += 150
				eventually(t, "some are consumed", func() bool { return inOrder.count() > total-150 })
				end(o) // in the midst of publishing
				eventually(t, "it is known to be down", func() bool { return !p.Up() })
				appendEvents(t, l, pool, 50) // the work goes on
				total += 50
				if unpublished(t, pool) < 50 {
					t.Error("published without a server")
				}
				o.start(t)
				eventually(t, "it is up again", p.Up)
			}
			eventually(t, "all are consumed", func() bool { return durable.deduplicated().count() >= total && inOrder.count() >= total })
			eventually(t, "all are marked", func() bool { return unpublished(t, pool) == 0 })
			inOrder.sameAsOutbox(t, l)
			durable.deduplicated().sameAsOutbox(t, l)
			stored(t, o.url(), total)
			if strings.Contains(log.String(), password) || strings.Contains(p.Describe()+p.ClientURL(), password) {
				t.Error("a password was shown")
			}
			if !strings.Contains(log.String(), "events wait for the message server") {
				t.Error("the outage was not logged")
			}
		})
	}
}

// deduplicated drops what was delivered again, as a consumer does by the event's id. JetStream promises a durable
// consumer at-least-once delivery: acknowledgements that a killed server had not written are forgotten. An ordered
// consumer keeps its own place and needs none of this.
func (c *consumer) deduplicated() *consumer {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, seen := &consumer{}, map[string]bool{}
	for i, e := range c.events {
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		out.events, out.subjects = append(out.events, e), append(out.subjects, c.subjects[i])
	}
	return out
}

// stored checks how many messages the stream holds.
func stored(t *testing.T, url string, want int) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), StreamName)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().State.Msgs; got != uint64(want) {
		t.Errorf("the stream holds %d messages, want %d", got, want)
	}
}

// A server that is not there at the start holds nothing up.
func TestOutsideServerComesLater(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	o := startOutside(t)
	o.kill()
	p := newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l})
	stop := run(t, p)
	appendEvents(t, l, pool, 5)
	o.start(t)
	c := consume(t, o.url())
	eventually(t, "all are consumed", func() bool { return c.count() == 5 })
	c.sameAsOutbox(t, l)
	stop()

	o.kill() // and its end while away is no trouble either
	stop = run(t, newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l}))
	stop()
}

// The process dies between the acknowledgement and the mark, several times.
func TestCrashBeforeMark(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	o := startOutside(t)
	nc, err := nats.Connect(o.url())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	appendEvents(t, l, pool, 30)
	for range 3 {
		p := newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l, Logger: discard()})
		d := &drainer{p: p, js: js, mark: func(context.Context, progress.DB, []int64) error { return errPretended }}
		if err := d.run(t.Context(), func() {}); !errors.Is(err, errPretended) {
			t.Fatal(err)
		}
		if unpublished(t, pool) < 30 {
			t.Fatal("marked")
		}
		appendEvents(t, l, pool, 1)
	}
	run(t, newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l}))
	c := consume(t, o.url())
	eventually(t, "all are consumed and marked", func() bool { return c.count() >= 33 && unpublished(t, pool) == 0 })
	c.sameAsOutbox(t, l)
	stored(t, o.url(), 33)
}

// Several servers share a control database; the one that drains loses its connection, and another takes over.
func TestOneDrainsAtATime(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	o := startOutside(t)
	for range 3 {
		p := newPublisher(t, Config{URL: o.url(), Pool: pool, Log: l})
		run(t, p)
		eventually(t, "it is up, draining or not", p.Up)
	}
	c := consume(t, o.url())
	var holders, rounds int
	const holder = `FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = $1
	                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	for range 3 {
		appendEvents(t, l, pool, 20)
		rounds++
		eventually(t, "they arrive", func() bool { return c.count() >= 20*rounds })
		if err := pool.QueryRow(t.Context(), `SELECT count(*) `+holder, drainLock).Scan(&holders); err != nil || holders != 1 {
			t.Fatalf("%d drain, %v", holders, err)
		}
		if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) `+holder, drainLock); err != nil {
			t.Fatal(err)
		}
	}
	appendEvents(t, l, pool, 20)
	eventually(t, "all are consumed and marked", func() bool { return c.count() >= 80 && unpublished(t, pool) == 0 })
	c.sameAsOutbox(t, l)
	stored(t, o.url(), 80)
}

// An event beyond the server's limit must not stop all that follow.
func TestTooLargeAnEvent(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	_, err := l.Append(t.Context(), pool, progress.Entry{Kind: "x", Event: "large", Data: strings.Repeat("x", 2<<20)})
	if err != nil {
		t.Fatal(err)
	}
	appendEvents(t, l, pool, 1)
	p := newPublisher(t, Config{Pool: pool, Log: l, ListenPort: -1})
	run(t, p)
	eventually(t, "it is up", p.Up)
	c := consume(t, p.ClientURL())
	eventually(t, "both are consumed", func() bool { return c.count() == 2 })
	if !bytes.Contains(c.events[0].Data, []byte("omitted")) {
		t.Error("data of the large event is there")
	}
}

func TestCredentialsAreNotShown(t *testing.T) {
	t.Parallel()
	pool := controlDatabase(t)
	l := progress.NewLog(pool, "inst", "https://own.example")
	for _, bad := range []string{"nats://u:s3cr%et@h:1", "http://u:s3cret@h", "nats://u:s3cret@"} {
		if _, err := New(Config{URL: bad, Pool: pool, Log: l}); err == nil || strings.Contains(err.Error(), "s3cr") {
			t.Errorf("%v", err)
		}
	}
	p := newPublisher(t, Config{URL: "nats://u:s3cret@h1:4222,tls://token@h2", Pool: pool, Log: l})
	if got := p.Describe(); got != "nats://h1:4222,tls://h2" {
		t.Error(got)
	}
	list, _ := servers("nats://u:s3cret@h1:4222,token@h2")
	for _, text := range []string{"dial nats://u:s3cret@h1:4222: refused", "pass s3cret", "bad token"} {
		if got := scrub(errors.New(text), list).Error(); strings.Contains(got, "s3cret") || strings.Contains(got, "token") {
			t.Error(got)
		}
	}

	// A wrong password is refused by the server; the log names neither.
	o := startOutside(t)
	var log lockedBuffer
	wrong := strings.Replace(o.url(), password, "wr0ngpass", 1)
	wp := newPublisher(t, Config{URL: wrong, Pool: pool, Log: l, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	run(t, wp)
	eventually(t, "the refusal is logged", func() bool { return strings.Contains(log.String(), "error=") })
	if strings.Contains(log.String(), "wr0ngpass") || wp.Up() {
		t.Error(log.String())
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
