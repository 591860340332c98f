package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/tenant"
)

// crowd is many clients of a database: programs with connections to Postgres, which write where they are accepted, and
// others that send requests to a gateway, behind which two applications write, one on each side.
type crowd struct {
	t        *testing.T
	think    time.Duration
	witness  *torture.Witness
	source   tenant.DSN
	shards   map[string]tenant.DSN
	owner    func(realm string) string
	pools    map[string]*pgxpool.Pool // of the applications
	requests atomic.Int64
	end      context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	waits  []waited
	failed []string // requests
	errors []string // of direct clients
}

// waited is how long one write took for its client, everything included: a hold, a lock, a refusal and the next try.
type waited struct {
	http     bool
	from, to time.Duration
}

func newCrowd(t *testing.T, think time.Duration) *crowd {
	return &crowd{t: t, think: think, pools: map[string]*pgxpool.Pool{}}
}

// application is the tenant's program on one side, and returns its address. It knows nothing of any move.
func (c *crowd) application(onShards bool) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		realm := q.Header.Get("Realm")
		at := torture.AtSource
		if onShards {
			at = c.owner(realm)
		}
		err := c.pools[at].AcquireFunc(context.WithoutCancel(q.Context()), func(conn *pgxpool.Conn) error {
			return c.witness.Put(context.Background(), conn.Conn(), at, realm)
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, "written")
	}))
	c.t.Cleanup(srv.Close)
	return srv.URL
}

// start lets n clients of each sort write. urls are the gateways.
func (c *crowd) start(w *torture.Witness, source tenant.DSN, shards map[string]tenant.DSN, owner func(string) string, n int, urls []string) {
	c.t.Helper()
	c.witness, c.source, c.shards, c.owner = w, source, shards, owner
	for at, dsn := range shards {
		c.pools[at] = c.pool(dsn)
	}
	c.pools[torture.AtSource] = c.pool(source)
	ctx, cancel := context.WithCancel(context.Background())
	c.end = cancel
	c.t.Cleanup(c.stop)
	for i := range n {
		c.wg.Go(func() { c.directly(ctx) })
		c.wg.Go(func() { c.byHTTP(ctx, urls[i%len(urls)]) })
	}
}

func (c *crowd) pool(dsn tenant.DSN) *pgxpool.Pool {
	cfg, err := pgxpool.ParseConfig(dsn.Reveal())
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.MaxConns = 16
	p, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.Close)
	return p
}

func (c *crowd) stop() {
	c.end()
	c.wg.Wait()
}

func (c *crowd) rest(ctx context.Context) {
	t := time.NewTimer(c.think/2 + rand.N(c.think))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (c *crowd) note(http bool, from time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, waited{http: http, from: from, to: c.witness.Now()})
}

// directly writes where it was accepted last, and on the other side when it is refused.
func (c *crowd) directly(ctx context.Context) {
	conns := map[string]*pgx.Conn{}
	defer func() {
		for _, conn := range conns {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	onShards := false
	for ctx.Err() == nil {
		realm := c.witness.Realm(torture.AtSource)
		from := c.witness.Now()
		for done := false; !done && ctx.Err() == nil; {
			at := torture.AtSource
			if onShards {
				at = c.owner(realm)
			}
			err := c.once(ctx, conns, at, realm)
			switch {
			case err == nil:
				done = true
			case errors.Is(err, torture.ErrRefused):
				onShards = !onShards
				// Neither side may be open for a moment; knocking without a pause would only load it.
				t := time.NewTimer(5 * time.Millisecond)
				<-t.C
			default:
				c.mu.Lock()
				c.errors = append(c.errors, at+": "+err.Error())
				c.mu.Unlock()
				delete(conns, at)
				done = true
			}
		}
		c.note(false, from)
		c.rest(ctx)
	}
}

func (c *crowd) once(ctx context.Context, conns map[string]*pgx.Conn, at, realm string) error {
	if conns[at] == nil {
		dsn := c.source
		if at != torture.AtSource {
			dsn = c.shards[at]
		}
		conn, err := pgx.Connect(context.WithoutCancel(ctx), dsn.Reveal())
		if err != nil {
			return err
		}
		conns[at] = conn
	}
	return c.witness.Put(ctx, conns[at], at, realm)
}

// byHTTP sends requests to a gateway.
func (c *crowd) byHTTP(ctx context.Context, url string) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		from := c.witness.Now()
		if err := c.send(client, url); err != nil {
			c.mu.Lock()
			c.failed = append(c.failed, fmt.Sprintf("%s after %s: %v", url, (c.witness.Now()-from).Round(time.Millisecond), err))
			c.mu.Unlock()
		}
		c.requests.Add(1)
		c.note(true, from)
		c.rest(ctx)
	}
}

func (c *crowd) send(client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url+"/write", strings.NewReader("a write"))
	if err != nil {
		return err
	}
	req.Header.Set("Realm", c.witness.Realm(torture.AtSource))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(raw)))
	}
	return err
}

// writeOn waits until every client has come to an end of what it was waiting for: each sort has written so often again.
func (c *crowd) writeOn(t *testing.T) {
	t.Helper()
	count := func() (direct, http int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, w := range c.waits {
			if w.http {
				http++
			} else {
				direct++
			}
		}
		return direct, http
	}
	direct, http := count()
	eventually(t, "clients write on", func() bool {
		d, h := count()
		return d > direct+100 && h > http+100
	})
}

// longest is the longest wait of each sort that touched a span of time.
func (c *crowd) longest(from, to time.Duration) (direct, http time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.waits {
		if w.to < from || w.from > to {
			continue
		}
		if w.http {
			http = max(http, w.to-w.from)
		} else {
			direct = max(direct, w.to-w.from)
		}
	}
	return direct, http
}

func (c *crowd) failures() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.failed)
}

// mishaps are errors of direct clients.
func (c *crowd) mishaps() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.errors)
}
