package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

const pglogicalName = "pglogical"

// pglogical is a subscription of pglogical 2 at the first target. It begins after the others: it makes tables of its own at the
// source, which are nobody else's business.
type pglogical struct {
	scribe
	bed        *drainBed
	at         *pgcluster.Cluster
	db         string   // its database at the target
	schema     string   // DDL of the tables
	insertOnly []string // tables without a key
}

func (p *pglogical) label() string         { return pglogicalName }
func (p *pglogical) targets() []tenant.DSN { return []tenant.DSN{p.at.DSN(p.db)} }
func (p *pglogical) own() (float64, error) { return 0, nil }

func (p *pglogical) missing(ctx context.Context) string {
	if p.at == nil {
		return cmp.Or(PglogicalMissing(ctx, p.bed.rig), "not asked for")
	}
	return ""
}

func (p *pglogical) slot(ctx context.Context) (string, error) {
	return Scalar[string](ctx, p.at.DSN(p.db), `SELECT sub_slot_name::text FROM pglogical.subscription`)
}

func (p *pglogical) join(ctx context.Context) error {
	if err := CreateDatabase(ctx, p.at, p.db); err != nil {
		return err
	}
	src := p.bed.dsn()
	statements := []string{
		`CREATE EXTENSION pglogical`,
		`SELECT pglogical.create_node('provider', ` + tenant.QuoteLiteral(src.Reveal()) + `)`,
	}
	only := map[string]bool{}
	for _, t := range p.insertOnly {
		only[t] = true
		statements = append(statements, `SELECT pglogical.replication_set_add_table('default_insert_only', `+tenant.QuoteLiteral(t)+`)`)
	}
	tables, err := Scalar[[]string](ctx, src, `SELECT array_agg(tablename::text) FROM pg_publication_tables WHERE pubname = $1`, publication)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if !only[t] {
			statements = append(statements, `SELECT pglogical.replication_set_add_table('default', `+tenant.QuoteLiteral(t)+`)`)
		}
	}
	if err := p.sql(ctx, src, "$SOURCE", statements...); err != nil {
		return fmt.Errorf("make the provider: %w", err)
	}
	at := p.at.DSN(p.db)
	err = p.sql(ctx, at, "$TARGET", strings.TrimSpace(p.schema), `CREATE EXTENSION pglogical`, `SELECT pglogical.create_node('subscriber', `+tenant.QuoteLiteral(at.Reveal())+`)`,
		`SELECT pglogical.create_subscription('sub', `+tenant.QuoteLiteral(src.Reveal())+`, ARRAY['default','default_insert_only'], synchronize_structure := false, synchronize_data := true)`,
		`SELECT pglogical.wait_for_subscription_sync_complete('sub')`)
	if err != nil {
		return fmt.Errorf("make the subscriber: %w", err)
	}
	return p.bed.caughtUp(ctx, p)
}

func (p *pglogical) start(ctx context.Context) error {
	return p.sql(ctx, p.at.DSN(p.db), "$TARGET", `SELECT pglogical.alter_subscription_enable('sub', true)`)
}

func (p *pglogical) stop(ctx context.Context) error {
	if err := p.sql(ctx, p.at.DSN(p.db), "$TARGET", `SELECT pglogical.alter_subscription_disable('sub', true)`); err != nil {
		return err
	}
	return p.bed.idle(ctx, p)
}

// leave has nothing to do: its server is removed, and its slot and tables go with the source's database.
func (p *pglogical) leave(context.Context) error { return nil }
