package halfopen_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	code := pgcluster.Main(m, pgcluster.Options{}, &cluster)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience of the guards under test; a look takes about a second more.
const patience = 300 * time.Millisecond

// proxy passes bytes on until it is told to swallow them, in one direction or both. It goes on taking them, as a firewall
// or a load balancer does that answers on the server's behalf.
type proxy struct {
	t        *testing.T
	l        net.Listener
	to       string
	requests atomic.Bool // swallow what the client sends
	answers  atomic.Bool // swallow what the server sends
	refuse   atomic.Bool // take no new connections
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, to: to}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		if p.refuse.Load() {
			_ = in.Close()
			continue
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, in, out)
		p.mu.Unlock()
		// A connection that was made later works: only those that are up are half open.
		old := !p.requests.Load() && !p.answers.Load()
		p.wg.Go(func() { pass(out, in, &p.requests, old) })
		p.wg.Go(func() { pass(in, out, &p.answers, old) })
	}
}

func pass(to io.WriteCloser, from io.Reader, swallow *atomic.Bool, old bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && (!old || !swallow.Load()) {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

func connect(t *testing.T, dsn tenant.DSN, address string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if address != "" {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Host = host
		if _, err := fmt.Sscan(port, &cfg.Port); err != nil {
			t.Fatal(err)
		}
	}
	halfopen.Guard(&cfg.Config, patience)
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func TestLostSessionsAreNoticed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		cut  func(*proxy)
		want string
	}{
		{"requests are swallowed", func(p *proxy) { p.requests.Store(true) }, "waits for us"},
		{"answers are swallowed", func(p *proxy) { p.answers.Store(true) }, "waits for us"},
		{"nobody is there any more", func(p *proxy) { p.requests.Store(true); p.answers.Store(true); p.refuse.Store(true) }, "cannot be reached"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, fmt.Sprintf("127.0.0.1:%d", cluster.Port()))
			c := connect(t, pgcluster.NewDatabase(t, cluster), p.l.Addr().String())
			if _, err := c.Exec(t.Context(), "SELECT 1"); err != nil {
				t.Fatal(err)
			}
			tc.cut(p)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := c.Exec(ctx, "SELECT $1::int", 2)
			if !errors.Is(err, halfopen.ErrLost) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, not that the connection is lost since %q", err, tc.want)
			}
			if !c.IsClosed() {
				t.Error("the session is still open here")
			}
		})
	}
}

// TestBusySessionsAreLeftAlone has sessions that rightly hear nothing for many times the patience.
func TestBusySessionsAreLeftAlone(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	const long = "1.5" // seconds
	t.Run("a statement", func(t *testing.T) {
		t.Parallel()
		if _, err := connect(t, dsn, "").Exec(t.Context(), "SELECT pg_sleep("+long+")"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a lock", func(t *testing.T) {
		t.Parallel()
		other := connect(t, dsn, "")
		c := connect(t, dsn, "")
		if _, err := other.Exec(t.Context(), "SELECT pg_advisory_lock(1)"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := c.Exec(t.Context(), "SELECT pg_advisory_lock(1)")
			done <- err
		}()
		if _, err := other.Exec(t.Context(), "SELECT pg_sleep("+long+"); SELECT pg_advisory_unlock(1)"); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("a copy that is fed slowly", func(t *testing.T) {
		t.Parallel()
		c := connect(t, dsn, "")
		if _, err := c.Exec(t.Context(), "CREATE TABLE fed (id int)"); err != nil {
			t.Fatal(err)
		}
		pr, pw := io.Pipe()
		go func() {
			_, _ = io.WriteString(pw, strings.Repeat("1\n", 100_000))
			<-time.After(1500 * time.Millisecond)
			_, _ = io.WriteString(pw, "2\n")
			_ = pw.Close()
		}()
		tag, err := c.PgConn().CopyFrom(t.Context(), pr, "COPY fed FROM STDIN")
		if err != nil || tag.RowsAffected() != 100_001 {
			t.Errorf("%v, %v", tag, err)
		}
	})
	t.Run("nothing is owed", func(t *testing.T) {
		t.Parallel()
		c := connect(t, dsn, "")
		if _, err := c.Exec(t.Context(), "LISTEN news"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := c.WaitForNotification(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting ended with %v", err)
		}
	})
}
