package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// namedTables bounds how many tables a finding names.
const namedTables = 5

// checkGates compares the gate at the source with the phase, the fences with the gates, and the shards with the source.
func (d *Doctor) checkGates(r *replication, src *sourceView, shards []*shardView, f *findings) {
	if r.moving() {
		return // everything of this may be in motion, and settles by itself
	}
	follow := func(ctx context.Context) error { return d.settle(ctx, r.id) }
	if r.attempt != "" {
		f.add(tenant.Blocking, "cutover-unfinished", r.name(), fixIt+" asks the source for the outcome and makes the shards follow it",
			"attempt %s to cut over has had no outcome for %s", r.attempt, r.attemptAge.Round(1e9)).mayPass().fix(follow)
	}
	var at *gate.State
	if src != nil {
		at = src.gate
		d.checkSourceGate(r, src, f)
	}
	for _, v := range shards {
		d.checkShardGate(r, at, v, f, follow)
	}
}

func (d *Doctor) checkSourceGate(r *replication, src *sourceView, f *findings) {
	if src.gate == nil {
		f.add(tenant.Blocking, "gate-missing", r.name(), "find out who dropped schema rehome there; before a cutover: cancel the replication and start it again; after one, fence the old side by other means at once",
			"the source has no gate although the replication is %s: nothing there says who may write", r.state.Phase).mayPass()
		return
	}
	toTarget := src.gate.Side == gate.SideTarget
	if over := r.phase() == tenant.CutOver; over != toTarget && r.phase() != tenant.CuttingOver && r.phase() != tenant.RollingBack && r.attempt == "" {
		f.add(tenant.Blocking, "gate-against-phase", r.name(), "the gate is right about who may write; find out who changed it or restored one of the two databases, before anything is switched",
			"the gate at the source says %s may write (epoch %d), and the replication is %s", src.gate.Side, src.gate.Epoch, r.state.Phase).mayPass()
	}
	for _, t := range src.tables {
		switch {
		case toTarget && t.Owned && !t.Closed():
			f.add(tenant.Blocking, "source-fence-open", t.Name.String(), fixIt+" puts it back; then look for rows written there since the cutover",
				"the data of %s has moved, but the old side accepts writes to this table: its fence is missing or disabled", r.name()).mayPass().fix(func(ctx context.Context) error { return d.refence(ctx, r) })
		case !toTarget && !t.Open():
			f.add(tenant.Blocking, "source-fence-closed", t.Name.String(), "if no other move fenced it, at the source: ALTER TABLE "+t.Name.Quoted()+" DISABLE TRIGGER "+gate.TriggerName,
				"the gate at the source of %s says that it may write, but this table is fenced", r.name()).mayPass()
		}
	}
}

func (d *Doctor) checkShardGate(r *replication, source *gate.State, v *shardView, f *findings, follow func(context.Context) error) {
	object := r.database + "@" + v.shard
	if v.gate == nil {
		n := f.add(tenant.Blocking, "shard-gate-missing", object, fixIt+" makes it anew, as the source's gate says", "the shard has no gate although %s is %s: it may accept writes", r.name(), r.state.Phase).mayPass()
		if source != nil {
			n.fix(func(ctx context.Context) error { return d.regate(ctx, r, v) })
		} else {
			n.Remedy = "make the source reachable, then: " + fixIt
		}
		return
	}
	if source != nil {
		toTarget := source.Side == gate.SideTarget
		switch {
		case toTarget && v.gate.Side != gate.SideTarget && v.gate.Epoch < source.Epoch:
			f.add(tenant.Blocking, "shard-closed", object, fixIt+" opens it", "the target may write since epoch %d, but this shard has not followed (%s, epoch %d)", source.Epoch, v.gate.Side, v.gate.Epoch).mayPass().fix(follow)
		case toTarget && v.gate.Side != gate.SideTarget:
			f.add(tenant.Blocking, "shard-gate-ahead", object, "find out which source this shard followed; it stays closed until its gate is mended by hand",
				"the shard's gate (%s, epoch %d) is ahead of the source's (%s, epoch %d) and says otherwise", v.gate.Side, v.gate.Epoch, source.Side, source.Epoch).mayPass()
		case !toTarget && v.gate.Side == gate.SideTarget:
			f.add(tenant.Blocking, "both-open", object, "stop the applications of one side now; find out which side has the newer data, and who changed the gate at the source",
				"the source may write (epoch %d), and so may this shard (epoch %d)", source.Epoch, v.gate.Epoch).mayPass()
		}
	}
	var wrong []string
	for _, t := range v.tables {
		if t.Owned && (v.gate.Side == gate.SideTarget && !t.Open() || v.gate.Side != gate.SideTarget && !t.Closed()) {
			wrong = append(wrong, t.Name.String())
		}
	}
	if len(wrong) == 0 {
		return
	}
	says := "is closed, but these tables accept writes"
	if v.gate.Side == gate.SideTarget {
		says = "is open, but these tables refuse writes"
	}
	f.add(tenant.Blocking, "shard-fence", object, fixIt+" makes the fences agree with the shard's gate", "the shard %s: %s", says, someOf(wrong)).mayPass().fix(func(ctx context.Context) error {
		return visit(ctx, gate.ShardSession, v.dsn, func(ctx context.Context, conn *pgx.Conn) error {
			if err := gate.SetPass(ctx, conn, d.pass(r.database)); err != nil { // an open way back refuses changes of the tables
				return err
			}
			_, err := gate.FenceShardTables(ctx, conn)
			return err
		})
	})
}

// refence puts the fence at the source back. It does nothing unless the gate says that the data has moved.
func (d *Doctor) refence(ctx context.Context, r *replication) error {
	return visit(ctx, gate.SourceSession, r.source, func(ctx context.Context, conn *pgx.Conn) error {
		if err := gate.SetPass(ctx, conn, d.pass(r.database)); err != nil {
			return err
		}
		return gate.Refence(ctx, conn, nil)
	})
}

// settle resolves what is unfinished at the source and makes the shards follow; then the worker goes on.
func (d *Doctor) settle(ctx context.Context, id string) error {
	r, err := d.read(ctx, id)
	if err != nil || r == nil || r.state.Phase.Terminal() {
		return err
	}
	if r.moving() {
		return errors.New("a cutover has just begun; it is left alone")
	}
	job, err := d.job(ctx, r)
	if err != nil {
		return err
	}
	if _, err := d.cutovers.ResolveAndFollow(ctx, job); err != nil {
		return err
	}
	if _, err := d.cfg.Pool.Exec(ctx, `SELECT pg_notify('rehome_commands', $1)`, id); err != nil {
		return fmt.Errorf("wake the worker: %w", err)
	}
	return nil
}

// regate makes a shard's gate anew: closed, and open only if the source's gate says so.
func (d *Doctor) regate(ctx context.Context, r *replication, v *shardView) error {
	err := visit(ctx, gate.ShardSession, v.dsn, func(ctx context.Context, conn *pgx.Conn) error {
		if err := gate.SetPass(ctx, conn, d.pass(r.database)); err != nil {
			return err
		}
		if err := gate.InstallShard(ctx, conn, d.pass(r.database)); err != nil {
			return err
		}
		_, err := gate.FenceShardTables(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	return d.settle(ctx, r.id)
}

func someOf(names []string) string {
	if len(names) <= namedTables {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:namedTables], ", "), len(names)-namedTables)
}
