package torture

import (
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

// weatherToxic is our toxic's name in toxiproxy's registry.
const weatherToxic = "rehome_weather"

// weather is a toxic that stays on a link for life and changes its ways. Toxiproxy's own are put on and taken off, and
// taking one off drops data after five seconds when the receiver does not read, and lets the stream go on behind the hole:
// TCP never does that, and a stopped server would provoke it all the time.
type weather struct {
	mu      sync.Mutex
	now     conditions
	changed chan struct{} // closed and replaced at every change
}

// conditions of a link. The zero value is a good network.
type conditions struct {
	latency time.Duration
	rate    int  // bytes a second in each direction of each connection; 0: no bound
	silent  bool // nothing arrives, and nobody is told
}

func (w *weather) set(c conditions) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = c
	if w.changed != nil {
		close(w.changed)
	}
	w.changed = make(chan struct{})
}

func (w *weather) get() (conditions, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.now, w.changed
}

// Pipe implements toxics.Toxic. It is never interrupted, since no toxic comes or goes during a link's life.
func (w *weather) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			if c == nil {
				stub.Close()
				return
			}
			w.carry(stub, c)
		}
	}
}

// carry lets one chunk pass when the weather permits.
func (w *weather) carry(stub *toxics.ToxicStub, c *stream.StreamChunk) {
	for {
		now, changed := w.get()
		if now.silent {
			<-changed
			continue
		}
		// A chunk is late by what is left of the latency since it came in, so that a stream keeps its throughput.
		wait := now.latency - time.Since(c.Timestamp)
		if now.rate > 0 {
			wait = max(wait, 0) + time.Duration(len(c.Data))*time.Second/time.Duration(now.rate)
		}
		if wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-changed:
				t.Stop()
				continue // the rest of it in the new weather
			}
			t.Stop()
		}
		stub.Output <- c
		return
	}
}
