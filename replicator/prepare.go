package replicator

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/schema"
	"github.com/rehomedb/rehome/tenant"
)

// prepare makes everything that the copy needs: at the source the replica identities that were asked for, the schema
// rehome, the publication and the slot; at the shards the schema. It may run again after a crash at any point; the slot
// is then made anew, since nothing was copied yet. It ends with the copy of the tables, because the slot's snapshot lives
// only as long as its session.
func (e *Engine) prepare(ctx context.Context) error {
	if e.State().Phase == tenant.Created {
		if _, err := e.observe(ctx, tenant.Observation{Kind: tenant.SawOwned}); err != nil {
			return err
		}
	}
	e.announce(ctx, "describing the source")
	cat, id, err := e.describe(ctx)
	if err != nil {
		return err
	}
	if e.cfg.Options.FixIdentity {
		changes, _ := catalog.PlanIdentityFor(cat, e.cfg.Options, len(e.cfg.Shards))
		if len(changes) > 0 {
			e.announce(ctx, "making replica identities that contain the realm key")
			if err := e.changeSource(ctx, changes); err != nil {
				return err
			}
			if cat, id, err = e.describe(ctx); err != nil {
				return err
			}
		}
	}
	e.announce(ctx, "taking over the shards")
	err = e.eachShard(ctx, "setup", func(_ Shard, c *pgx.Conn) error {
		if err := InstallShard(ctx, c); err != nil {
			return err
		}
		if err := e.cfg.Gate.InstallShard(ctx, c); err != nil {
			return err
		}
		_, err := takeLane(ctx, c, e.cfg.Replication, e.cfg.Epoch)
		return err
	})
	if err != nil {
		return err
	}
	e.announce(ctx, "creating publication and slot")
	src, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	err = e.cfg.Gate.InstallSource(ctx, src)
	closeSoon(src)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if notes := catalog.PlanTruncations(cat, e.cfg.Replication); len(notes) > 0 {
		if err := e.changeSource(ctx, notes); err != nil {
			return err
		}
	}
	if err := e.stillOwned(ctx); err != nil {
		return err
	}
	follow, err := e.followDDL(ctx)
	if err != nil {
		return err
	}
	if err := e.stillOwned(ctx); err != nil {
		return err
	}
	own := []string{`rehome.marker`, `rehome.heartbeat`, `rehome.truncated`}
	if follow {
		own = append(own, `rehome.ddl`)
	}
	if err := e.src.publish(ctx, cat, own...); err != nil {
		return err
	}
	if err := e.stillOwned(ctx); err != nil {
		return err
	}
	snap, err := e.src.createSlot(ctx, cat.Server.Version >= 170000)
	if err != nil {
		return err
	}
	defer snap.close()
	dump := e.dumpBeside(ctx, snap.name, cat)
	defer dump.stop()
	if cat, err = e.describeAgain(ctx, snap, cat); err != nil {
		return err
	}
	doc, err := e.firstShape(ctx, snap, cat, follow)
	if err != nil {
		return err
	}
	err = e.eachShard(ctx, "setup", func(_ Shard, c *pgx.Conn) error {
		if err := seedProgress(ctx, c, e.cfg.Replication, e.cfg.Epoch, snap.lsn); err != nil {
			return err
		}
		return doc.seed(ctx, c, e.cfg.Replication)
	})
	if err != nil {
		return err
	}
	origin := Origin{SystemIdentifier: id.SystemIdentifier, Timeline: id.Timeline, Version: cat.Server.Version, StartLSN: snap.lsn, Catalogue: cat}
	if err := e.cfg.Journal.SaveOrigin(ctx, origin); err != nil {
		return err
	}
	e.mu.Lock()
	e.origin, e.cat, e.copied = &origin, cat, map[uint32]copied{}
	e.mu.Unlock()
	e.stats.reset(cat)

	e.announce(ctx, "creating the tables on the shards")
	archive, err := dump.wait()
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	err = e.parallel(ctx, func(ctx context.Context, sh Shard) error {
		if err := archive.RestorePre(ctx, sh.DSN, e.cfg.Replication); err != nil {
			return err
		}
		c, err := e.shardSession(ctx, sh, "setup")
		if err != nil {
			return err
		}
		defer closeSoon(c)
		err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if err := e.ownShared(ctx, tx); err != nil {
				return err
			}
			return archive.Keep(ctx, tx, e.cfg.Replication)
		})
		if err != nil {
			return err
		}
		return e.cfg.Gate.FenceShard(ctx, c)
	})
	if err != nil {
		return err
	}
	if _, err := e.observe(ctx, tenant.Observation{Kind: tenant.SawPrepared}); err != nil {
		return err
	}
	return e.copyUnder(ctx, snap, archive, true)
}

// copyAll goes on with a copy whose process or source went away: finished tables stay, the others are copied under a new
// snapshot, whose position becomes their watermark.
func (e *Engine) copyAll(ctx context.Context) error {
	err := e.eachShard(ctx, "setup", func(_ Shard, c *pgx.Conn) error {
		_, err := takeLane(ctx, c, e.cfg.Replication, e.cfg.Epoch)
		return err
	})
	if err != nil {
		return err
	}
	if err := e.checkOrigin(ctx); err != nil {
		return err
	}
	e.announce(ctx, "opening a new snapshot for the tables that are left")
	snap, err := e.src.temporarySnapshot(ctx, "copy")
	if err != nil {
		return err
	}
	defer snap.close()
	if err := e.noteCopied(ctx); err != nil {
		return err
	}
	if err := e.refreshLeaves(ctx, snap); err != nil {
		return err
	}
	archive, err := e.kept(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	return e.copyUnder(ctx, snap, archive, false)
}

// kept is the slot's schema, which the shards' tables have: never that of a later snapshot.
func (e *Engine) kept(ctx context.Context) (*schema.Archive, error) {
	sh := e.cfg.Shards[0]
	c, err := e.shardSession(ctx, sh, "setup")
	if err != nil {
		return nil, err
	}
	defer closeSoon(c)
	a, err := schema.Kept(ctx, c, e.cfg.Replication, e.log)
	if err != nil {
		return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
	}
	if a == nil {
		return nil, stop("schema-not-kept", "cancel the replication and start it again", "shard %s does not have the source's schema of when the slot was made", sh.Name)
	}
	return a, nil
}

// copyUnder copies under a snapshot, lets it go, and builds what belongs behind the copy. first: the snapshot is the slot's.
func (e *Engine) copyUnder(ctx context.Context, snap *view, archive *schema.Archive, first bool) error {
	notes, err := e.takeNotes(ctx)
	if err != nil {
		return err
	}
	e.announce(ctx, "copying")
	if err := e.throttle.begin(ctx); err != nil {
		return err
	}
	var build *early
	if first {
		build = e.buildEarly(ctx, archive)
		defer build.stop()
	}
	rewritten, err := e.copyTables(ctx, snap, notes, build)
	if err != nil {
		return err
	}
	snap.close() // before the last indexes: an open snapshot holds back vacuum at the source
	if rewritten {
		e.announce(ctx, "copying what was rewritten meanwhile")
		if err := e.copyRewritten(ctx); err != nil {
			return err
		}
	}
	e.announce(ctx, "building indexes and constraints")
	analysed := build.finish()
	if notes, err = e.takeNotes(ctx); err != nil {
		return err
	}
	chunked := notes.chunked(e.cat)
	hold, err := e.held(ctx)
	if err != nil {
		return err
	}
	err = e.parallel(ctx, func(ctx context.Context, sh Shard) error {
		if err := e.freeze(ctx, sh, chunked); err != nil {
			return err
		}
		err := archive.RestorePost(ctx, sh.DSN, e.cfg.Replication, indexJobs, hold, func(n, total int, item string) {
			e.stats.setStep(fmt.Sprintf("building indexes and constraints on %s: %d of %d (%s)", sh.Name, n, total, item))
		})
		if err != nil {
			return err
		}
		c, err := e.shardSession(ctx, sh, "setup")
		if err != nil {
			return err
		}
		defer closeSoon(c)
		if err := e.cfg.Gate.FenceShard(ctx, c); err != nil {
			return err
		}
		e.stats.setStep("analysing " + sh.Name)
		return e.analyse(ctx, c, analysed[sh.Name])
	})
	if err != nil {
		return err
	}
	e.stats.setStep("")
	_, err = e.observe(ctx, tenant.Observation{Kind: tenant.SawCopied})
	return err
}

func (e *Engine) parallel(ctx context.Context, fn func(context.Context, Shard) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, sh := range e.cfg.Shards {
		g.Go(func() error {
			if err := fn(ctx, sh); err != nil {
				return fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// dumping is pg_dump at work.
type dumping struct {
	cancel  context.CancelFunc
	group   errgroup.Group
	archive *schema.Archive
}

// dumpBeside starts to read the source's schema under a snapshot, beside what else is read under it. The caller stops it.
func (e *Engine) dumpBeside(ctx context.Context, snap string, cat *catalog.Catalogue) *dumping {
	d := &dumping{}
	ctx, d.cancel = context.WithCancel(ctx)
	d.group.Go(func() (err error) {
		d.archive, err = schema.Dump(ctx, schema.Config{DSN: e.cfg.Source, Snapshot: snap, Catalogue: cat, Options: e.cfg.Options, Logger: e.log})
		if err != nil {
			return fmt.Errorf("read the source's schema: %w", err)
		}
		return nil
	})
	return d
}

func (d *dumping) wait() (*schema.Archive, error) {
	err := d.group.Wait()
	return d.archive, err
}

// stop gives up what is under way.
func (d *dumping) stop() {
	d.cancel()
	_ = d.group.Wait()
}

func (e *Engine) describe(ctx context.Context) (*catalog.Catalogue, identity, error) {
	id, err := e.src.identify(ctx)
	if err != nil {
		return nil, id, err
	}
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return nil, id, err
	}
	defer closeSoon(c)
	cat, err := catalog.Describe(ctx, c, e.cfg.Options)
	if err != nil {
		return nil, id, fmt.Errorf("describe the source: %w", err)
	}
	cat.Server.SystemIdentifier = id.SystemIdentifier
	return cat, id, nil
}

// stillOwned asks the journal, just before something is dropped at the source that a later owner may have made: the time
// since the lease was taken may be long, and this server may have been stopped meanwhile.
func (e *Engine) stillOwned(ctx context.Context) error {
	_, err := e.observe(ctx, tenant.Observation{Kind: tenant.SawOwned})
	return err
}

// describeAgain describes the source as the slot's snapshot sees it. What was published must still be all there is: rows of
// a partition that came in between would be neither in the copy nor in the stream.
func (e *Engine) describeAgain(ctx context.Context, snap *view, before *catalog.Catalogue) (*catalog.Catalogue, error) {
	now, err := e.describeUnder(ctx, snap)
	if err != nil {
		return nil, err
	}
	now.Server.SystemIdentifier = before.Server.SystemIdentifier
	for i := range now.Tables {
		was := before.Table(now.Tables[i].OID)
		what := changedTable(was, &now.Tables[i])
		if id := now.Tables[i].Identity; what == "" && (was.Identity.Kind != id.Kind || !slices.Equal(was.Identity.Columns, id.Columns)) {
			what = fmt.Sprintf("the replica identity of table %s changed", now.Tables[i].Name)
		}
		if what != "" {
			return nil, tenant.Errorf(tenant.KindUnavailable, "source-changed", "", "%s while the slot was being made; it is made again", what)
		}
	}
	if len(now.Tables) != len(before.Tables) {
		return nil, tenant.Errorf(tenant.KindUnavailable, "source-changed", "", "a table was dropped while the slot was being made; it is made again")
	}
	return now, nil
}

func (e *Engine) describeUnder(ctx context.Context, snap *view) (*catalog.Catalogue, error) {
	c, err := e.src.reader(ctx, snap.name, "setup")
	if err != nil {
		return nil, err
	}
	defer closeSoon(c)
	cat, err := catalog.Describe(ctx, c, e.cfg.Options)
	if err != nil {
		return nil, fmt.Errorf("describe the source: %w", err)
	}
	return cat, nil
}

// changedTable says how a table's rows are no longer those that were described; "" when they are.
func changedTable(before, now *catalog.Table) string {
	switch {
	case before == nil:
		return fmt.Sprintf("table %s came up", now.Name)
	case before.Name != now.Name:
		return fmt.Sprintf("table %s was renamed to %s", before.Name, now.Name)
	case !slices.EqualFunc(before.Columns, now.Columns, sameColumn):
		return fmt.Sprintf("the columns of table %s changed", now.Name)
	case !sameLeaves(before.Leaves, now.Leaves):
		return fmt.Sprintf("the partitions of table %s changed", now.Name)
	}
	return ""
}

func sameColumn(a, b catalog.Column) bool {
	return a.Num == b.Num && a.Name == b.Name && a.TypeOID == b.TypeOID && a.Mod == b.Mod && a.Generated == b.Generated
}

func sameLeaves(a, b []catalog.Leaf) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x catalog.Leaf) bool {
		return !slices.ContainsFunc(b, func(y catalog.Leaf) bool { return x.OID == y.OID && x.Name == y.Name })
	})
}

func (e *Engine) changeSource(ctx context.Context, changes []tenant.SourceChange) error {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	return catalog.ApplyChanges(ctx, c, changes, func(ch tenant.SourceChange) error {
		e.stats.setStep(ch.Description)
		return e.cfg.Journal.ChangeSource(ctx, ch)
	})
}

// checkOrigin makes sure that the source is the one that the replication began with, and that its slot can still serve
// the shards. Going on with another would lose or invent rows, so each mismatch is a loud stop.
func (e *Engine) checkOrigin(ctx context.Context) error {
	e.mu.Lock()
	origin := e.origin
	e.mu.Unlock()
	if e.cfg.back != nil {
		return e.checkShard(ctx)
	}
	again := "cancel the replication and start it again"
	if origin == nil || origin.Catalogue == nil {
		return stop("no-origin", again, "nothing is recorded of the source that this replication began with")
	}
	id, err := e.src.identify(ctx)
	if err != nil {
		return err
	}
	if id.SystemIdentifier != origin.SystemIdentifier {
		return stop("other-source", again, "the source is another server now (system identifier %s, it was %s)", id.SystemIdentifier, origin.SystemIdentifier)
	}
	if id.Timeline != origin.Timeline {
		return stop("other-timeline", "make sure that the promoted server has every transaction of the former one, then "+again,
			"the source is on timeline %d now, it was on %d: it was restored or failed over", id.Timeline, origin.Timeline)
	}
	return e.takeSlot(ctx)
}

// takeSlot makes sure that the slot can go on, and ends whoever still reads it.
func (e *Engine) takeSlot(ctx context.Context) error {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	slot, err := e.src.slotState(ctx, c)
	if err == nil {
		err = e.checkSlot(slot)
	}
	if err != nil {
		return err
	}
	return e.src.freeSlot(ctx, c)
}

// checkSlot makes sure that the slot is there, is ours, and still has all that it kept.
func (e *Engine) checkSlot(slot slotState) error {
	again := "cancel the replication and start it again"
	switch {
	case !slot.exists:
		return stop("slot-missing", again, "replication slot %s is gone from the source", e.src.slot)
	case slot.plugin != "pgoutput":
		return stop("slot-foreign", again, "replication slot %s was made anew by others: its plugin is %q", e.src.slot, slot.plugin)
	case slot.status == "lost":
		return stop("slot-lost", again+"; raise max_slot_wal_keep_size at the source before", "the source removed WAL that slot %s needs", e.src.slot)
	}
	return nil
}

// announce shows and records what is done next.
func (e *Engine) announce(ctx context.Context, what string) {
	e.stats.setStep(what)
	e.log.Info("replication step", "step", what)
	e.cfg.Journal.Note(ctx, "step", map[string]any{"step": what})
}

// CleanUp drops slot and publication at the source, whatever of them is there. The engine must not be running.
func (e *Engine) CleanUp(ctx context.Context) error { return e.src.cleanUp(ctx) }

// AtSource runs fn on a session at the source.
func (e *Engine) AtSource(ctx context.Context, fn func(*pgx.Conn) error) error {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	return fn(c)
}

// AtShards runs fn on a session at every shard, one after the other.
func (e *Engine) AtShards(ctx context.Context, fn func(*pgx.Conn) error) error {
	return e.eachShard(ctx, "setup", func(_ Shard, c *pgx.Conn) error { return fn(c) })
}
