package supervisor

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// fenceEvery is how often the fence of a source whose data has moved is looked at: two catalogue queries. Whoever gets
// around it, being the tables' owner where there are no event triggers, or a superuser, writes unseen for that long at most.
const fenceEvery = 5 * time.Second

// fenceLook bounds one look, which the end of a replication waits for. Putting many tables' fences back waits for their locks.
const fenceLook = time.Minute

// fenceStands reports whether a state is one in which the source's fence must stand: the target has the write authority, and
// nobody takes it back. A pause of the replication changes nothing of that.
func fenceStands(st tenant.State) bool {
	p := st.Phase
	if p == tenant.Paused {
		p = st.Resume
	}
	return p == tenant.CutOver
}

// keepFence looks after the fence at the source while the target has the write authority: what somebody took away of it is an
// alarm, and is put back.
func (r *runner) keepFence(ctx context.Context) error {
	var told []string
	for {
		if err := pauseFor(ctx, fenceEvery); err != nil {
			return nil //nolint:nilerr // the runner is stopping
		}
		missing, err := r.lookAtFence(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("look at the source's fence", "error", err)
			}
			continue
		}
		if len(missing) > 0 && !slices.Equal(missing, told) {
			r.journal.Note(ctx, "alarm", map[string]any{
				"code":   "fence-taken-away",
				"detail": "the fence at the source had been taken away and is put back: " + strings.Join(missing, ", ") + "; find out who did it: rows written there meanwhile stay behind",
			})
			r.log.Error("the fence at the source had been taken away", "missing", missing)
		}
		told = missing
	}
}

// lookAtFence is one look: what is missing is put back and returned. It does not look while the replication is being ended.
func (r *runner) lookAtFence(ctx context.Context) ([]string, error) {
	select {
	case r.fence <- struct{}{}:
	default:
		return nil, nil
	}
	defer func() { <-r.fence }()
	if !fenceStands(r.state()) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fenceLook)
	defer cancel()
	return r.refence(ctx)
}

// leaveFence keeps the watch away until release is called, and waits for a look under way: an end that drops the fence would
// otherwise meet what the watch puts back.
func (r *runner) leaveFence(ctx context.Context) (release func(), err error) {
	select {
	case r.fence <- struct{}{}:
		return func() { <-r.fence }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// refence puts back what is missing of the fence, and returns what was.
func (r *runner) refence(ctx context.Context) ([]string, error) {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return nil, err
	}
	conn, err := gate.SourceSession(ctx, rec.source)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := gate.SetPass(ctx, conn, r.s.pass(rec.database)); err != nil {
		return nil, err
	}
	b, err := gate.FindBreaches(ctx, conn, &r.ddlRight)
	if err != nil || !b.Any() {
		return nil, err
	}
	var missing []string
	for _, t := range b.Tables {
		missing = append(missing, "table "+t.Name.String())
	}
	if b.DDL {
		missing = append(missing, "event triggers")
	}
	// A server that was stopped for a while and wakes up must not put back what another one dropped.
	if err := r.journal.held(ctx); err != nil {
		return nil, err
	}
	return missing, gate.Refence(ctx, conn, &r.ddlRight)
}
