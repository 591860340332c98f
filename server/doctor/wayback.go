package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// backSlotRE takes the name of a way back's slot at a shard apart: see replicator.BackSlot.
var backSlotRE = regexp.MustCompile(`^(.+)_back_[0-9]+$`)

// slotOwner is the slot's name of the replication that a slot belongs to.
func slotOwner(name string) string {
	if m := backSlotRE.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return name
}

// checkWayBackAt looks at the slots of ways back in a database on a shard: they hold WAL back on the shard's server, and must
// be there only while there is a way back.
func (d *Doctor) checkWayBackAt(ctx context.Context, database, shard string, dsn tenant.DSN, f *findings) error {
	found := map[string]slot{}
	err := look(ctx, gate.ShardSession, dsn, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sourceSlots)
		if err != nil {
			return err
		}
		var name string
		var s slot
		_, err = pgx.ForEachRow(rows, []any{&name, &s.status, &s.active, &s.held, &s.confirmed}, func() error { found[name] = s; return nil })
		return err
	})
	object := database + "@" + shard
	if err != nil {
		f.add(tenant.Blocking, "database-unreachable", object, "see that the database accepts connections there", "its slots cannot be looked at: %s", err).mayPass()
		return nil
	}
	for name, s := range found {
		if owner := slotOwner(name); owner != name { // else it is a replication's that reads from here
			if err := d.checkBackSlot(ctx, object, name, owner, s, f); err != nil {
				return err
			}
		}
	}
	return d.checkBackMissing(ctx, database, shard, found, f)
}

func (d *Doctor) checkBackSlot(ctx context.Context, object, name, owner string, s slot, f *findings) error {
	var id string
	var raw []byte
	var commands int
	err := d.cfg.Pool.QueryRow(ctx, `SELECT id, state, (SELECT count(*) FROM rehome_control.replication_commands c WHERE c.replication = r.id AND c.finished_at IS NULL)
		FROM rehome_control.replications r WHERE slot_name = $1`, owner).Scan(&id, &raw, &commands)
	if errors.Is(err, pgx.ErrNoRows) {
		f.add(tenant.Warning, "way-back-orphan", object+":"+name, "find out whether another installation uses it; if nobody does, drop it there: SELECT pg_drop_replication_slot("+tenant.QuoteLiteral(name)+")",
			"the slot of a way back belongs to no replication known here, and holds WAL back at the shard").mayPass()
		return nil
	}
	var state tenant.State
	if err == nil {
		err = json.Unmarshal(raw, &state)
	}
	if err != nil {
		return fmt.Errorf("look whose slot %s is: %w", name, err)
	}
	phase := state.Phase
	if phase == tenant.Paused {
		phase = state.Resume
	}
	const anew = "give the way back up with: rehome complete"
	switch {
	case phase.Terminal() && commands == 0:
		f.add(tenant.Warning, "way-back-left", object+":"+name, fixIt+" drops it", "replication %s is %s, but the slot of its way back is still at the shard and holds WAL back", id, phase).mayPass().
			fix(func(ctx context.Context) error { return d.dropWayBack(ctx, id) })
	case !slices.Contains([]tenant.Phase{tenant.CuttingOver, tenant.CutOver, tenant.RollingBack}, phase) && commands == 0:
		f.add(tenant.Warning, "way-back-left", object+":"+name, "the next cutover replaces it, and so does the end of the replication drop it",
			"replication %s is %s, but the slot of a way back is at the shard and holds WAL back", id, phase).mayPass()
	case s.status == "lost":
		f.add(tenant.Blocking, "way-back-lost", object+":"+name, anew, "the shard removed WAL that the way back of replication %s needs (max_slot_wal_keep_size)", id)
	case s.status == "unreserved":
		f.add(tenant.Blocking, "way-back-nearly-lost", object+":"+name, "raise max_slot_wal_keep_size at the shard at once, or let the way back catch up",
			"the shard may remove WAL that the way back of replication %s needs at its next checkpoint", id)
	case s.status == "extended" || s.held > heldWAL:
		f.add(tenant.Warning, "way-back-holds-wal", object+":"+name, "see why it falls behind (rehome replication-progress)", "the way back of replication %s holds back %d MB of WAL at the shard", id, s.held>>20)
	case !s.active && phase == tenant.CutOver && commands == 0:
		f.add(tenant.Warning, "way-back-inactive", object+":"+name, "see why it does not run (rehome replication-progress, the server's log)", "nobody reads the slot of the way back of replication %s, which is %s", id, state.Phase).mayPass()
	}
	return nil
}

// checkBackMissing: after a cutover that was to keep a way back its slots must be there.
func (d *Doctor) checkBackMissing(ctx context.Context, database, shard string, found map[string]slot, f *findings) error {
	var id, name string
	err := d.cfg.Pool.QueryRow(ctx, `SELECT id, slot_name FROM rehome_control.replications WHERE database = $1 AND phase = 'cut_over'`, database).Scan(&id, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the replication of %s: %w", database, err)
	}
	ordinals, err := d.cfg.Catalogue.ShardOrdinals(ctx, database)
	if err != nil {
		return err
	}
	if _, there := found[replicator.BackSlot(name, ordinals[shard])]; there {
		return nil
	}
	wanted, err := d.cutovers.WantsWayBack(ctx, id)
	if err == nil && wanted {
		f.add(tenant.Blocking, "way-back-missing", database+"@"+shard, "what was written at the shards since cannot be carried back: rehome complete gives the way back up",
			"the slot of the way back of replication %s is gone from the shard", id).mayPass()
	}
	return err
}

// dropWayBack drops what a replication that is over left of its way back.
func (d *Doctor) dropWayBack(ctx context.Context, id string) error {
	r, err := d.read(ctx, id)
	if err != nil || r == nil {
		return err
	}
	if !r.state.Phase.Terminal() || r.commands > 0 {
		return errors.New("its worker is still at it")
	}
	job, err := d.job(ctx, r)
	if err != nil {
		return err
	}
	p, err := d.cfg.Catalogue.Placement(ctx, r.database)
	if err != nil {
		return err
	}
	cfg := replicator.BackConfig{
		Replication: r.id, Source: r.source, Slot: r.slot, Publication: r.publication, Placement: p, Options: r.options,
		Epoch: math.MaxInt64, // nobody works on it any more
		Pass:  d.pass(r.database), Journal: ended{}, Gate: backGates{}, Logger: d.cfg.Logger,
	}
	for _, s := range job.Shards {
		cfg.Shards = append(cfg.Shards, replicator.Shard{Name: s.Name, Ordinal: s.Ordinal, DSN: s.DSN})
	}
	b, err := replicator.NewBack(cfg)
	if err != nil {
		return err
	}
	return b.Discard(ctx)
}

// ended is the journal of a replication that is over: nobody else may own it.
type ended struct{ replicator.Journal }

func (ended) Observe(context.Context, tenant.Observation) (tenant.State, error) {
	return tenant.State{}, nil
}

// backGates is what dropping a way back needs of package gate.
type backGates struct{}

func (backGates) InstallBack(ctx context.Context, c *pgx.Conn) error { return gate.InstallBack(ctx, c) }

func (backGates) RemoveBack(ctx context.Context, c *pgx.Conn) error { return gate.RemoveBack(ctx, c) }

func (backGates) Heartbeat(context.Context, *pgx.Conn) error { return nil }
