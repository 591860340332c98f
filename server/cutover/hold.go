package cutover

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// switchTimeout bounds the recording of the side that clients go to. What is not recorded by then is recorded when the
// attempt is carried on; until then gateways keep requests waiting, or refuse them.
const switchTimeout = 10 * time.Second

// hold lets no new work in at any gateway.
func (r *run) hold(ctx context.Context, until time.Time) error {
	g := r.c.cfg.Gateways
	if g == nil {
		return nil
	}
	release, culprits, err := g.Hold(ctx, r.job.Database, r.at.ID, until)
	for _, c := range culprits {
		r.rec.Culprits = append(r.rec.Culprits, c)
		r.culprits = append(r.culprits, culprit(c))
	}
	r.release = release
	return err
}

// letGo lets held work go on where it went before.
func (r *run) letGo() {
	if r.release != nil {
		r.release()
		r.release = nil
	}
}

// switchClients sends the clients to the side that the gate names, and lets held work of the attempts go on there.
func (c *Coordinator) switchClients(ctx context.Context, job Job, state gate.State, attempts ...string) error {
	g := c.cfg.Gateways
	if g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, switchTimeout)
	defer cancel()
	if err := g.Switch(ctx, job.Database, job.Replication, state.Epoch, state.Side == gate.SideTarget, attempts...); err != nil {
		return fmt.Errorf("switch the clients: %w", err)
	}
	return nil
}

// culprit is the finding that names who was in the way.
func culprit(c string) tenant.Finding {
	f := tenant.Finding{Severity: tenant.Warning, Code: "in-the-way", Object: "source", Message: c, Remedy: "let it end, or end it: SELECT pg_terminate_backend(pid)"}
	if strings.HasPrefix(c, "gateway ") {
		f.Object, f.Remedy = "gateway", "see that its server runs and reaches the control database, or stop it in order"
	}
	return f
}
