package replicator_test

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// counted passes connections on to a server, and tells of each that ended.
func counted(t *testing.T, to string) (addr string, ended <-chan struct{}) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan struct{}, 100)
	var wg sync.WaitGroup
	var d net.Dialer
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := d.DialContext(t.Context(), "tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
			wg.Go(func() {
				_, _ = io.Copy(out, in)
				_ = out.Close()
				ends <- struct{}{}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String(), ends
}

// TestStreamOutlivesAProbe: a walsender that is busy for longer than the patience of its guard is looked at over another
// connection, which leaves what reads the stream alone.
func TestStreamOutlivesAProbe(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	addr, ended := counted(t, fmt.Sprintf("127.0.0.1:%d", cluster.Port()))
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Del("host")
	q.Del("port")
	u.Host, u.RawQuery = addr, q.Encode()
	other := open(t, dsn)
	exec(t, other, `SELECT pg_advisory_lock(1)`)
	c, err := replicator.ReplicationSession(within(t), tenant.DSN(u.String()), 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	done := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := c.Exec(ctx, `SELECT pg_advisory_lock(1)`).ReadAll()
		done <- err
	}()
	for range 2 { // probes that are over
		select {
		case <-ended:
		case <-ctx.Done():
			t.Fatal("nobody looked at the session")
		}
	}
	exec(t, other, `SELECT pg_advisory_unlock(1)`)
	if err := <-done; err != nil {
		t.Fatalf("the statement that took long: %v", err)
	}
	res, err := c.Exec(ctx, `SELECT repeat('x', 300000)`).ReadAll()
	if err != nil {
		t.Fatalf("what comes afterwards: %v", err)
	}
	if n := len(res[0].Rows[0][0]); n != 300_000 {
		t.Errorf("%d bytes", n)
	}
}
