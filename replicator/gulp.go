package replicator

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
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

// gulp reads a stream. It is used by one goroutine.
type gulp struct {
	r        io.Reader
	buf      []byte
	from, to int
	last     int // bytes that the last read brought
	sock     syscall.RawConn

	taken atomic.Bool // by the session that it is for

	behind bool
	late   bool
	pause  *time.Timer
	done   <-chan struct{}
}

// gulpFrontend makes the session that is made with cfg read through a gulp. Once there is a session, take must be called:
// others that the configuration, or a copy of it, is used for, as one that cancels a statement, are then read without it.
func gulpFrontend(cfg *pgconn.Config) *gulp {
	g := &gulp{buf: make([]byte, gulpBytes)}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		if g.taken.Load() {
			return pgproto3.NewFrontend(r, w)
		}
		// Another address may be tried after one that failed.
		g.r, g.from, g.to = r, 0, 0
		return pgproto3.NewFrontend(g, w)
	}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if g.taken.Load() {
			return c, err
		}
		g.sock = nil
		if t, ok := c.(*net.TCPConn); ok && err == nil {
			g.sock, _ = t.SyscallConn() // without it there are more wake-ups, no more
		}
		return c, err
	}
	return g
}

// take ends the search for an address: the session that was made last is the one that is read.
func (g *gulp) take() { g.taken.Store(true) }

// Read implements io.Reader.
func (g *gulp) Read(p []byte) (int, error) {
	if g.from == g.to {
		if g.behind && g.last < gulpEnough {
			g.gather()
		}
		if len(p) >= len(g.buf) {
			n, err := g.r.Read(p) // of a value larger than the buffer
			g.last = n
			return n, err
		}
		n, err := g.r.Read(g.buf)
		g.from, g.to, g.last = 0, n, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, g.buf[g.from:g.to])
	g.from += n
	return n, nil
}

// gather waits while bytes come, without being woken by each of them.
func (g *gulp) gather() (pauses int) {
	if g.pause == nil {
		return 0
	}
	lowWater(g.sock, gulpEnough)
	defer lowWater(g.sock, 1)
	for most := g.pauses(); pauses < most && g.rest(gulpPause); {
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
	if g.late {
		return latePauses
	}
	return 1
}

// rest returns false if the context ended meanwhile.
func (g *gulp) rest(d time.Duration) bool {
	g.pause.Reset(d)
	select {
	case <-g.pause.C:
		return true
	case <-g.done:
		return false
	}
}

// watch makes reads fail when the context ends, until stop is called.
func (g *gulp) watch(ctx context.Context, c *pgconn.PgConn) (stop func()) {
	g.done = ctx.Done()
	g.pause = time.NewTimer(0)
	<-g.pause.C
	cancelled := context.AfterFunc(ctx, func() { _ = c.Conn().SetReadDeadline(time.Unix(1, 0)) })
	return func() {
		cancelled()
		g.pause.Stop()
		g.pause, g.behind, g.late = nil, false, false
	}
}

// began takes note of when a transaction was committed and when it was sent, both by the source's clock.
func (g *gulp) began(committed, sent time.Time) {
	age := sent.Sub(committed)
	g.behind, g.late = age > behindAfter, age > gatherAfter
}
