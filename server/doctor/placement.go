package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// checkShard looks at a shard's server.
func (d *Doctor) checkShard(ctx context.Context, s shard.Shard, f *findings) {
	object := "shard " + s.Name
	unreachable := func(why string) {
		f.add(tenant.Blocking, "shard-unreachable", object, "start it, or change its address with: rehome update-shard "+s.Name, "the server %s cannot be reached: %s", s.Address, why)
	}
	if !s.Reachable {
		unreachable(s.Error)
		return
	}
	dsn, err := d.cfg.Catalogue.ShardDSN(ctx, s.Name)
	var id string
	if err == nil {
		err = look(ctx, gate.ShardSession, dsn, func(ctx context.Context, conn *pgx.Conn) (err error) {
			id, err = shard.Identify(ctx, conn)
			return err
		})
	}
	switch {
	case err != nil:
		unreachable(err.Error())
	case s.SystemID != "" && id != "" && id != s.SystemID:
		f.add(tenant.Blocking, "shard-other-server", object, "find the former server, or restore it; nothing was written to the one that answers now",
			"another server answers at %s (system identifier %s) than the one that was added (%s)", s.Address, id, s.SystemID)
	}
}

// checkDatabase looks at a database: what is half done, its placement, and what its shards know of it.
func (d *Doctor) checkDatabase(ctx context.Context, was shard.Database, f *findings) error {
	db, err := d.cfg.Catalogue.Database(ctx, was.Name)
	if te := tenant.AsError(err); te != nil && te.Kind == tenant.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	busy, err := d.cfg.Catalogue.Busy(ctx, db.Name)
	if err != nil || busy || db.Gone() {
		return err
	}
	object := "database " + db.Name
	switch {
	case db.State == shard.Purged:
		f.add(tenant.Warning, "database-half-purged", object, fixIt+" goes on with it, and so does the server within minutes", "a purge began and was not finished").mayPass().fix(func(ctx context.Context) error {
			_, err := d.cfg.Catalogue.Purge(ctx, db.Name, shard.PurgeOptions{})
			return err
		})
		return nil
	case db.Creating() && db.Kind == shard.KindSharded:
		f.add(tenant.Warning, "database-half-created", object, fixIt+" goes on with it, and so does: rehome create "+db.Name, "its creation began and was not finished").mayPass().fix(func(ctx context.Context) error {
			_, err := d.cfg.Catalogue.CreateDatabase(ctx, shard.CreateRequest{Name: db.Name, RealmKey: db.RealmKey, Owner: db.Owner, Upstream: db.Upstream})
			return err
		})
		return nil
	case db.Kind != shard.KindSharded || db.State == shard.Deleted:
		return nil
	}
	const byHand = "the records of the control database are damaged: restore them from a backup"
	p, err := d.cfg.Catalogue.Placement(ctx, db.Name)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		f.add(tenant.Blocking, "placement-invalid", object, byHand, "its placement cannot be used: %s", err)
		return nil
	}
	for _, name := range p.Shards() {
		if !slices.Contains(db.Shards, name) {
			f.add(tenant.Blocking, "placement-unknown-shard", object, byHand, "its placement (epoch %d) names shard %s, which it is not on", p.Epoch, name)
		}
	}
	for _, name := range db.Shards {
		if err := d.checkDatabaseAt(ctx, db, p, name, f); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// checkDatabaseAt looks at a database on one of its shards.
func (d *Doctor) checkDatabaseAt(ctx context.Context, db shard.Database, p tenant.Placement, name string, f *findings) error {
	object := db.Name + "@" + name
	server, err := d.cfg.Catalogue.ShardDSN(ctx, name)
	exists, ours := false, false
	if err == nil {
		err = look(ctx, gate.ShardSession, server, func(ctx context.Context, conn *pgx.Conn) (err error) {
			exists, ours, err = d.cfg.Catalogue.Ours(ctx, conn, db.Name)
			return err
		})
	}
	switch {
	case err != nil:
		if tenant.AsError(err).Kind != tenant.KindUnavailable { // that, checkShard says
			f.add(tenant.Blocking, "database-unreachable", object, "see the log of that server", "the database cannot be looked for: %s", err).mayPass()
		}
		return nil
	case !exists:
		f.add(tenant.Blocking, "database-missing", object, "restore it from a backup; if it never held rows that matter, delete it and create it again",
			"shard %s has no Postgres database %s", name, db.Name).mayPass()
		return nil
	case !ours:
		f.add(tenant.Blocking, "database-foreign", object, "find out who replaced it; if it was restored from a backup, give it its comment back", "the Postgres database %s on shard %s was not made by this installation", db.Name, name).mayPass()
		return nil
	}
	dsn, err := d.cfg.Catalogue.DatabaseDSN(ctx, db.Name, name)
	var owned shard.Owned
	var ownedErr error
	var appliers map[string]int64
	if err == nil {
		err = look(ctx, gate.ShardSession, dsn, func(ctx context.Context, conn *pgx.Conn) (err error) {
			if owned, ownedErr = shard.ReadOwned(ctx, conn); ownedErr != nil && !errors.Is(ownedErr, shard.ErrNotProvisioned) {
				return ownedErr
			}
			appliers, err = lookAtAppliers(ctx, conn)
			return err
		})
	}
	if err != nil {
		f.add(tenant.Blocking, "database-unreachable", object, "see that the database accepts connections there", "the database cannot be looked at: %s", err).mayPass()
		return nil
	}
	restore := func(ctx context.Context) error {
		return visit(ctx, gate.ShardSession, dsn, func(ctx context.Context, conn *pgx.Conn) error { return shard.RestorePlacement(ctx, conn, p, name) })
	}
	switch {
	case ownedErr != nil:
		f.add(tenant.Blocking, "owned-disagrees", object, fixIt+" writes it anew", "the shard does not know what it owns: %s", ownedErr).mayPass().fix(restore)
	case owned.Epoch > p.Epoch:
		f.add(tenant.Blocking, "owned-ahead", object, "see whether another installation works with the same shards, or the control database was restored from a backup",
			"the shard knows a later placement (epoch %d) than the control database (epoch %d)", owned.Epoch, p.Epoch).mayPass()
	case !owned.Agrees(p, name):
		f.add(tenant.Blocking, "owned-disagrees", object, fixIt+" writes it anew", "what the shard believes to own (epoch %d) is not what the placement says (epoch %d)", owned.Epoch, p.Epoch).mayPass().fix(restore)
	}
	for id := range appliers {
		if err := d.checkApplier(ctx, db.Name, object, id, dsn, f); err != nil {
			return err
		}
	}
	return d.checkWayBackAt(ctx, db.Name, name, dsn, f)
}

// checkApplier looks whose notes of a stream a shard keeps.
func (d *Doctor) checkApplier(ctx context.Context, database, object, id string, dsn tenant.DSN, f *findings) error {
	var phase string
	var commands int
	err := d.cfg.Pool.QueryRow(ctx, `SELECT COALESCE(max(phase), ''), COALESCE(sum((SELECT count(*) FROM rehome_control.replication_commands c WHERE c.replication = r.id AND c.finished_at IS NULL)), 0)::int
		FROM rehome_control.replications r WHERE id = $1 AND database = $2`, id, database).Scan(&phase, &commands)
	switch {
	case err != nil:
		return fmt.Errorf("look whose replication %s is: %w", id, err)
	case commands > 0: // its worker is still at it
	case phase == "":
		f.add(tenant.Blocking, "applier-unknown", object+":"+id, "see whether another installation writes to the same shards, or the control database was restored from a backup",
			"the shard is written to by replication %s, which is not known here", id).mayPass()
	case phase == string(tenant.Completed):
		f.add(tenant.Warning, "progress-left", object+":"+id, fixIt+" removes them", "replication %s is completed, but the shard still has its notes", id).mayPass().fix(func(ctx context.Context) error {
			return visit(ctx, gate.ShardSession, dsn, func(ctx context.Context, conn *pgx.Conn) error {
				if err := replicator.UninstallShard(ctx, conn, id); err != nil {
					return fmt.Errorf("shard %s: %w", object, err)
				}
				return nil
			})
		})
	}
	return nil
}
