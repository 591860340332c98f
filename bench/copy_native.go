package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// jobs is how many sessions peers are given that ask for it, as many as Rehome has by default for its copy and for its indexes.
const jobs = 2

// nativeCopier is the initial copy of CREATE SUBSCRIPTION.
type nativeCopier struct {
	binary  bool
	inPlace bool // keys and indexes before the rows; else after them
}

// binaryCopySince is the version whose subscriptions copy in binary too; before, the option is about the stream only.
const binaryCopySince = 16

func (c nativeCopier) Name() string {
	name := "native subscription"
	if c.binary {
		name += ", binary"
	}
	if c.inPlace {
		return name + ", indexes in place"
	}
	return name + ", indexes after"
}

func (c nativeCopier) Missing(_ context.Context, rig *Rig) string {
	if c.binary && rig.Source.Version() < binaryCopySince {
		return fmt.Sprintf("subscriptions of Postgres %d copy as text, also with binary = true, which is about their stream only (D has it); from version %d on they copy in binary too", rig.Source.Version(), binaryCopySince)
	}
	return ""
}

func (c nativeCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	target := targets[0].DSN(TargetDB)
	if err := CreateDatabase(ctx, targets[0], TargetDB); err != nil {
		return err
	}
	r.Cleanup(func(ctx context.Context) error { return Unpublish(ctx, d.source, d.dbName()) })
	// It is there before its subscription is dropped by DropDatabase, which cleans up later: workers end then.
	r.Cleanup(func(ctx context.Context) error { return DropSubscriptions(ctx, target) })
	if err := r.Begin(); err != nil {
		return err
	}
	archive, err := dumpArchive(ctx, r, d)
	if err != nil {
		return err
	}
	postData := func() error { return restore(ctx, r, "post-data", archive, target.Reveal()) }
	if err := restore(ctx, r, "pre-data", archive, target.Reveal()); err != nil {
		return err
	}
	if c.inPlace {
		if err := postData(); err != nil {
			return err
		}
	}
	if err := r.SQL(ctx, d.DB(), "CREATE PUBLICATION bench FOR ALL TABLES"); err != nil {
		return err
	}
	with := ""
	if c.binary {
		with = " WITH (binary = true)"
	}
	if err := r.SQL(ctx, target, "CREATE SUBSCRIPTION bench CONNECTION '"+d.DB().Reveal()+"' PUBLICATION bench"+with); err != nil {
		return err
	}
	// f: the copy is committed; s, r: and the stream has caught up (catalogs, pg_subscription_rel).
	const left = `SELECT count(*) FILTER (WHERE srsubstate NOT IN ('f', 's', 'r'))::int FROM pg_subscription_rel`
	r.Note("wait until pg_subscription_rel has every table in f, s or r")
	watch, err := pgx.Connect(ctx, target.Reveal()) // one session: connecting anew for each look would cost the target more than the looks
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer watch.Close(context.WithoutCancel(ctx))
	err = eventually(ctx, turnWithin, "the subscription has copied", func(ctx context.Context) (bool, error) {
		var n int
		err := watch.QueryRow(ctx, left).Scan(&n)
		return n == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for the copy: %w", err)
	}
	if !c.inPlace {
		if err := postData(); err != nil {
			return err
		}
	}
	return r.End()
}

// restore makes a section of an archive's schema: of post-data the keys and indexes side by side.
func restore(ctx context.Context, r *Run, section, archive, target string) error {
	return r.Tool(ctx, "pg_restore", "--section="+section, fmt.Sprintf("-j%d", jobs), "-d", target, archive)
}

// Unpublish drops the publication and the slots of a database at the source.
func Unpublish(ctx context.Context, c *pgcluster.Cluster, database string) error {
	if err := DropSlots(ctx, c, database); err != nil {
		return err
	}
	return Exec(ctx, c.DSN(database), "DROP PUBLICATION IF EXISTS bench")
}
