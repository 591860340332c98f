package cutover_test

import (
	"errors"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// Only a person who declares the source destroyed opens the target while the outcome is in doubt, and not while the source
// answers.
func TestForceTarget(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, direction := range []cutover.Direction{cutover.DirectionCutover, cutover.DirectionRollback} {
		t.Run(string(direction), func(t *testing.T) {
			t.Parallel()
			limit(t)
			w, _ := newWayWorld(t, 2)
			die := func(step string) error {
				if step == cutover.StepDrain {
					return cutover.ErrKilled
				}
				return nil
			}
			var err error
			if direction == cutover.DirectionRollback {
				w.cutOver(t, "there", nil)
				_, err = w.coordinator(t, die).Rollback(ctx, w.job, cutover.Attempt{ID: "doubt"})
			} else {
				_, err = w.coordinator(t, die).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "doubt"})
			}
			if !errors.Is(err, cutover.ErrKilled) {
				t.Fatal(err)
			}
			c, gone := w.coordinator(t, nil), w.job
			gone.Source = tenant.DSN("postgres://nobody@127.0.0.1:1/none")
			if _, err := c.ResolveAndFollow(ctx, gone); tenant.AsError(err).Code != "cutover-in-doubt" {
				t.Errorf("without the source: %v", err)
			}
			sides := func(want gate.Side) {
				t.Helper()
				for _, s := range w.job.Shards {
					conn := connect(t, s.DSN)
					state, err := gate.ReadGate(ctx, conn)
					must(t, err)
					_, err = conn.Exec(ctx, `INSERT INTO entries VALUES (gen_random_uuid()::text, 'x')`)
					if state.Side != want || (err == nil) != (want == gate.SideTarget) {
						t.Errorf("shard %s: %+v, a write: %v; want %s", s.Name, state, err, want)
					}
				}
			}
			sides(gate.SideClosed)
			if err := c.ForceTarget(ctx, w.job); !errors.Is(err, cutover.ErrSourceReachable) {
				t.Errorf("while the source answers: %v", err)
			}
			sides(gate.SideClosed)
			must(t, c.ForceTarget(ctx, gone))
			sides(gate.SideTarget)
			if got := w.outcome(t, "doubt"); got != cutover.OutcomeTarget {
				t.Errorf("outcome %s", got)
			}
			if err := c.ForceTarget(ctx, gone); tenant.AsError(err).Code != "not-in-doubt" {
				t.Errorf("once more: %v", err)
			}
		})
	}
}
