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
	waiting int // over all databases
}

// hold is one pause of one database. Several Hold calls may share it; it ends with the last release.
type hold struct {
	until    time.Time
	tokens   int
	released chan struct{}
	queued   int // how many have come to wait: the next one's place
}

type heldOutcome int

const (
	notHeld heldOutcome = iota
	letGo               // waited, and may go on
	tooMany             // the limit is reached
	clientGone
)

func newHolds(cfg Config) *holds { return &holds{cfg: cfg, byName: map[string]*hold{}} }

// add starts or lengthens a pause. The returned function ends this caller's part of it; calling it again does nothing.
func (h *holds) add(database string, until time.Time) func() {
	if limit := h.cfg.Now().Add(h.cfg.MaxHold); until.After(limit) {
		until = limit
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cur := h.byName[database]
	if cur == nil || !h.cfg.Now().Before(cur.until) { // an expired one's waiters go on by themselves
		cur = &hold{released: make(chan struct{})}
		h.byName[database] = cur
	}
	cur.tokens++
	if until.After(cur.until) {
		cur.until = until
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if cur.tokens--; cur.tokens > 0 {
				return
			}
			close(cur.released)
			if h.byName[database] == cur {
				delete(h.byName, database)
			}
		})
	}
}

// wait blocks while the database is held. left is how long the hold may still last, for tooMany.
func (h *holds) wait(ctx context.Context, database string) (outcome heldOutcome, left time.Duration) {
	h.mu.Lock()
	cur := h.byName[database]
	if cur == nil {
		h.mu.Unlock()
		return notHeld, 0
	}
	if left = cur.until.Sub(h.cfg.Now()); left <= 0 {
		delete(h.byName, database)
		h.mu.Unlock()
		return notHeld, 0
	}
	if h.waiting >= h.cfg.MaxHeld {
		h.mu.Unlock()
		return tooMany, left
	}
	h.waiting++
	place := cur.queued
	cur.queued++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.waiting--
		h.mu.Unlock()
	}()

	expiry := time.NewTimer(left)
	defer expiry.Stop()
	select {
	case <-cur.released:
	case <-expiry.C:
	case <-ctx.Done():
		return clientGone, 0
	}
	if turn := time.Duration(place/h.cfg.ReleaseBatch) * h.cfg.ReleaseEvery; turn > 0 {
		wait(ctx, turn)
	}
	if ctx.Err() != nil {
		return clientGone, 0
	}
	return letGo, 0
}

// held counts the requests that wait.
func (h *holds) held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting
}
