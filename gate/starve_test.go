package gate_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
)

// writersLatency are the statements of some writers: when each ended, and how long it took.
type writersLatency struct {
	ended []time.Time
	took  []time.Duration
}

// during are the latencies of statements that ended in a span, sorted, and the fewest in any whole second of it.
func (l *writersLatency) during(from, to time.Time) (took []time.Duration, fewest int) {
	windows := make([]int, int(to.Sub(from)/time.Second))
	for i, end := range l.ended {
		if end.Before(from) || !end.Before(to) {
			continue
		}
		took = append(took, l.took[i])
		if w := int(end.Sub(from) / time.Second); w < len(windows) {
			windows[w]++
		}
	}
	slices.Sort(took)
	return took, slices.Min(windows)
}

// TestWritersAreNotStarved measures writers while a fence cannot be had for its whole pause: because of a long transaction,
// and because of a vacuum that does not give way. REHOME_STARVE_SECONDS makes the pause longer (3 otherwise).
func TestWritersAreNotStarved(t *testing.T) {
	t.Parallel()
	pause := 3 * time.Second
	if n, err := strconv.Atoi(os.Getenv("REHOME_STARVE_SECONDS")); err == nil {
		pause = time.Duration(n) * time.Second
	}
	for name, hold := range map[string]string{
		"long transaction": "BEGIN; UPDATE app.events_2025 SET at = at",
		// What an anti-wraparound vacuum holds; it does not give way to anybody.
		"vacuum": "BEGIN; LOCK TABLE accounts IN SHARE UPDATE EXCLUSIVE MODE",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := installed(t)
			ctx := t.Context()
			holder := connect(t, s.owner)
			stop, cancel := context.WithCancel(ctx)
			defer cancel()
			var g errgroup.Group
			writers := make([]writersLatency, 8)
			for i := range writers {
				conn := connect(t, s.client)
				g.Go(func() error {
					for n := 0; stop.Err() == nil; n++ {
						start := time.Now()
						if _, err := conn.Exec(ctx, "UPDATE accounts SET balance = balance + 1 WHERE id = $1", 1+(n*8+i)%100); err != nil {
							return err
						}
						writers[i].took = append(writers[i].took, time.Since(start))
						writers[i].ended = append(writers[i].ended, time.Now())
						select {
						case <-stop.Done():
						case <-time.After(2 * time.Millisecond):
						}
					}
					return nil
				})
			}
			begin := time.Now()
			select { // how they fare without a fence
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
			exec(t, holder, hold)
			a := open(t, s, 1)
			fencing := time.Now()
			var err error
			if name == "vacuum" {
				short, done := context.WithTimeout(ctx, pause)
				err = a.Prelock(short)
				done()
			} else {
				must(t, a.Prelock(ctx))
				fencing = time.Now()
				err = a.Fence(ctx, fencing.Add(pause))
				if !errors.Is(err, gate.ErrNotFenced) {
					t.Errorf("fence: %v", err)
				}
			}
			if err == nil {
				t.Error("the fence was had beside the " + name)
			}
			end := time.Now()
			if end.Sub(fencing) < time.Second {
				t.Fatalf("it was given up after %s: %v", end.Sub(fencing), err)
			}
			a.Rollback(ctx)
			cancel()
			must(t, g.Wait())
			var all writersLatency
			for _, w := range writers {
				all.ended, all.took = append(all.ended, w.ended...), append(all.took, w.took...)
			}
			before, _ := all.during(begin, begin.Add(2*time.Second))
			during, fewest := all.during(fencing, end)
			if len(before) == 0 || len(during) == 0 {
				t.Fatal("nobody wrote")
			}
			at := func(l []time.Duration, share float64) time.Duration {
				return l[min(int(share*float64(len(l))), len(l)-1)].Round(100 * time.Microsecond)
			}
			rate := func(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }
			t.Logf("before: %.0f/s, p50 %s p99 %s max %s; during %s of trying (%d tries): %.0f/s, p50 %s p99 %s max %s, %d in the worst second",
				rate(len(before), 2*time.Second), at(before, 0.5), at(before, 0.99), at(before, 1),
				end.Sub(fencing).Round(time.Millisecond), a.Tries(), rate(len(during), end.Sub(fencing)), at(during, 0.5), at(during, 0.99), at(during, 1), fewest)
			if fewest < len(writers) {
				t.Errorf("in one second only %d statements of %d writers were done", fewest, len(writers))
			}
			if at(during, 1) > 1500*time.Millisecond { // a try of 0.4 s, twice, and a busy machine
				t.Errorf("a writer waited %s", at(during, 1))
			}
		})
	}
}
