package replicator

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// A source that restarts does not break the way back; one that stays away does, and so does what does not pass by itself.
func TestTheWayBackOutlivesARestartOfTheSource(t *testing.T) {
	t.Parallel()
	away := tenant.Errorf(tenant.KindUnavailable, "unreachable", "see that it runs", "the database system is starting up")
	want := func(b *Back, state tenant.WayBackState) {
		t.Helper()
		if b.state != state || b.problem.reason == "" {
			t.Errorf("%s (%s), want %s", b.state, b.problem.reason, state)
		}
	}
	for _, before := range []tenant.WayBackState{tenant.WayBackNone, tenant.WayBackRunning} {
		b := &Back{state: before}
		for range 3 {
			b.setProblem(away)
			want(b, tenant.WayBackPreparing)
		}
		b.failing = time.Now().Add(-backGrace)
		b.setProblem(away)
		want(b, tenant.WayBackBroken)
		b.setState(tenant.WayBackRunning)
		b.setProblem(context.DeadlineExceeded)
		want(b, tenant.WayBackPreparing)
		b.setProblem(errors.New("a row that cannot be applied"))
		want(b, tenant.WayBackBroken)
	}
}
