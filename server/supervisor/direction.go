package supervisor

import (
	"context"
	"time"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// A verification shows that the side that does not take the writes has what the other one has: the shards before a cutover
// and after a rollback, the source in between. While the writes change sides nothing is compared, and what was begun before
// does not go on.

// errDeciding says that a verification has to wait for a decision.
var errDeciding = &tenant.Error{Kind: tenant.KindUnavailable, Code: "deciding", Message: "the writes are changing sides", Hint: "verify when it is over"}

// direction is which way the writes are carried just now. errDeciding while that is being decided.
func (r *runner) direction(ctx context.Context) (tenant.Direction, error) {
	switch st := r.state(); {
	case st.Phase == tenant.Paused || st.Phase.Terminal():
		return "", tenant.Errorf(tenant.KindConflict, "not-streaming", st.Remedy, "the replication is %s: %s", st.Phase, st.Reason)
	case st.Phase == tenant.CuttingOver || st.Phase == tenant.RollingBack:
		return "", errDeciding
	case st.Phase == tenant.CutOver:
		wanted, err := r.s.cutovers.WantsWayBack(ctx, r.id)
		if err == nil && !wanted {
			err = tenant.Errorf(tenant.KindConflict, "no-way-back", "", "the replication was cut over without a way back: the source stays as it was, so there is nothing to compare")
		}
		return tenant.DirectionBack, err
	}
	return tenant.DirectionForward, nil
}

// awaitDirection waits until the writes are on one side, for a while.
func (r *runner) awaitDirection(ctx context.Context) (tenant.Direction, error) {
	for began := time.Now(); ; {
		d, err := r.direction(ctx)
		if err == nil || !errIsDeciding(err) || time.Since(began) > verifyPatience {
			return d, err
		}
		if pauseFor(ctx, lookEvery) != nil {
			return d, err
		}
	}
}

func errIsDeciding(err error) bool {
	te := tenant.AsError(err)
	return te != nil && te.Code == errDeciding.Code
}

// compareNow compares once, in the direction of the verification.
func (r *runner) compareNow(ctx context.Context, v *verification, opts replicator.VerifyOptions) (res tenant.Verification, err error) {
	switch now, err := r.direction(ctx); {
	case err != nil:
		return res, err
	case now != v.direction:
		return res, tenant.Errorf(tenant.KindConflict, "sides-changed", "verify again", "the writes changed sides while it was compared")
	}
	e := r.current()
	if e == nil {
		return res, tenant.Errorf(tenant.KindUnavailable, "not-streaming", "see: rehome replication-progress", "the replication is not streaming")
	}
	if v.direction == tenant.DirectionForward {
		return e.Verify(ctx, opts)
	}
	cat := e.Catalogue()
	if cat == nil {
		return res, tenant.Errorf(tenant.KindUnavailable, "not-streaming", "see: rehome replication-progress", "the replication is not streaming")
	}
	return r.back.Verify(ctx, replicator.BackVerifyOptions{Catalogue: cat, Open: func() bool { return r.state().Phase == tenant.CutOver }}, opts)
}
