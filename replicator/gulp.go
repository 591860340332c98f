package replicator

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A walsender makes one send of every change, and wakes whoever waits for it each time. While we are behind, waking up for
// 100 bytes is most of what reading costs us and a good part of what sending costs the source. So a stream that is behind is
// read in gulps: a short pause while bytes gather in the socket, then all of them at once. A stream that is caught up is
// read at once.

const (
	// gulpBytes is the buffer of a stream: what gathers in a pause at the rate of a walsender, about 25 MB/s, several times over.
	gulpBytes = 128 << 10
	// gulpEnough: a read that brought this much leaves nothing to gain from a pause before the next one.
	gulpEnough = 64 << 10
	// gulpPause fills a socket's default buffer to a fifth at a walsender's 25 MB/s, and adds little to a latency of behindAfter.
	gulpPause = time.Millisecond
	// A stream that is late, see gatherAfter, is read in larger gulps, of up to latePauses pauses: fewer wake-ups here, and fewer, larger
	// segments from a source that meanwhile finds the socket's buffer full. Once there is lateEnough they end, or lateShare of what the
	// buffer may hold, so that a source of rows of kilobytes does not stand still for the rest of them.
	latePauses = 10
	lateEnough = 512 << 10
	lateShare  = 4
	// behindAfter is how old a transaction is when the source sends it, by the source's clock, for the stream to count as
	// behind: more than a stream that keeps up shows, most of which is the flush of the commit (0.2 to 3 ms). Little more, since a
	// stream that fell behind by a moment's stall catches up by being read in gulps, and not where each message wakes us: at 1,000
	// transactions a second on two busy cores it stayed behind by just so much. Where a flush takes longer, the pause is short
	// against it.
	behindAfter = 5 * time.Millisecond
)

// gulp is the connection of a stream. It lies below TLS, whose reads bring one record each, which is one change: above it, no
// read would show what the socket has. As of any connection, one goroutine at a time may read.
type gulp struct {
	net.Conn
	sock syscall.RawConn // nil: it does not say what it has

	buf      []byte
	from, to int
	last     int // bytes that the last read brought

	// The driver reads beside the stream while it writes and the source does not take that.
	behind, late atomic.Bool
}

// gulps makes the sessions of cfg read through a gulp; made is that of the latest of them.
func gulps(cfg *pgconn.Config) (made *atomic.Pointer[gulp]) {
	made = new(atomic.Pointer[gulp])
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		g := &gulp{Conn: c}
		if t, ok := c.(*net.TCPConn); ok {
			g.sock, _ = t.SyscallConn() // without it there are more wake-ups, no more
		}
		made.Store(g)
		return g, nil
	}
	return made
}

// Read implements net.Conn.
func (g *gulp) Read(p []byte) (int, error) {
	if g.from == g.to {
		if g.behind.Load() && g.last < gulpEnough {
			g.gather()
		}
		if len(p) >= gulpBytes {
			n, err := g.Conn.Read(p) // of a value larger than the buffer
			g.last = n
			return n, err
		}
		if g.buf == nil {
			g.buf = make([]byte, gulpBytes)
		}
		n, err := g.Conn.Read(g.buf)
		g.from, g.to, g.last = 0, n, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, g.buf[g.from:g.to])
	g.from += n
	return n, nil
}

// gather waits while bytes come, without being woken by each of them. The end of a stream waits for it, for latePauses at most.
func (g *gulp) gather() (pauses int) {
	lowWater(g.sock, gulpEnough)
	defer lowWater(g.sock, 1)
	for most := g.pauses(); pauses < most; {
		time.Sleep(gulpPause) //nolint:forbidigo // a read has no context; this ends after 10 ms at most
		pauses++
		// Half of a buffer's size or less is for what it holds, the rest for the system's own needs.
		if waiting(g.sock) >= min(lateEnough, receiveBuffer(g.sock)/lateShare) {
			break
		}
	}
	return pauses
}

// pauses is how many the next gulp may have.
func (g *gulp) pauses() int {
	if g.late.Load() {
		return latePauses
	}
	return 1
}

// watch makes reads fail when the context ends, until stop is called.
func (g *gulp) watch(ctx context.Context) (stop func()) {
	cancelled := context.AfterFunc(ctx, func() { _ = g.SetReadDeadline(time.Unix(1, 0)) })
	return func() {
		cancelled()
		g.behind.Store(false)
		g.late.Store(false)
	}
}

// began takes note of when a transaction was committed and when it was sent, both by the source's clock.
func (g *gulp) began(committed, sent time.Time) {
	age := sent.Sub(committed)
	g.behind.Store(age > behindAfter)
	g.late.Store(age > gatherAfter)
}
