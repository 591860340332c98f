package redirect

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// counterApp counts the requests that reach it.
func counterApp(t *testing.T) (url string, reached *atomic.Int64) {
	reached = new(atomic.Int64)
	return app(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // cut short: the server aborts it, and so does any application
		}
		reached.Add(1)
		_, _ = io.WriteString(w, "ok")
	}).URL, reached
}

func TestHoldAndRelease(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil; c.ReleaseBatch = 4 })
	up, reached := counterApp(t)
	next, reachedNext := counterApp(t)
	b.database(t, "acme", up)
	b.database(t, "other", up)
	release := b.hold(t, "acme", time.Now().Add(time.Minute))
	second := b.hold(t, "acme", time.Now().Add(time.Second))
	var g errgroup.Group
	const n = 20
	for i := range n {
		g.Go(func() error {
			a, err := b.try(t.Context(), "POST", "/acme/x", strings.NewReader(strings.Repeat("b", i*10000)))
			if err == nil && a.status != 200 {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			return err
		})
	}
	eventually(t, "all wait", func() bool { return b.holds.held() == n })
	if a := b.do(t, "GET", "/other/x"); a.status != 200 || reached.Load() != 1 {
		t.Errorf("another database waits too: %+v", a)
	}
	second()
	second()
	if b.holds.held() != n || reached.Load() != 1 {
		t.Error("one of two holds let them go")
	}
	// What the hold was for: they go to the new side, none is lost, none goes to the old one.
	b.exec(t, `UPDATE rehome_control.databases SET upstream_url = $1 WHERE name = 'acme'`, next)
	must(t, b.Reload(t.Context()))
	release()
	must(t, g.Wait())
	if reached.Load() != 1 || reachedNext.Load() != n {
		t.Errorf("%d at the old side, %d at the new one", reached.Load(), reachedNext.Load())
	}
	if a := b.do(t, "GET", "/acme/x"); a.status != 200 || b.holds.held() != 0 {
		t.Errorf("%+v", a)
	}
}

func TestHoldExpires(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil; c.MaxHold = 200 * time.Millisecond })
	up, _ := counterApp(t)
	b.database(t, "acme", up)
	release := b.hold(t, "acme", time.Now().Add(time.Hour))
	defer release()
	began := time.Now()
	a := b.do(t, "GET", "/acme/x")
	if took := time.Since(began); a.status != 200 || took < 150*time.Millisecond {
		t.Errorf("%d after %s", a.status, took)
	}
	if a := b.do(t, "GET", "/acme/x"); a.status != 200 { // and is over for all
		t.Errorf("%+v", a)
	}
	again := b.hold(t, "acme", time.Now().Add(time.Hour)) // a new one holds again
	began = time.Now()
	_ = b.do(t, "GET", "/acme/x")
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("held for %s only", took)
	}
	again()
}

func TestTooManyHeld(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil; c.MaxHeld = 2 })
	up, _ := counterApp(t)
	b.database(t, "acme", up)
	release := b.hold(t, "acme", time.Now().Add(5*time.Second))
	var g errgroup.Group
	for range 2 {
		g.Go(func() error { _, err := b.try(t.Context(), "GET", "/acme/x", nil); return err })
	}
	eventually(t, "two wait", func() bool { return b.holds.held() == 2 })
	a := b.do(t, "GET", "/acme/x")
	if a.status != 503 || a.prob.Code != "too-many-held" || a.header.Get("Retry-After") != "5" {
		t.Errorf("%+v", a)
	}
	release()
	must(t, g.Wait())
}

// Clients that leave while they are held are never forwarded: neither one without a body, which net/http notices, nor
// ones whose body lies unread before the end of their stream. Where the
// end lies behind a body that fills the buffers, the request begins to be forwarded and never becomes whole.
func TestHeldClientThatLeftIsDropped(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil })
	up, reached := counterApp(t)
	b.database(t, "acme", up)
	release := b.hold(t, "acme", time.Now().Add(time.Minute))
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = b.try(ctx, "GET", "/acme/x", nil) })
	for _, size := range []int{10, 1 << 20, 50 << 20} {
		wg.Go(func() { _, _ = b.try(ctx, "POST", "/acme/x", strings.NewReader(strings.Repeat("x", size))) })
	}
	// One that closes properly after it has sent all of its body.
	conn, err := net.Dial("tcp", b.srv.Listener.Addr().String())
	must(t, err)
	_, err = fmt.Fprintf(conn, "POST /acme/x HTTP/1.1\r\nHost: h\r\nContent-Length: 20000\r\n\r\n%s", strings.Repeat("y", 20000))
	must(t, err)
	eventually(t, "five wait", func() bool { return b.holds.held() == 5 })
	leave()
	must(t, conn.Close())
	wg.Wait()
	release()
	eventually(t, "nobody waits", func() bool { return b.holds.held() == 0 })
	if a := b.do(t, "GET", "/acme/x"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	if n := reached.Load(); n != 1 {
		t.Errorf("%d requests were forwarded, one was alive", n)
	}
}

// A body is not read while its request is held: nobody has said 100 Continue.
func TestHeldBodyIsNotRead(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil })
	up, _ := counterApp(t)
	b.database(t, "acme", up)
	release := b.hold(t, "acme", time.Now().Add(time.Minute))
	conn, err := net.Dial("tcp", b.srv.Listener.Addr().String())
	must(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST /acme/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	must(t, err)
	eventually(t, "it waits", func() bool { return b.holds.held() == 1 })
	must(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err == nil {
		t.Errorf("answered while held: %s", line)
	}
	release()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	line, err := r.ReadString('\n')
	must(t, err)
	if !strings.Contains(line, "100 Continue") {
		t.Error(line)
	}
	_, err = io.WriteString(conn, "abc")
	must(t, err)
	for !strings.Contains(line, "200 OK") {
		line, err = r.ReadString('\n')
		must(t, err)
	}
}

// A hold that ends while it is read is not in force afterwards: with an end before the reading nobody would read it again, and
// who waits for it would never rest.
func TestHoldThatEndsWhileItIsRead(t *testing.T) {
	asked := time.Now()
	read := []liveHold{{id: "1", name: "over", until: asked.Add(-time.Microsecond)}, {id: "2", name: "now", until: asked}, {id: "3", name: "held", until: asked.Add(time.Hour)}}
	h := newHolds(Config{MaxHeld: 1})
	h.add("over", asked.Add(-time.Millisecond))
	h.apply(untilOf(stillHeld(read, asked)))
	for name, held := range map[string]bool{"over": false, "now": false, "held": true} {
		if now, _, outcome := h.admit(name, false, ticket{}); outcome != goOn || (now.hold != nil) != held {
			t.Errorf("%s: %+v, %v", name, now, outcome)
		}
	}
}
