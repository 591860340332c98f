package catalog

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// PlanIdentity plans the replica identities that routing to more than one shard needs; see PlanIdentityFor.
func PlanIdentity(cat *Catalogue, opts tenant.ReplicationOptions) ([]tenant.SourceChange, []tenant.Finding) {
	return PlanIdentityFor(cat, opts, 2)
}

// PlanIdentityFor plans the replica identities that a replication to that many shards needs.
func PlanIdentityFor(cat *Catalogue, opts tenant.ReplicationOptions, shards int) ([]tenant.SourceChange, []tenant.Finding) {
	return nil, nil
}

// ApplyChanges makes the changes in their order. Each is written ahead through record.
func ApplyChanges(ctx context.Context, conn *pgx.Conn, changes []tenant.SourceChange, record func(tenant.SourceChange) error) error {
	return nil
}

// UndoChanges takes changes back, the last one first.
func UndoChanges(ctx context.Context, conn *pgx.Conn, changes []tenant.SourceChange) error {
	return nil
}
