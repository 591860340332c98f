package replicator

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxCopyJobs bounds how many tables are read at once, whatever an operator asks for: each is a session at the source
	// and one at every shard.
	maxCopyJobs = 32
	// admitEvery is how soon a worker notices that it may begin.
	admitEvery = 250 * time.Millisecond
	// rateBurst is how much may be read ahead of the rate: small enough to be even, large enough not to count every row.
	rateBurst = 250 * time.Millisecond
)

// throttle holds back whoever reads from the source in bulk. The care loop says when to wait; the rate is kept here.
type throttle struct {
	mu      sync.Mutex
	set     tenant.Throttle
	jobs    int // what the replication began with
	now     tenant.Care
	readers int           // verifications at work
	next    time.Time     // when what was read so far is paid for
	changed chan struct{} // closed when anything changes, and made anew
	looks   int           // how often the source was looked at
	kick    chan struct{} // asks for a look at once
}

func newThrottle(set tenant.Throttle, jobs int) *throttle {
	return &throttle{set: set, jobs: jobs, changed: make(chan struct{}), kick: make(chan struct{}, 1), now: tenant.Care{SlotLimit: -1, SlotSafe: -1, SlotLostSeconds: -1}}
}

// SetThrottle changes what the operator allows, at once.
func (e *Engine) SetThrottle(set tenant.Throttle) {
	t := e.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set == set {
		return
	}
	t.set, t.next = set, time.Time{}
	t.now.Throttled, t.now.Since = "", nil // a look at once says what holds under the new ones
	signal(t.kick)
	t.signal()
}

// begin waits until the source was looked at before it is read in bulk. A look that does not come holds nothing up.
func (t *throttle) begin(ctx context.Context) error {
	t.mu.Lock()
	from := t.looks
	t.mu.Unlock()
	signal(t.kick)
	ctx, cancel := context.WithTimeout(ctx, 2*carePatience)
	defer cancel()
	for {
		t.mu.Lock()
		// The look that is just under way may have begun too early.
		enough, changed := t.looks >= from+2 || t.set.Off, t.changed
		t.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-changed:
			signal(t.kick)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

// looked counts a look that is complete, also one that failed.
func (t *throttle) looked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looks++
	t.signal()
}

func (t *throttle) signal() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *throttle) settings() tenant.Throttle {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.set
}

// copyJobs is how many workers may copy just now. The caller holds mu.
func (t *throttle) copyJobs() int {
	n := t.jobs
	if t.set.CopyJobs > 0 && !t.set.Off {
		n = t.set.CopyJobs
	}
	return min(n, maxCopyJobs)
}

// workers is how many may copy just now.
func (t *throttle) workers() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.copyJobs()
}

// allows says whether the worker with this number, from 0 on, may copy.
func (t *throttle) allows(worker int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return worker < t.copyJobs()
}

// care is what is shown.
func (t *throttle) care() tenant.Care {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.now
	c.CopyJobs = t.copyJobs()
	return c
}

// hold makes readers wait for a reason, or lets them go on (""). It reports whether that is a change.
func (t *throttle) hold(reason string, at time.Time) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set.Off {
		reason = ""
	}
	changed = (reason == "") != (t.now.Throttled == "")
	t.now.Throttled = reason
	if changed {
		t.now.Since = nil
		if reason != "" {
			t.now.Since = &at
		}
		t.signal()
	}
	return changed
}

// see notes how the source fares, without the reason to wait.
func (t *throttle) see(c tenant.Care) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.Throttled, c.Since = t.now.Throttled, t.now.Since
	t.now = c
}

// wait is called with every piece that was read. It returns when the next one may be read, or with the context's cause.
func (t *throttle) wait(ctx context.Context, bytes int) error {
	t.mu.Lock()
	due, set := time.Time{}, t.set
	if rate := t.set.MaxRate; rate > 0 && !t.set.Off {
		now := time.Now()
		if t.next.Before(now) {
			t.next = now
		}
		t.next = t.next.Add(time.Duration(float64(bytes) / float64(rate) * float64(time.Second)))
		due = t.next.Add(-rateBurst)
	}
	t.mu.Unlock()
	for {
		t.mu.Lock()
		held, changed := t.now.Throttled != "", t.changed
		if t.set != set {
			due, set = time.Time{}, t.set // the debt is forgotten when the settings change
		}
		t.mu.Unlock()
		pause := time.Until(due)
		if !held && pause <= 0 {
			return nil
		}
		var paid <-chan time.Time
		timer := time.NewTimer(max(pause, 0))
		if !held {
			paid = timer.C
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
		case <-paid:
		}
		timer.Stop()
	}
}

// reading announces a verification, so that the source is looked after while it runs; done ends that.
func (t *throttle) reading() (done func()) {
	t.mu.Lock()
	t.readers++
	t.mu.Unlock()
	return sync.OnceFunc(func() {
		t.mu.Lock()
		t.readers--
		t.mu.Unlock()
	})
}

func (t *throttle) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.readers > 0
}
