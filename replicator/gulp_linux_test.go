package replicator

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// TestGulpEndsWithAFullBuffer: a late stream makes pauses as long as little comes, and one where its buffer fills, however small that is.
func TestGulpEndsWithAFullBuffer(t *testing.T) {
	t.Parallel()
	var d net.Dialer
	near, far := pair(t, d.DialContext)
	c, ok := near.(*net.TCPConn)
	if !ok || c.SetReadBuffer(64<<10) != nil {
		t.Fatalf("%T has no buffer to set", near)
	}
	g := &gulp{Conn: near}
	g.late.Store(true)
	var err error
	if g.sock, err = c.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if got := g.gather(); got != latePauses {
		t.Errorf("%d pauses while nothing comes", got)
	}
	if _, err := far.Write(make([]byte, receiveBuffer(g.sock)/lateShare)); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(time.Minute); waiting(g.sock) < receiveBuffer(g.sock)/lateShare; {
		if time.Now().After(limit) {
			t.Fatal("the bytes never came")
		}
		runtime.Gosched()
	}
	if got := g.gather(); got != 1 {
		t.Errorf("%d pauses over a buffer that is full", got)
	}
	g.late.Store(false)
	if got := g.gather(); got != 1 {
		t.Errorf("%d pauses of a stream that is not late", got)
	}
}
