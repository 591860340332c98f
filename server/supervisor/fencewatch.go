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

// keepFence looks after the fence at the source while the target has the write authority: what somebody took away of it is an
// alarm, and is put back.
func (r *runner) keepFence(ctx context.Context) error {
	var told []string
	for {
		if err := pauseFor(ctx, fenceEvery); err != nil {
			return nil //nolint:nilerr // the runner is stopping
		}
		if r.state().Phase != tenant.CutOver {
			told = nil
			continue
		}
		missing, err := r.refence(ctx)
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
	b, err := gate.FindBreaches(ctx, conn)
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
	return missing, gate.Refence(ctx, conn)
}
