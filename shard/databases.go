package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

func databaseUnknown(name string) error {
	return tenant.Errorf(tenant.KindNotFound, "database-unknown", "list them with: rehome databases", "there is no database %q", name)
}

func notSharded(name string) error {
	return tenant.Errorf(tenant.KindConflict, "database-not-sharded", "adopted databases have no shards", "database %q is adopted", name)
}

func beingCreated(name string) error {
	return tenant.Errorf(tenant.KindConflict, "database-being-created", "finish it with: rehome create "+name, "database %q is not created completely", name)
}

// checkUpstream refuses what the gateway could not forward to.
func checkUpstream(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return &tenant.Error{Kind: tenant.KindInvalid, Code: "bad-upstream", Message: "the upstream is not the URL of an application", Hint: "write it as http://host:port or https://host/path, without credentials"}
	}
	return nil
}

// Database reads one database. Its size is not asked for (Bytes is -1).
func (c *Catalogue) Database(ctx context.Context, name string) (Database, error) {
	list, err := c.listDatabases(ctx, name)
	if err != nil {
		return Database{}, err
	}
	if len(list) == 0 {
		return Database{}, databaseUnknown(name)
	}
	return list[0], nil
}

// Databases lists all databases by name, purged ones too. Sizes are not asked for; see MeasureDatabases.
func (c *Catalogue) Databases(ctx context.Context) ([]Database, error) {
	return c.listDatabases(ctx, "")
}

func systemSetting(database string) string { return "adopted_system." + database }

func (c *Catalogue) listDatabases(ctx context.Context, name string) ([]Database, error) {
	rows, err := c.pool.Query(ctx, `SELECT d.name, d.kind, d.state, d.owner_email, d.realm_key, d.upstream_url, d.source_upstream_url,
			ARRAY(SELECT domain FROM rehome_control.domains WHERE database = d.name ORDER BY domain), d.adopted_dsn_label,
			COALESCE((SELECT value FROM rehome_control.settings WHERE name = 'adopted_system.' || d.name), ''),
			ARRAY(SELECT s.name FROM rehome_control.database_shards ds JOIN rehome_control.shards s ON s.name = ds.shard WHERE ds.database = d.name ORDER BY s.ordinal),
			d.placement_epoch, d.created_at, d.deleted_at, d.purge_after, d.purged_at
		FROM rehome_control.databases d WHERE $1 = '' OR d.name = $1 ORDER BY d.name`, name)
	if err != nil {
		return nil, fmt.Errorf("list databases: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Database, error) {
		d := Database{Bytes: -1}
		err := row.Scan(&d.Name, &d.Kind, &d.State, &d.Owner, &d.RealmKey, &d.Upstream, &d.SourceUpstream, &d.Domains, &d.Address, &d.SystemID, &d.Shards,
			&d.PlacementEpoch, &d.CreatedAt, &d.DeletedAt, &d.PurgeAfter, &d.PurgedAt)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list databases: %w", err)
	}
	return list, nil
}

// MeasureDatabases fills Bytes: over all shards, or -1 where one of them cannot be asked within seconds.
func (c *Catalogue) MeasureDatabases(ctx context.Context, dbs []Database) error {
	names := map[string][]string{} // shard -> databases
	for _, d := range dbs {
		for _, s := range d.Shards {
			names[s] = append(names[s], d.Name)
		}
	}
	shards := make([]string, 0, len(names))
	for s := range names {
		shards = append(shards, s)
	}
	sizes := make([]map[string]int64, len(shards))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(probeParallel)
	for i, s := range shards {
		g.Go(func() error {
			m, err := c.shardSizes(gctx, s, names[s])
			if err != nil {
				c.log.WarnContext(ctx, "cannot measure databases", "shard", s, "error", err)
			}
			sizes[i] = m
			return gctx.Err()
		})
	}
	for i := range dbs {
		if dbs[i].Kind != KindAdopted || dbs[i].State == Purged {
			continue
		}
		g.Go(func() error {
			n, err := c.adoptedSize(gctx, dbs[i].Name)
			if err != nil {
				c.log.WarnContext(ctx, "cannot measure a database", "database", dbs[i].Name, "error", err)
				n = -1
			}
			dbs[i].Bytes = n
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, d := range dbs {
		if len(d.Shards) == 0 {
			continue
		}
		sum := int64(0)
		for _, s := range d.Shards {
			n, ok := sizes[slices.Index(shards, s)][d.Name]
			if !ok {
				sum = -1
				break
			}
			sum += n
		}
		dbs[i].Bytes = sum
	}
	return nil
}

func (c *Catalogue) adoptedSize(ctx context.Context, name string) (int64, error) {
	dsn, err := c.AdoptedDSN(ctx, name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*probeTimeout)
	defer cancel()
	conn, err := connect(ctx, dsn, probeTimeout)
	if err != nil {
		return 0, err
	}
	defer closeConn(ctx, conn)
	var n int64
	err = conn.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&n)
	return n, err
}

// UpdateDatabase changes upstream, owner or state. Only active and stopped databases change their state here.
func (c *Catalogue) UpdateDatabase(ctx context.Context, name string, u Update) (Database, error) {
	for _, upstream := range []*string{u.Upstream, u.SourceUpstream} {
		if upstream == nil {
			continue
		}
		if err := checkUpstream(*upstream); err != nil {
			return Database{}, err
		}
	}
	if u.State != nil && *u.State != Active && *u.State != Stopped {
		return Database{}, tenant.Errorf(tenant.KindInvalid, "bad-database-state", "use active or stopped", "a database cannot be set to %q", *u.State)
	}
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		d, err := lockDatabase(ctx, tx, name)
		if err != nil {
			return err
		}
		if u.State != nil && d.state != Active && d.state != Stopped {
			return wrongState(name, d.state, "it can be started and stopped only before it is deleted; see: rehome undelete")
		}
		_, err = tx.Exec(ctx, `UPDATE rehome_control.databases SET upstream_url = COALESCE($2, upstream_url), owner_email = COALESCE($3, owner_email),
			state = COALESCE($4, state), source_upstream_url = COALESCE($5, source_upstream_url) WHERE name = $1`, name, u.Upstream, u.Owner, u.State, u.SourceUpstream)
		if err != nil {
			return fmt.Errorf("update database %s: %w", name, err)
		}
		return notifyRoutes(ctx, tx)
	})
	if err != nil {
		return Database{}, err
	}
	return c.Database(ctx, name)
}

// DatabaseDSN is the connection string to a database on one of its shards.
func (c *Catalogue) DatabaseDSN(ctx context.Context, database, shard string) (tenant.DSN, error) {
	var sealed []byte
	err := c.pool.QueryRow(ctx, `SELECT s.dsn_sealed FROM rehome_control.database_shards ds JOIN rehome_control.shards s ON s.name = ds.shard
		WHERE ds.database = $1 AND ds.shard = $2`, database, shard).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := c.Database(ctx, database); err != nil {
			return "", err
		}
		return "", tenant.Errorf(tenant.KindNotFound, "database-not-on-shard", "see: rehome databases", "database %q is not on shard %q", database, shard)
	}
	if err != nil {
		return "", fmt.Errorf("read shard %s of database %s: %w", shard, database, err)
	}
	plain, err := c.box.Open(sealShard, sealed)
	if err != nil {
		return "", fmt.Errorf("open the connection string of shard %s: %w", shard, err)
	}
	return withDatabase(tenant.DSN(plain), database)
}

// AdoptedDSN is the connection string of an adopted database.
func (c *Catalogue) AdoptedDSN(ctx context.Context, database string) (tenant.DSN, error) {
	var sealed []byte
	err := c.pool.QueryRow(ctx, `SELECT adopted_dsn_sealed FROM rehome_control.databases WHERE name = $1`, database).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", databaseUnknown(database)
	}
	if err != nil {
		return "", fmt.Errorf("read database %s: %w", database, err)
	}
	if sealed == nil {
		return "", tenant.Errorf(tenant.KindConflict, "database-not-adopted", "it lives on shards, or it is purged", "database %q has no connection string of its own", database)
	}
	plain, err := c.box.Open(sealAdopted, sealed)
	if err != nil {
		return "", fmt.Errorf("open the connection string of database %s: %w", database, err)
	}
	return tenant.DSN(plain), nil
}

// Placement is the placement in force.
func (c *Catalogue) Placement(ctx context.Context, database string) (tenant.Placement, error) {
	var kind string
	var epoch int64
	var raw []byte
	err := c.pool.QueryRow(ctx, `SELECT d.kind, d.placement_epoch, p.placement FROM rehome_control.databases d
		LEFT JOIN rehome_control.placements p ON p.database = d.name AND p.epoch = d.placement_epoch WHERE d.name = $1`, database).Scan(&kind, &epoch, &raw)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return tenant.Placement{}, databaseUnknown(database)
	case err != nil:
		return tenant.Placement{}, fmt.Errorf("read the placement of %s: %w", database, err)
	case kind != KindSharded:
		return tenant.Placement{}, notSharded(database)
	case epoch == 0:
		return tenant.Placement{}, beingCreated(database)
	}
	var p tenant.Placement
	if err := json.Unmarshal(raw, &p); err != nil {
		return tenant.Placement{}, fmt.Errorf("read the placement of %s: %w", database, err)
	}
	if err := p.Validate(); err != nil {
		return tenant.Placement{}, fmt.Errorf("placement of %s: %w", database, err)
	}
	return p, nil
}

// ShardOrdinals gives the ordinals of a database's shards.
func (c *Catalogue) ShardOrdinals(ctx context.Context, database string) (map[string]int, error) {
	if _, err := c.Database(ctx, database); err != nil {
		return nil, err
	}
	rows, err := c.pool.Query(ctx, `SELECT s.name, s.ordinal FROM rehome_control.database_shards ds JOIN rehome_control.shards s ON s.name = ds.shard WHERE ds.database = $1`, database)
	if err != nil {
		return nil, fmt.Errorf("read the shards of %s: %w", database, err)
	}
	out := map[string]int{}
	var name string
	var ordinal int
	if _, err := pgx.ForEachRow(rows, []any{&name, &ordinal}, func() error { out[name] = ordinal; return nil }); err != nil {
		return nil, fmt.Errorf("read the shards of %s: %w", database, err)
	}
	return out, nil
}
