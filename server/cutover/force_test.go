package cutover_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// A source that refuses a session is there, and its clients may write.
func TestSourceThatRefusesIsNotGone(t *testing.T) {
	t.Parallel()
	limit(t)
	w := newWorld(t, 1)
	c := w.coordinator(t, nil)
	conn := connect(t, source.DSN("postgres"))
	role := "full_" + strings.ToLower(rand.Text()[:8])
	_, err := conn.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN PASSWORD 'right' CONNECTION LIMIT 0")
	must(t, err)
	t.Cleanup(func() {
		_, err := conn.Exec(context.Background(), "DROP ROLE "+role)
		must(t, err)
	})
	for password, state := range map[string]string{"right": "53300", "wrong": "28P01"} {
		job := w.job
		u, err := url.Parse(job.Source.Reveal())
		must(t, err)
		u.User = url.UserPassword(role, password)
		q := u.Query()
		q.Del("user")
		u.RawQuery = q.Encode()
		job.Source = tenant.DSN(u.String())
		if err := c.SourceGone(t.Context(), job); !errors.Is(err, cutover.ErrSourceReachable) || !strings.Contains(err.Error(), state) {
			t.Errorf("password %s: %v, expected a source that answers %s", password, err, state)
		}
	}
	gone := w.job
	gone.Source = tenant.DSN("postgres://nobody@127.0.0.1:1/none")
	must(t, c.SourceGone(t.Context(), gone))
}

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
				_, err = w.coordinator(t, die).Rollback(ctx, w.job, cutover.Attempt{ID: "doubt", MaxPause: patient})
			} else {
				_, err = w.coordinator(t, die).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "doubt", MaxPause: patient})
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
