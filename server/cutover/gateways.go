package cutover

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// gatewaySilence is when a gateway is taken for silent: it missed a renewal of its lease, which comes every 0.8 s.
	gatewaySilence = 2 * time.Second
	// gatewayPatience is a little more than the lease of a gateway that died: until then a hold would wait for it.
	gatewayPatience = 4 * time.Second
	gatewayEvery    = 200 * time.Millisecond
)

// checkGateways waits, before the pause instead of within it, until gateways that say nothing are heard again, or nobody has
// to wait for them any more.
func (r *run) checkGateways(ctx context.Context, f *findings) error {
	limit := time.Now().Add(gatewayPatience)
	named := map[string]bool{}
	for {
		rows, err := r.c.cfg.Pool.Query(ctx, `SELECT server, extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM rehome_control.gateways
			WHERE lease_expires_at > clock_timestamp() AND seen_at < clock_timestamp() - make_interval(secs => $1) ORDER BY server`, gatewaySilence.Seconds())
		if err != nil {
			return fmt.Errorf("look for gateways: %w", err)
		}
		silent := 0
		var server string
		var seen float64
		if _, err := pgx.ForEachRow(rows, []any{&server, &seen}, func() error {
			silent++
			if !named[server] {
				named[server] = true
				f.add(tenant.Warning, "gateway-silent", "gateway "+server, "see that its server runs and reaches the control database, or stop it in order",
					"it was last seen %.1f s ago; clients that come through it wait, and then get 503, until it is back", seen)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("look for gateways: %w", err)
		}
		if silent == 0 || time.Now().After(limit) {
			return nil
		}
		t := time.NewTimer(gatewayEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
