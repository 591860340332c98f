package redirect

import (
	"context"
	"sync"
	"time"
)

// holds keeps requests waiting while a cutover decides. Each waits in its own goroutine; pacing needs none either:
// the n-th of a released queue sleeps (n / batch) × every.
type holds struct {
	cfg Config

	mu      sync.Mutex
	byName  map[string]*hold
	waiting int            // over all databases
	running map[string]int // requests that may write and have not ended, by database
	ended   chan struct{}  // closed and made anew whenever one of them ends while somebody waits for that
}

// hold is one pause of one database. Several attempts may share it.
type hold struct {
	until    time.Time // of the last of them
	released chan struct{}
	queued   int // how many have come to wait: the next one's place
}

type heldOutcome int

const (
	goOn heldOutcome = iota
	tooMany
	tooLong // MaxWait is over
	clientGone
)

func newHolds(cfg Config) *holds {
	return &holds{cfg: cfg, byName: map[string]*hold{}, running: map[string]int{}}
}

// add starts or lengthens a pause, and reports whether it began one.
func (h *holds) add(database string, until time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addLocked(database, until)
}

func (h *holds) addLocked(database string, until time.Time) bool {
	cur := h.byName[database]
	began := cur == nil
	if began {
		cur = &hold{released: make(chan struct{})}
		h.byName[database] = cur
	}
	if until.After(cur.until) {
		cur.until = until
	}
	return began
}

// apply makes the pauses those that were read: others end. It returns the databases whose pause has begun.
func (h *holds) apply(live map[string]time.Time) (began []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, cur := range h.byName {
		if _, ok := live[name]; !ok {
			close(cur.released)
			delete(h.byName, name)
		}
	}
	for name, until := range live {
		if h.addLocked(name, until) {
			began = append(began, name)
		}
	}
	return began
}

// ends reports whether applying live would end a pause.
func (h *holds) ends(live map[string]time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.byName {
		if _, ok := live[name]; !ok {
			return true
		}
	}
	return false
}

// admit lets a request in, or returns the pause that it must wait for, with its place in the queue. One that may write
// is counted until done is called; both happen at once, so that a pause that begins finds it either counted or waiting.
func (h *holds) admit(database string, writes bool, was ticket) (now ticket, done func(), outcome heldOutcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cur := h.byName[database]
	if cur == nil {
		return ticket{waits: was.waits}, h.startLocked(database, writes), goOn
	}
	if !was.waits {
		if h.waiting >= h.cfg.MaxHeld {
			return was, nil, tooMany
		}
		h.waiting++
	}
	now = ticket{hold: cur, until: cur.until, place: was.place, waits: true}
	if was.hold != cur {
		now.place = cur.queued
		cur.queued++
	}
	return now, nil, goOn
}

// ticket is a request's place in a pause. It is the request's own.
type ticket struct {
	hold  *hold // nil: none
	until time.Time
	place int
	waits bool // it is counted among those that wait
}

func (h *holds) startLocked(database string, writes bool) (done func()) {
	if !writes {
		return func() {}
	}
	h.running[database]++
	var once sync.Once
	return func() {
		once.Do(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.running[database]--; h.running[database] == 0 {
				delete(h.running, database)
			}
			if h.ended != nil {
				close(h.ended)
				h.ended = nil
			}
		})
	}
}

// queue enters a waiting request that no pause made wait, unless too many do; leave takes any out.
func (h *holds) queue() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting >= h.cfg.MaxHeld {
		return false
	}
	h.waiting++
	return true
}

func (h *holds) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting--
}

// drained waits until the requests of a database that came before its pause, and may write, have ended, until ctx is over
// at the latest. It returns how many had not.
func (h *holds) drained(ctx context.Context, databases ...string) int {
	for {
		h.mu.Lock()
		n := 0
		for _, d := range databases {
			n += h.running[d]
		}
		if n == 0 {
			h.mu.Unlock()
			return 0
		}
		if h.ended == nil {
			h.ended = make(chan struct{})
		}
		ended := h.ended
		h.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return n
		}
	}
}

// left is how long a database's pause may still last; 0: it has none, or it is over.
func (h *holds) left(database string) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cur := h.byName[database]; cur != nil {
		return max(time.Until(cur.until), 0)
	}
	return 0
}

// held counts the requests that wait.
func (h *holds) held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting
}

// pass waits while a database is held. done must be called when the request has ended; it is nil unless the outcome is
// goOn. waited tells whether it had to.
//
// A request goes on only under routes that are newer than the pause: the end of a pause is read together with them, and
// one that ends by its time has them read anew first. While that is not possible it waits on, like one of a gateway
// without a lease, at most MaxWait in all.
func (g *Gateway) pass(ctx context.Context, database string, writes bool) (outcome heldOutcome, done func(), waited bool) {
	limit := time.NewTimer(g.cfg.MaxWait)
	defer limit.Stop()
	var t ticket
	defer func() {
		if t.waits {
			g.holds.leave()
		}
	}()
	for {
		if reopened := g.closed(database); reopened != nil {
			if !t.waits && !g.holds.queue() {
				return tooMany, nil, false
			}
			t.waits = true
			if outcome := g.await(ctx, reopened, limit.C, 0); outcome != goOn {
				return outcome, nil, true
			}
			continue
		}
		t, done, outcome = g.holds.admit(database, writes, t)
		if outcome != goOn || t.hold == nil {
			return outcome, done, t.waits
		}
		if left := time.Until(t.until); left > 0 {
			outcome = g.await(ctx, t.hold.released, limit.C, left)
		} else if g.freshen(ctx, t.until) != nil {
			outcome = g.await(ctx, t.hold.released, limit.C, freshenAgain)
		}
		if outcome != goOn {
			return outcome, nil, true
		}
		if turn := time.Duration(t.place/g.cfg.ReleaseBatch) * g.cfg.ReleaseEvery; turn > 0 && isClosed(t.hold.released) {
			wait(ctx, turn)
		}
		if ctx.Err() != nil {
			return clientGone, nil, true
		}
	}
}

// freshenAgain is between two tries to read the routes after a pause whose end nobody told.
const freshenAgain = 200 * time.Millisecond

// await blocks until over is closed, most has passed (0: no bound), the request's limit comes or its client goes.
func (g *Gateway) await(ctx context.Context, over <-chan struct{}, limit <-chan time.Time, most time.Duration) heldOutcome {
	var bound <-chan time.Time
	if most > 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		bound = t.C
	}
	select {
	case <-over:
	case <-bound:
	case <-limit:
		return tooLong
	case <-ctx.Done():
		return clientGone
	}
	return goOn
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
