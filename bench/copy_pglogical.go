package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// pglogicalCopier is pglogical with structure and data synchronised; it builds keys and indexes after the rows by itself. Its
// library must be preloaded, which gets in the way of the others (DROP DATABASE hangs): source and target are started anew with
// it before its turn, and without it afterwards, both outside the clock.
type pglogicalCopier struct{}

func (pglogicalCopier) Name() string { return "pglogical" }

func (pglogicalCopier) Missing(ctx context.Context, rig *Rig) string {
	return PglogicalMissing(ctx, rig)
}

// PglogicalMissing says why pglogical cannot run here; "" if it can.
func PglogicalMissing(ctx context.Context, rig *Rig) string {
	there, err := Scalar[bool](ctx, rig.Source.DSN("postgres"), `SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pglogical')`)
	if err != nil {
		return err.Error()
	}
	if !there {
		return fmt.Sprintf("not there for Postgres %d: scripts/ensure-bench installs it where apt-get has it", rig.Source.Version())
	}
	return ""
}

// Preload starts the clusters of a turn anew with pglogical, and makes the turn start them anew without it when it is over.
// Databases that use it must be cleaned up by what is asked for after this.
func Preload(ctx context.Context, r *Run, clusters ...*pgcluster.Cluster) error {
	for _, c := range clusters {
		r.Cleanup(func(ctx context.Context) error {
			return errors.Join(Exec(ctx, c.DSN("postgres"), "ALTER SYSTEM RESET ALL"), c.Restart(ctx))
		})
		statements := []string{"ALTER SYSTEM SET shared_preload_libraries = 'pglogical'"}
		// From 15.20 on a server loads no other output plugins than those that are listed here.
		plugins, err := Scalar[string](ctx, c.DSN("postgres"), `SELECT coalesce(max(setting), '') FROM pg_settings WHERE name = 'output_plugin_libraries'`)
		if err != nil {
			return err
		}
		if plugins != "" && !strings.Contains(plugins, "pglogical_output") {
			statements = append(statements, "ALTER SYSTEM SET output_plugin_libraries = "+plugins+", pglogical_output")
		}
		if err := Exec(ctx, c.DSN("postgres"), statements...); err != nil {
			return err
		}
		if err := c.Restart(ctx); err != nil {
			return err
		}
	}
	return nil
}

// PglogicalNodes makes both databases nodes of pglogical, with all tables of the source published, and undoes that at the end of
// the turn, while the library is still loaded.
func PglogicalNodes(ctx context.Context, r *Run, source, target tenant.DSN) error {
	// In this order: the subscription's worker and slot, then the nodes.
	r.Cleanup(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, slotsWithin, errors.New("pglogical did not let go in time"))
		defer cancel()
		return errors.Join(
			Exec(ctx, target, "SELECT pglogical.drop_subscription('bench', true)", "SELECT pglogical.drop_node('target', true)", "DROP EXTENSION pglogical CASCADE"),
			Exec(ctx, source, "SELECT pglogical.drop_node('source', true)", "DROP EXTENSION pglogical CASCADE"))
	})
	if err := r.SQL(ctx, source, "CREATE EXTENSION pglogical", "SELECT pglogical.create_node('source', '"+source.Reveal()+"')",
		// What has no key can be inserted only.
		"SELECT pglogical.replication_set_add_table(CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) THEN 'default' ELSE 'default_insert_only' END, c.oid::regclass) "+
			"FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"); err != nil {
		return err
	}
	return r.SQL(ctx, target, "CREATE EXTENSION pglogical", "SELECT pglogical.create_node('target', '"+target.Reveal()+"')")
}

func (pglogicalCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	target := targets[0].DSN(TargetDB)
	if err := CreateDatabase(ctx, targets[0], TargetDB); err != nil {
		return err
	}
	r.Cleanup(func(ctx context.Context) error { return DropSlots(ctx, d.source, d.dbName()) })
	if err := Preload(ctx, r, d.source, targets[0]); err != nil {
		return err
	}
	if err := PglogicalNodes(ctx, r, d.DB(), target); err != nil {
		return err
	}
	if err := r.Rig.Checkpoint(ctx); err != nil {
		return err
	}
	if err := r.Begin(); err != nil {
		return err
	}
	if err := r.SQL(ctx, target, "SELECT pglogical.create_subscription('bench', '"+d.DB().Reveal()+"', synchronize_structure := true, synchronize_data := true)"); err != nil {
		return err
	}
	watch, err := pgx.Connect(ctx, target.Reveal())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer watch.Close(context.WithoutCancel(ctx))
	return untilComplete(ctx, r, d, targets, func(ctx context.Context) (bool, error) {
		var down bool
		err := watch.QueryRow(ctx, `SELECT status = 'down' FROM pglogical.show_subscription_status('bench')`).Scan(&down)
		if err == nil && down {
			err = errors.New("the subscription is down: the target's log has the reason")
		}
		return false, err
	})
}
