package replicator

import (
	"context"
	"sync"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// groupRows and groupBytes bound one target transaction's share of memory: large enough that a group's two round
	// trips and its commit cost little per row, small enough that a lane holds a few megabytes.
	groupRows  = 4000
	groupBytes = 2 << 20
	// inboxBytes and inboxRows bound what waits for a lane; the reader blocks beyond.
	inboxRows  = 16000
	inboxBytes = 8 << 20
	// A lane that is behind and has caught up with what was read waits for gatherRows, or for gatherWait: with several lanes the
	// reader fills none of them as fast as it is emptied, and groups of a few rows cost a shard many times as much a row, of
	// which there is then less for the reader. A group of so many has its fixed costs spread; the wait is nothing against gatherAfter.
	gatherRows = 500
	gatherWait = 20 * time.Millisecond
	// gatherAfter is how old a transaction is when the source sends it, for its lanes to be behind in this sense: by more than
	// anybody waits for who looks at the other side.
	gatherAfter = 250 * time.Millisecond
)

// inbox is where the reader gathers changes for one lane. Transactions that are complete wait in queue; the one that is
// being read waits in open and is handed out in pieces only when it grows beyond a group or other lanes wait for it.
type inbox struct {
	mu      sync.Mutex
	queue   []*group
	open    *group
	arena   arena
	rows    int // in queue and open
	bytes   int
	pos     tenant.LSN // everything before it is in the queue or was taken
	given   tenant.LSN // end of the last transaction that has something for the lane
	ready   chan struct{}
	space   chan struct{}
	partial bool     // a piece of the open transaction was taken
	free    []*group // groups that are done with, whose memory serves again

	behind    bool // what is read is old, see gatherAfter
	gathering bool // the lane waits for a fuller group, and is not woken by each transaction

	groupRows, inboxRows int // the constants, but for tests
	gatherWait           time.Duration
}

// due reports whether the open group is handed out before it is complete: because it is large, or because the reader may
// soon wait for a lane that waits for what it contains.
func (b *inbox) due() bool {
	return b.open.ordered || b.open.bytes >= groupBytes || len(b.open.changes) >= b.groupRows
}

func newInbox() *inbox {
	return &inbox{groupRows: groupRows, inboxRows: inboxRows, gatherWait: gatherWait, ready: make(chan struct{}, 1), space: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// begin opens a source transaction that commits at the given position.
func (b *inbox) begin(commit tenant.LSN, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = b.fresh(group{open: true, commit: commit, first: at})
}

// freeGroups bounds the groups that are kept: the one that is open, the ones that the lane applies and is about to apply.
const freeGroups = 3

// fresh makes a group, of the memory of one that is done with if there is one.
func (b *inbox) fresh(g group) *group {
	var out *group
	if n := len(b.free); n > 0 {
		out, b.free = b.free[n-1], b.free[:n-1]
		g.changes, g.parts = out.changes, out.parts
	} else {
		out = new(group)
	}
	*out = g
	return out
}

// done takes back a group that nobody refers to any more, nor to any of its changes.
func (b *inbox) done(g *group) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(g)
}

func (b *inbox) keep(g *group) {
	if len(b.free) >= freeGroups || cap(g.changes) > 2*b.groupRows {
		return
	}
	clear(g.changes) // their values' memory
	g.changes, g.parts = g.changes[:0], g.parts[:0]
	b.free = append(b.free, g)
}

// add appends a change to the open transaction, copying its values. It blocks while the lane is too far behind.
func (b *inbox) add(ctx context.Context, c change) error {
	for {
		b.mu.Lock()
		if b.rows < b.inboxRows && b.bytes < inboxBytes {
			break
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.space:
		}
	}
	defer b.mu.Unlock()
	size := 64
	if c.row != nil {
		size += sizeOf(c.row)
		c.row = b.arena.tuple(c.row)
	}
	if c.old != nil {
		size += sizeOf(c.old)
		c.old = b.arena.tuple(c.old)
	}
	b.open.changes = append(b.open.changes, c)
	b.open.ddl = b.open.ddl || c.op == opDDL
	b.open.bytes += size
	b.rows++
	b.bytes += size
	b.open.ordered = b.open.ordered || c.gives != nil || c.needs != nil
	if b.due() {
		signal(b.ready)
	}
	return nil
}

// commit closes the open transaction. With a marker the transaction's group is applied durably and reported, also by a
// lane that has no row of it.
func (b *inbox) commit(end tenant.LSN, marker string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.open
	b.open = nil
	b.pos = end
	if g == nil {
		return
	}
	if len(g.changes) == 0 && marker == "" && !b.partial {
		b.keep(g)
		return
	}
	b.given = end
	g.open, g.end, g.txns, g.marker = false, end, 1, marker
	b.partial = false
	if last := b.last(); last != nil && last.marker == "" && marker == "" && last.barrier == nil && last.side == nil && !last.ddl && !g.ddl &&
		len(last.changes)+len(g.changes) <= b.groupRows && last.bytes+g.bytes <= groupBytes {
		if len(last.parts) == 0 {
			last.parts = append(last.parts, part{len(last.changes), last.end})
		}
		last.changes = append(last.changes, g.changes...)
		last.parts = append(last.parts, part{len(last.changes), end})
		last.bytes += g.bytes
		last.txns++
		last.end = end
		last.ordered = last.ordered || g.ordered
		b.keep(g)
	} else {
		b.queue = append(b.queue, g)
	}
	if !b.gathering || !b.sparse() {
		signal(b.ready)
	}
}

// late says whether what is read from now on is old.
func (b *inbox) late(behind bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.behind = behind
	signal(b.ready)
}

// sparse reports whether a lane that is behind should rather wait for more than it has: all of it is one group of few rows, for which
// nobody else waits.
func (b *inbox) sparse() bool {
	if !b.behind || len(b.queue) != 1 || (b.open != nil && b.due()) {
		return false
	}
	g := b.queue[0]
	return g.marker == "" && g.barrier == nil && g.side == nil && !g.ddl && !g.ordered && len(g.changes) < gatherRows && g.bytes < groupBytes/2
}

// gather returns for how long the lane still waits for a fuller group, which began when it was first asked; 0: not at all.
func (b *inbox) gather(since *time.Time) (left time.Duration) {
	if b.sparse() {
		if since.IsZero() {
			*since = time.Now()
		}
		left = max(b.gatherWait-time.Since(*since), 0)
	}
	b.gathering = left > 0
	return left
}

// again has a lane report a marker that its shard has already, as after a lost connection: durably, like any other.
func (b *inbox) again(end tenant.LSN, at time.Time, marker string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, &group{first: at, end: end, marker: marker})
	signal(b.ready)
}

func (b *inbox) last() *group {
	if len(b.queue) == 0 {
		return nil
	}
	return b.queue[len(b.queue)-1]
}

// barrier asks the lane to open a snapshot after all that was read so far.
func (b *inbox) barrier(br *barrier) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, &group{barrier: br})
	signal(b.ready)
}

// turn has a transaction that was applied ahead commit in its place.
func (b *inbox) turn(sd *side, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, &group{side: sd, first: at})
	signal(b.ready)
}

// advance tells the lane that the source has nothing for it before pos.
func (b *inbox) advance(pos tenant.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil && pos > b.pos {
		b.pos = pos
	}
}

// take waits for a group. It returns nil after idle with nothing to do; pos is then where the lane stands.
func (b *inbox) take(ctx context.Context, idle time.Duration) (g *group, pos tenant.LSN, err error) {
	t := time.NewTimer(idle)
	defer t.Stop()
	var since time.Time // when there was something, but little
	for {
		b.mu.Lock()
		left := b.gather(&since)
		if left > 0 {
			t.Reset(left)
		} else if len(b.queue) > 0 {
			g = b.queue[0]
			b.queue[0] = nil
			b.queue = b.queue[1:]
		} else if o := b.open; o != nil && b.due() {
			g = o
			b.open = &group{open: true, commit: o.commit, first: o.first, ddl: o.ddl}
			b.partial = true
		}
		if g != nil {
			b.rows -= len(g.changes)
			b.bytes -= g.bytes
			signal(b.space)
			b.mu.Unlock()
			return g, 0, nil
		}
		pos = b.pos
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-b.ready:
		case <-t.C:
			if left <= 0 {
				return nil, pos, nil
			}
		}
	}
}

func (b *inbox) lastGiven() tenant.LSN {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.given
}

// oldest is when the oldest transaction that waits here was committed; zero when none waits.
func (b *inbox) oldest() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.queue {
		if g.barrier == nil {
			return g.first
		}
	}
	if b.open != nil && len(b.open.changes) > 0 {
		return b.open.first
	}
	return time.Time{}
}
