package replicator

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// gathering is an inbox whose lane is behind.
func gathering(t *testing.T, wait time.Duration) (in *inbox, give func(n int)) {
	t.Helper()
	in = newInbox()
	in.gatherWait = wait
	in.late(true)
	at := tenant.LSN(0)
	rel := testRelation(1)
	return in, func(n int) {
		for range n {
			at += 100
			in.begin(at, time.Time{})
			if err := in.add(t.Context(), change{op: opInsert, rel: rel, row: pgoutput.Tuple{text("k"), text("v"), text("w")}}); err != nil {
				t.Error(err)
			}
			in.commit(at+8, "")
		}
	}
}

// TestLaneThatIsBehindGathers: it takes no group of few rows while more come, and waits for nothing else.
func TestLaneThatIsBehindGathers(t *testing.T) {
	t.Parallel()
	never := time.Hour
	for name, c := range map[string]struct {
		wait time.Duration
		then func(in *inbox, give func(int))
		rows int
	}{
		"a full group":   {never, func(_ *inbox, give func(int)) { give(gatherRows - 3) }, gatherRows},
		"time is over":   {time.Millisecond, func(*inbox, func(int)) {}, 3},
		"caught up":      {never, func(in *inbox, _ func(int)) { in.late(false) }, 3},
		"a barrier":      {never, func(in *inbox, _ func(int)) { in.barrier(&barrier{}) }, 3},
		"a turn":         {never, func(in *inbox, _ func(int)) { in.turn(&side{}, time.Time{}) }, 3},
		"a marker":       {never, func(in *inbox, _ func(int)) { in.begin(1_000_000, time.Time{}); in.commit(1_000_008, "attempt") }, 3},
		"a known marker": {never, func(in *inbox, _ func(int)) { in.again(1_000_000, time.Time{}, "attempt") }, 3},
		"another waits":  {never, func(in *inbox, give func(int)) { addTo(t, in, func(g *group) { g.ordered = true }) }, 3},
		"a large one":    {never, func(in *inbox, _ func(int)) { addTo(t, in, func(g *group) { g.bytes = groupBytes }) }, 3},
		"a schema change": {never, func(in *inbox, _ func(int)) {
			addTo(t, in, func(g *group) { g.ddl = true })
			in.commit(9, "")
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, give := gathering(t, c.wait)
			give(3)
			type taken struct {
				g   *group
				err error
			}
			got := make(chan taken, 1)
			go func() {
				g, _, err := in.take(t.Context(), time.Minute)
				got <- taken{g, err}
			}()
			if c.wait == never {
				for waits, limit := false, time.Now().Add(time.Minute); !waits; {
					if time.Now().After(limit) {
						t.Fatal("it does not wait for more")
					}
					in.mu.Lock()
					waits = in.gathering
					in.mu.Unlock()
				}
			}
			c.then(in, give)
			r := <-got
			if r.err != nil || r.g == nil || len(r.g.changes) != c.rows {
				t.Fatalf("took %+v, %v", r.g, r.err)
			}
		})
	}
}

// addTo opens a transaction of a kind, with a change.
func addTo(t *testing.T, in *inbox, be func(*group)) {
	t.Helper()
	in.begin(1, time.Time{})
	in.mu.Lock()
	be(in.open)
	in.mu.Unlock()
	if err := in.add(t.Context(), change{op: opInsert, rel: testRelation(1), row: pgoutput.Tuple{text("k"), text("v"), text("w")}}); err != nil {
		t.Error(err)
	}
}

// What is not behind is taken as it comes, and a lane that ends does so while it gathers.
func TestLaneGathersOnlyBehind(t *testing.T) {
	t.Parallel()
	in, give := gathering(t, time.Hour)
	give(3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if g, _, err := in.take(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("took %+v, %v", g, err)
	}
	in.late(false)
	if g, _, err := in.take(t.Context(), time.Minute); err != nil || g == nil || len(g.changes) != 3 {
		t.Fatalf("took %+v, %v", g, err)
	}
	in.late(true)
	if g, _, err := in.take(t.Context(), time.Millisecond); g != nil || err != nil {
		t.Fatalf("of nothing it took %+v, %v", g, err)
	}
}
