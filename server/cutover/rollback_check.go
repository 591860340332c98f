package cutover

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// preflightRollback finds what stands in the way of a rollback and fills in what the attempt needs of the present. It
// changes nothing. An error means that it could not look.
func (r *run) preflightRollback(ctx context.Context) error {
	f := &findings{}
	if err := r.checkReturn(ctx, f); err != nil {
		return err
	}
	if err := r.checkVerification(ctx, f); err != nil {
		return err
	}
	if err := r.checkWayBackRuns(ctx, f); err != nil {
		return err
	}
	values, err := r.c.frozen(ctx, r.job.Replication)
	if err != nil {
		return err
	}
	if len(values) > 0 {
		f.add(tenant.Notice, "sequences", "source", "", "%d sequences are set ahead of the shards' at the source", len(values))
	}
	if r.at.Check != nil {
		found, err := r.at.Check(ctx)
		if err != nil {
			return err
		}
		f.list = append(f.list, found...)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.checkGateways(gctx, f) })
	if r.job.Catalogue != nil {
		g.Go(func() error { return checkCatalogues(gctx, r.job, f) })
	}
	for _, s := range r.job.Shards {
		g.Go(func() error { return r.checkOpenShard(gctx, s, values, f) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.sorted(f)
	return nil
}

// warnOfShards names what a verification of the way back saw that the source has right and the shards have not: after a
// rollback the stream from the source meets it, and the replication is paused at the first such row that changes.
func (f *findings) warnOfShards(tables []tenant.TableVerification) {
	const remedy = "after the rollback run: rehome verify --repair"
	for i := range tables {
		t := &tables[i]
		if len(t.ShardsDiffer) > 0 {
			f.add(tenant.Warning, "reference-differs", t.Table, remedy,
				"the rows of this reference table at shard %s are not the home shard's, which the source has: after a rollback a change of such a row pauses the replication", strings.Join(t.ShardsDiffer, ", "))
		}
		if t.Misplaced > 0 {
			f.add(tenant.Warning, "misplaced-rows", t.Table, remedy,
				"%d rows are at a shard that does not own their realm: after a rollback a change of such a row pauses the replication", t.Misplaced)
		}
	}
}

// checkReturn looks at the source: its gate, and whether its fence can be taken out of the way.
func (r *run) checkReturn(ctx context.Context, f *findings) error {
	conn, err := gate.SourceSession(ctx, r.job.Source)
	if err != nil {
		f.add(tenant.Blocking, "source-unreachable", "source", "see that its server runs", "%v", err)
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	if errors.Is(err, gate.ErrNoGate) {
		f.add(tenant.Blocking, "no-gate", "source", "the source was given up: start a new replication", "there is no gate at the source")
		return nil
	}
	if err != nil {
		return err
	}
	foreign, err := r.c.foreign(ctx, r.job, state)
	switch {
	case err != nil:
		return err
	case state.Side != gate.SideTarget:
		f.add(tenant.Blocking, "gate-not-at-target", "source", "there is nothing to roll back", "the gate at the source says that the %s writes (epoch %d)", state.Side, state.Epoch)
	case foreign:
		f.add(tenant.Blocking, "gate-not-at-target", "source", "roll that one back", "the source was cut over to another target (epoch %d, %s)", state.Epoch, state.NewURL)
	}
	r.rec.Epoch = state.Epoch
	if err := conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&r.rec.SystemID); err != nil {
		return fmt.Errorf("read the source's system identifier: %w", err)
	}
	var readOnly bool
	if err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&readOnly); err != nil {
		return fmt.Errorf("ask whether the source is a standby: %w", err)
	}
	if readOnly {
		f.add(tenant.Blocking, "source-is-a-standby", "source", "let the replication's source name its primary", "the source does not accept writes")
	}
	tables, err := gate.Tables(ctx, conn)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if !t.Owned && !t.Open() {
			f.add(tenant.Blocking, "cannot-open", t.Name.String(), "connect as its owner, or grant that role to ours", "the table at the source belongs to a role that we cannot act as, so its fence cannot be taken away")
		}
	}
	// Whoever holds a lock at the source keeps its fence from being taken away.
	found := &findings{}
	if err := checkActivity(ctx, conn, found); err != nil {
		return err
	}
	f.take(found, "source")
	return nil
}

// checkWayBackRuns demands that the way back works and is close behind.
func (r *run) checkWayBackRuns(ctx context.Context, f *findings) error {
	if r.job.WayBack == nil {
		f.add(tenant.Blocking, "no-way-back", r.job.Database, "rehome complete ends the move; the source keeps the data up to the cutover", "there is no way back: what was written since the cutover is not at the source")
		return nil
	}
	p := r.job.WayBack.Progress()
	switch p.State {
	case tenant.WayBackRunning:
	case tenant.WayBackBroken:
		f.add(tenant.Blocking, "way-back-broken", r.job.Database, p.Remedy, "the way back does not work any more: %s", p.Reason)
		return nil
	case tenant.WayBackPreparing:
		f.add(tenant.Blocking, "way-back-not-running", r.job.Database, "wait a moment; see replication-progress", "the way back is being made")
		return nil
	default:
		f.add(tenant.Blocking, "no-way-back", r.job.Database, "rehome complete ends the move; the source keeps the data up to the cutover", "there is no way back: it was not wanted at the cutover, or is not running")
		return nil
	}
	return r.checkClose(ctx, f, "the source", "the shards", func() (int64, float64) {
		p := r.job.WayBack.Progress()
		return p.LagBytes, p.LagMillis
	})
}

// checkOpenShard looks at one shard that is to be closed.
func (r *run) checkOpenShard(ctx context.Context, s Shard, values []tenant.SequenceValue, f *findings) error {
	object := "shard " + s.Name
	conn, err := gate.ShardSession(ctx, s.DSN)
	if err != nil {
		f.add(tenant.Blocking, "shard-unreachable", object, "see that its server runs", "%v", err)
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	switch {
	case errors.Is(err, gate.ErrNoGate):
		f.add(tenant.Blocking, "shard-without-gate", object, "find out who dropped it; without it the shard cannot be closed", "there is no gate at the shard")
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", object, err)
	case state.Side != gate.SideTarget || state.Epoch > r.rec.Epoch:
		f.add(tenant.Blocking, "shard-gate", object, "find out who moved it", "the shard's gate says %s at epoch %d; the source's is at %d", state.Side, state.Epoch, r.rec.Epoch)
	}
	tables, err := gate.Tables(ctx, conn)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	for _, t := range tables {
		if !t.Owned {
			f.add(tenant.Blocking, "cannot-fence", object+" "+t.Name.String(), "grant its owner's role to ours, or drop the table", "the table belongs to a role that we cannot act as, so it cannot be closed")
		}
	}
	var fsync string
	if err := conn.QueryRow(ctx, `SHOW fsync`).Scan(&fsync); err != nil {
		return fmt.Errorf("%s: read its settings: %w", object, err)
	}
	if fsync == "off" {
		f.add(tenant.Warning, "fsync-off", object, "turn fsync on", "the shard does not flush to disk (fsync = off): a power cut may forget that it was closed")
	}
	if _, err := catalog.ReadSequences(ctx, conn, sequenceList(values)); err != nil {
		f.add(tenant.Blocking, "sequences-unreadable", object, "see which sequence was dropped or renamed there, and undo that", "the shard's sequences cannot be read: %v", err)
	}
	found := &findings{}
	if err := checkActivity(ctx, conn, found); err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	f.take(found, object)
	return nil
}

// take adds the other's findings, as those of an object. Who is connected is no finding here: clients of the target are
// where they belong, and those of the source have been refused since the cutover.
func (f *findings) take(other *findings, object string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range other.list {
		if o.Code == "direct-clients" {
			continue
		}
		o.Object = object + " " + o.Object
		f.list = append(f.list, o)
	}
}
