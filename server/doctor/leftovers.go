package doctor

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// checkLeftovers looks for what a replication that is over left at its source. What another replication needs, or may
// need, stays.
func (d *Doctor) checkLeftovers(r *replication, src *sourceView, f *findings) {
	if r.commands > 0 {
		return // its worker is still at it
	}
	// One round of tidying serves all that it left.
	var once sync.Once
	var result error
	tidy := func(ctx context.Context) error {
		once.Do(func() { result = d.tidy(ctx, r) })
		return result
	}
	const remedy = fixIt + " takes it back"
	if src.slot != nil {
		f.add(tenant.Blocking, "slot-left", r.slot, remedy, "the slot of %s, which is %s, is still at the source and holds WAL back", r.name(), r.state.Phase).fix(tidy)
	}
	if src.published {
		f.add(tenant.Warning, "publication-left", r.publication, remedy, "the publication of %s, which is %s, is still at the source", r.name(), r.state.Phase).fix(tidy)
	}
	if r.rivals || len(src.otherSlots) > 0 || src.shared {
		return // schema rehome and replica identities may be theirs
	}
	if len(r.toUndo) > 0 {
		f.add(tenant.Warning, "changes-left", r.name(), remedy, "the replication is %s, but %d of its changes at the source were not taken back: %s", r.state.Phase, len(r.toUndo), r.toUndo[0].Description).fix(tidy)
	} else if len(src.indexes) > 0 {
		f.add(tenant.Warning, "index-left", src.indexes[0], "see whether a table's replica identity uses it; if none does, drop it there",
			"%s is %s, and the source still has indexes that were made for replica identities: %s", r.name(), r.state.Phase, someOf(src.indexes))
	}
	// After a cutover gate and fence stay for ever, so that the old side never accepts a write again.
	moved := src.gate != nil && src.gate.Side == gate.SideTarget
	if moved && r.state.Phase == tenant.Cancelled {
		f.add(tenant.Blocking, "gate-against-phase", r.name(), "find out who changed the gate", "the replication is cancelled, but the gate at the source says that the data has moved (epoch %d): it refuses writes", src.gate.Epoch)
	}
	if src.gate != nil && !moved || src.marks {
		n := f.add(tenant.Warning, "schema-left", r.name(), remedy, "the replication is %s, but the source still has its schema rehome", r.state.Phase)
		if src.gate != nil {
			n.fix(tidy)
		} else {
			n.Remedy = "without a gate there it cannot be told whether it is ours: look at it and drop it by hand"
		}
	}
}

// tidy ends what a cancel or a completion began. It asks again who else reads from the source: that may have changed.
func (d *Doctor) tidy(ctx context.Context, was *replication) error {
	r, err := d.read(ctx, was.id)
	if err != nil || r == nil {
		return err
	}
	if !r.state.Phase.Terminal() || r.commands > 0 {
		return errors.New("its worker is still at it")
	}
	// Cleaning up at the source needs no shard, but an engine wants a placement.
	e, err := replicator.New(replicator.Config{
		Replication: r.id, Source: r.source, Slot: r.slot, Publication: r.publication, State: r.state, Logger: d.cfg.Logger,
		Shards: []replicator.Shard{{Name: "none"}}, Placement: tenant.Placement{Ranges: []tenant.Range{{To: tenant.Buckets - 1, Shard: "none"}}, Home: "none"},
	})
	if err != nil {
		return err
	}
	if err := e.CleanUp(ctx); err != nil {
		return err
	}
	src, err := lookAtSource(ctx, r)
	if err != nil || r.rivals || len(src.otherSlots) > 0 || src.shared {
		return err
	}
	return e.AtSource(ctx, func(conn *pgx.Conn) error {
		if err := gate.SetPass(ctx, conn, d.pass(r.database)); err != nil { // a fence that stays refuses changes of the tables
			return err
		}
		if len(r.toUndo) > 0 {
			if err := catalog.UndoChanges(ctx, conn, r.toUndo); err != nil {
				return fmt.Errorf("take back what was changed at the source: %w", err)
			}
			if _, err := d.cfg.Pool.Exec(ctx, `UPDATE rehome_control.source_changes SET undone_at = now() WHERE replication = $1 AND undone_at IS NULL`, r.id); err != nil {
				return fmt.Errorf("record that the source's changes were taken back: %w", err)
			}
		}
		return gate.UninstallSource(ctx, conn, false)
	})
}
