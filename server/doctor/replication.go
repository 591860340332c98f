package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/rehomedb/rehome/tenant"
)

// heldWAL is how much a slot may hold back before it is worth a word: an idle or busy stream acknowledges every few
// seconds, and a gigabyte is minutes of a busy source.
const heldWAL = 1 << 30

// checkReplication looks at a replication's source and shards.
func (d *Doctor) checkReplication(ctx context.Context, id string, f *findings) error {
	r, err := d.read(ctx, id)
	if err != nil || r == nil {
		return err
	}
	src, unreachable := lookAtSource(ctx, r)
	if unreachable != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		severity, remedy := tenant.Blocking, "make it reachable from here: the replication cannot go on, and what is wrong there cannot be seen"
		if r.state.Phase.Terminal() {
			severity, remedy = tenant.Warning, "if it is gone for good, nothing is left there; else make it reachable and run rehome doctor again"
		}
		f.add(severity, "source-unreachable", r.name(), remedy, "the source %s cannot be looked at: %s", r.label, unreachable)
		src = nil
	}
	if src != nil {
		if want := r.origin.SystemIdentifier; want != "" && src.systemID != "" && src.systemID != want {
			f.add(tenant.Blocking, "source-other-server", r.name(), "find out where the former server went; a replication cannot go on from another one: cancel it and start it again",
				"the source %s is another server (system identifier %s) than the one that was copied (%s)", r.label, src.systemID, want)
			return nil // nothing there is this replication's
		}
		if err := d.checkOrphans(ctx, r, src, f); err != nil {
			return err
		}
	}
	if r.state.Phase.Terminal() {
		if src != nil {
			d.checkLeftovers(r, src, f)
		}
		return nil
	}
	if src != nil {
		checkSlot(r, src, f)
	}
	if !r.prepared() {
		return nil
	}
	shards, err := d.lookAtShards(ctx, r)
	if err != nil {
		if tenant.AsError(err).Kind == tenant.KindInternal {
			return err
		}
		f.add(tenant.Blocking, "shards-unknown", r.name(), "see the findings about database "+r.database, "its shards cannot be found: %s", err)
		return nil
	}
	shards = slices.DeleteFunc(shards, func(v *shardView) bool {
		if v.err != nil && tenant.AsError(v.err).Kind != tenant.KindUnavailable { // that, the checks of shard and database say
			f.add(tenant.Blocking, "shard-unseen", r.database+"@"+v.shard, "see the log of that server", "gate and positions of %s there cannot be read: %s", r.name(), v.err).mayPass()
		}
		return v.err != nil
	})
	d.checkGates(r, src, shards, f)
	return d.checkPositions(ctx, r, src, shards, f)
}

// checkSlot looks at slot and publication of a replication that is not over.
func checkSlot(r *replication, src *sourceView, f *findings) {
	const anew = "the stream cannot go on without a gap: cancel the replication and start it again"
	if r.prepared() && !src.published {
		f.add(tenant.Blocking, "publication-missing", r.publication, anew, "the publication of %s is gone from the source", r.name()).mayPass()
	}
	s := src.slot
	switch {
	case s == nil:
		if r.prepared() {
			remedy := anew
			if r.phase() == tenant.CutOver {
				remedy = "the target has the authority already: verify what matters, then: rehome complete"
			}
			f.add(tenant.Blocking, "slot-missing", r.slot, remedy, "the replication slot of %s, which is %s, is gone from the source", r.name(), r.state.Phase).mayPass()
		}
		return
	case s.status == "lost":
		f.add(tenant.Blocking, "slot-lost", r.slot, anew, "the source removed WAL that the slot of %s needs (max_slot_wal_keep_size)", r.name())
		return
	case s.status == "unreserved":
		f.add(tenant.Blocking, "slot-nearly-lost", r.slot, "raise max_slot_wal_keep_size at the source at once, or let the replication catch up", "the source may remove WAL that the slot of %s needs at its next checkpoint", r.name())
	case s.status == "extended" || s.held > heldWAL:
		f.add(tenant.Warning, "slot-holds-wal", r.slot, "see why it falls behind (rehome replication-progress); resume it if it is paused", "the slot of %s holds back %d MB of WAL at the source", r.name(), s.held>>20)
	}
	if !s.active && r.streams() && r.state.Phase != tenant.Paused {
		f.add(tenant.Warning, "slot-inactive", r.slot, "see that a server of the installation runs and reaches the source (rehome replication-progress, the server's log)",
			"nobody reads the slot of %s although it is %s", r.name(), r.state.Phase).mayPass()
	}
}

// checkOrphans names slots that look like Rehome's and belong to no replication. Another installation may use them.
func (d *Doctor) checkOrphans(ctx context.Context, r *replication, src *sourceView, f *findings) error {
	for _, name := range src.otherSlots {
		var known bool
		if err := d.cfg.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.replications WHERE slot_name = $1)`, slotOwner(name)).Scan(&known); err != nil {
			return fmt.Errorf("look whose slot %s is: %w", name, err)
		}
		if !known {
			f.add(tenant.Warning, "slot-orphan", name, "find out whether another installation reads from this source; if nobody does, drop it there: SELECT pg_drop_replication_slot("+tenant.QuoteLiteral(name)+")",
				"a slot at the source %s belongs to no replication known here, and holds WAL back", r.label).mayPass()
		}
	}
	return nil
}

// checkPositions compares who may apply, and how far the shards are, with the lease and the slot.
func (d *Doctor) checkPositions(ctx context.Context, r *replication, src *sourceView, shards []*shardView, f *findings) error {
	// Read after the shards: a worker raises the lease's epoch first, theirs later.
	var lease int64
	err := d.cfg.Pool.QueryRow(ctx, `SELECT COALESCE((SELECT epoch FROM rehome_control.leases WHERE resource = $1), 0)`, leaseOf(r.id)).Scan(&lease)
	if err != nil {
		return fmt.Errorf("read the lease of %s: %w", r.name(), err)
	}
	for _, v := range shards {
		object := r.database + "@" + v.shard
		switch {
		case v.epoch > lease:
			f.add(tenant.Blocking, "epoch-ahead", object, "see whether another installation works with the same shards, or the control database was restored from a backup; stop one of them",
				"the shard obeys epoch %d of %s, and the lease here is at %d", v.epoch, r.name(), lease).mayPass()
		case v.epoch == 0 || v.lsn == 0:
			f.add(tenant.Blocking, "progress-missing", object, "the shard was emptied or restored: cancel the replication and start it again",
				"the shard does not know how far %s is", r.name()).mayPass()
		case src != nil && src.slot != nil && r.streams() && v.lsn < src.slot.confirmed:
			f.add(tenant.Blocking, "shard-behind-slot", object, "the shard lost transactions: cancel the replication and start it again",
				"the slot was acknowledged up to %s, but the shard has only what came before %s", src.slot.confirmed, v.lsn).mayPass()
		}
	}
	return nil
}
