package shard

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// ErrNotProvisioned says that a tenant database lacks the tables of its placement.
var ErrNotProvisioned = &tenant.Error{Kind: tenant.KindConflict, Code: "not-provisioned", Message: "the tables rehome.owned and rehome.pinned are missing"}

// Identify is the system identifier of the server behind a session; "" where its role may not read it.
func Identify(ctx context.Context, conn *pgx.Conn) (string, error) {
	info, err := inspect(ctx, conn)
	return info.SystemID, err
}

// Owned is what a shard believes that it owns of a database.
type Owned struct {
	Epoch  int64 // the highest that is written there; 0: nothing is
	Ranges []tenant.Range
	Here   map[string]bool // pinned realms: on this shard or expressly not
}

// ReadOwned reads what a shard believes that it owns. ErrNotProvisioned where the tables are missing.
func ReadOwned(ctx context.Context, conn *pgx.Conn) (Owned, error) {
	o := Owned{Here: map[string]bool{}}
	var from, to []int
	var realms []string
	var here []bool
	err := conn.QueryRow(ctx, `SELECT COALESCE((SELECT max(epoch) FROM (SELECT epoch FROM rehome.owned UNION ALL SELECT epoch FROM rehome.pinned) e), 0),
			COALESCE((SELECT array_agg(bucket_from ORDER BY bucket_from) FROM rehome.owned), '{}'),
			COALESCE((SELECT array_agg(bucket_to ORDER BY bucket_from) FROM rehome.owned), '{}'),
			COALESCE((SELECT array_agg(realm ORDER BY realm) FROM rehome.pinned), '{}'),
			COALESCE((SELECT array_agg(here ORDER BY realm) FROM rehome.pinned), '{}')`).Scan(&o.Epoch, &from, &to, &realms, &here)
	if isCode(err, "42P01", "3F000") { // undefined_table, invalid_schema_name
		return o, ErrNotProvisioned
	}
	if err != nil {
		return o, fmt.Errorf("read what the shard owns: %w", err)
	}
	for i := range from {
		o.Ranges = append(o.Ranges, tenant.Range{From: from[i], To: to[i]})
	}
	for i := range realms {
		o.Here[realms[i]] = here[i]
	}
	return o, nil
}

// Agrees reports whether the shard believes what the placement says of it.
func (o Owned) Agrees(p tenant.Placement, shard string) bool {
	var ranges []tenant.Range
	for _, r := range p.Ranges {
		if r.Shard == shard {
			ranges = append(ranges, tenant.Range{From: r.From, To: r.To})
		}
	}
	here := map[string]bool{}
	for realm, s := range p.Pins {
		here[realm] = s == shard
	}
	return (o.Epoch == p.Epoch || len(ranges) == 0 && len(here) == 0) && slices.Equal(o.Ranges, ranges) && maps.Equal(o.Here, here)
}

// RestorePlacement is ApplyPlacement for a shard that lost, or was given wrongly, what it owns at the placement's own
// epoch: its tables are made where they are missing, and written anew. A shard at a later epoch keeps what it has.
func RestorePlacement(ctx context.Context, conn *pgx.Conn, p tenant.Placement, shard string) error {
	if err := Provision(ctx, conn); err != nil {
		return err
	}
	return applyPlacement(ctx, conn, p, shard, true)
}

// Busy reports whether somebody is creating, adopting or purging a database of the name just now. Those who ask do not
// take each other for one who works: the lock is shared.
func (c *Catalogue) Busy(ctx context.Context, name string) (bool, error) {
	var free bool
	if err := c.pool.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock_shared(hashtextextended('rehome database ' || $1, 0))`, name).Scan(&free); err != nil {
		return false, fmt.Errorf("look who works on database %s: %w", name, err)
	}
	return !free, nil
}

// Ours looks for a database on a shard's server, by a session to any database there, and reports whether this
// installation made it.
func (c *Catalogue) Ours(ctx context.Context, conn *pgx.Conn, name string) (exists, ours bool, err error) {
	comment, exists, err := databaseComment(ctx, conn, name)
	return exists, exists && comment == c.ourComment(name), err
}
