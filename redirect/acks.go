package redirect

import "sync"

// acks are acknowledgements of holds: those that this gateway waits for, and those that it has given.
type acks struct {
	mu      sync.Mutex
	waiting map[string]chan struct{}
	given   map[string]bool
}

func newAcks() *acks { return &acks{waiting: map[string]chan struct{}{}, given: map[string]bool{}} }

// subscribe returns a channel with one slot that fills when somebody acknowledges a hold. A hold of our own needs no
// acknowledgement of ours.
func (a *acks) subscribe(id string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{}, 1)
	a.waiting[id] = c
	a.given[id] = true
	return c
}

func (a *acks) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, id)
}

// tell wakes who waits for a hold's acknowledgements.
func (a *acks) tell(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.waiting[id]; c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// first reports whether a hold is to be acknowledged, and takes note that it is.
func (a *acks) first(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.given[id] {
		return false
	}
	a.given[id] = true
	return true
}

// again takes that back.
func (a *acks) again(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.given, id)
}

// keep forgets acknowledgements of holds that are over.
func (a *acks) keep(live map[string][]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.given {
		if _, ok := live[id]; !ok && a.waiting[id] == nil {
			delete(a.given, id)
		}
	}
}
