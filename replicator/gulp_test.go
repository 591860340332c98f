package replicator

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// pair is both ends of a connection that dial opens.
func pair(t *testing.T, dial pgconn.DialFunc) (near, far net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if near, err = dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// TestGulp: whatever pieces come, in pauses or not, all of them are read in their order, also where a single one is
// larger than the buffer, and none is waited for once there is one.
func TestGulp(t *testing.T) {
	t.Parallel()
	var cfg pgconn.Config
	var d net.Dialer
	cfg.DialFunc = d.DialContext
	g := gulpFrontend(&cfg)
	near, far := pair(t, cfg.DialFunc)
	cfg.BuildFrontend(near, near)

	random := rand.New(rand.NewPCG(1, 2))
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	answers := make(chan error, 1)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(1<<(2+random.IntN(16))))
			if _, err := far.Write(rest[:n]); err != nil {
				answers <- err
				return
			}
			rest = rest[n:]
		}
		answers <- nil
	}()
	ctx, cancel := context.WithCancel(t.Context())
	g.done = ctx.Done()
	g.pause = time.NewTimer(time.Hour)
	g.pause.Stop()
	var got []byte
	buf := make([]byte, 2*gulpBytes)
	for k := 0; len(got) < len(sent); k++ {
		g.behind, g.late = k%3 != 0, k%3 == 2
		n, err := g.Read(buf[:1+(k*7919)%len(buf)])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("what was read is not what was sent")
	}
	cancel()
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := g.Read(buf); err != nil || n != 1 { // a pause ends with the context, the read is as it was
		t.Errorf("read %d bytes, %v", n, err)
	}
	_ = far.Close()
	if _, err := g.Read(buf); err != io.EOF { //nolint:errorlint // an io.Reader's EOF is not wrapped
		t.Errorf("at the end: %v", err)
	}
}
