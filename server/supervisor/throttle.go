package supervisor

import (
	"context"

	"github.com/rehomedb/rehome/tenant"
)

// followThrottle hands the engine what the operator allows at the source just now.
func (r *runner) followThrottle(ctx context.Context) {
	e := r.current()
	if e == nil {
		return // it gets them when it starts
	}
	var set tenant.Throttle
	if err := r.s.cfg.Pool.QueryRow(ctx, `SELECT throttle FROM rehome_control.replications WHERE id = $1`, r.id).Scan(&set); err != nil {
		if ctx.Err() == nil {
			r.log.Warn("read the throttle", "error", err)
		}
		return
	}
	e.SetThrottle(set)
}
