package shard

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

const (
	minVersion    = 130000 // publish_via_partition_root and DROP DATABASE … WITH (FORCE) came with 13
	defaultWeight = 100
)

func shardUnknown(name string) error {
	return tenant.Errorf(tenant.KindNotFound, "shard-unknown", "list them with: rehome shards", "there is no shard %q", name)
}

// AddShard adds a Postgres server. It is asked first: reachable, version 13 or later, not a standby, a role that may
// create databases, and not a server that is a shard already under another name.
func (c *Catalogue) AddShard(ctx context.Context, req AddRequest) (Shard, error) {
	if err := tenant.CheckShardName(req.Name); err != nil {
		return Shard{}, err
	}
	if req.Weight < 0 {
		return Shard{}, badWeight(req.Weight)
	}
	if req.Weight == 0 {
		req.Weight = defaultWeight
	}
	accepting := req.Accepting == nil || *req.Accepting
	if _, err := c.shard(ctx, req.Name); err == nil {
		return Shard{}, shardExists(req.Name)
	} else if !isNotFound(err) {
		return Shard{}, err
	}
	info, err := c.checkServer(ctx, req.Name, req.DSN)
	if err != nil {
		return Shard{}, err
	}
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		// Ordinals are never used again, so the last one is remembered apart from the rows.
		var ordinal int
		err := tx.QueryRow(ctx, `INSERT INTO rehome_control.settings AS s (name, value) VALUES ('last_shard_ordinal', '0')
			ON CONFLICT (name) DO UPDATE SET value = (s.value::int + 1)::text, updated_at = now() RETURNING value::int`).Scan(&ordinal)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO rehome_control.shards (name, ordinal, dsn_sealed, dsn_label, weight, zone, accepting, system_identifier, server_version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			req.Name, ordinal, c.box.Seal(sealShard, req.DSN.Reveal()), req.DSN.String(), req.Weight, req.Zone, accepting, info.SystemID, info.Version)
		return err
	})
	if isCode(err, "23505") { // unique_violation: another server was faster
		return Shard{}, shardExists(req.Name)
	}
	if err != nil {
		return Shard{}, fmt.Errorf("record shard %s: %w", req.Name, err)
	}
	c.log.InfoContext(ctx, "shard added", "shard", req.Name, "address", req.DSN, "server_version", info.Version)
	return c.shard(ctx, req.Name)
}

func shardExists(name string) error {
	return tenant.Errorf(tenant.KindConflict, "shard-exists", "choose another name, or change it with: rehome update-shard", "there is a shard %q already", name)
}

func badWeight(w int) error {
	return tenant.Errorf(tenant.KindInvalid, "bad-weight", "use a whole number from 0; shares are proportional to it", "%d cannot be a weight", w)
}

// checkServer asks whether a server can be the shard called name.
func (c *Catalogue) checkServer(ctx context.Context, name string, dsn tenant.DSN) (serverInfo, error) {
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return serverInfo{}, err
	}
	defer closeConn(ctx, conn)
	info, err := inspect(ctx, conn)
	if err != nil {
		return info, err
	}
	switch {
	case info.Version < minVersion:
		return info, tenant.Errorf(tenant.KindRefused, "postgres-too-old", "use PostgreSQL 13 or later", "%s is PostgreSQL %d", dsn, info.Version/10000)
	case info.Recovery:
		return info, tenant.Errorf(tenant.KindRefused, "shard-is-standby", "give the primary's address", "%s is a standby", dsn)
	case !info.CreateDB:
		return info, tenant.Errorf(tenant.KindRefused, "may-not-create-database",
			"as a superuser run: ALTER ROLE "+tenant.QuoteIdent(info.Role)+" CREATEDB", "role %q may not create databases at %s", info.Role, dsn)
	}
	if info.SystemID == "" {
		info.SystemID = "unknown:" + conn.Config().Host + ":" + fmt.Sprint(conn.Config().Port)
	}
	return info, c.checkNotTwin(ctx, name, dsn, info)
}

// checkNotTwin refuses a server that is a shard already under another name. Clusters copied file by file share their
// system identifier; what tells them apart is the moment at which their postmasters started.
func (c *Catalogue) checkNotTwin(ctx context.Context, name string, dsn tenant.DSN, info serverInfo) error {
	rows, err := c.pool.Query(ctx, `SELECT name FROM rehome_control.shards WHERE system_identifier = $1 AND name <> $2 ORDER BY name`, info.SystemID, name)
	if err != nil {
		return fmt.Errorf("look for the server among the shards: %w", err)
	}
	twins, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for the server among the shards: %w", err)
	}
	for _, twin := range twins {
		same, err := c.sameServer(ctx, twin, dsn, info)
		if err != nil {
			return err
		}
		if same {
			return tenant.Errorf(tenant.KindRefused, "shard-added-already",
				"one server is one shard; add another server",
				"%s is the server of shard %q (system identifier %s)", dsn, twin, info.SystemID)
		}
	}
	return nil
}

// sameServer reports whether a shard is the server at an address, which info describes. One that cannot be reached may be it.
func (c *Catalogue) sameServer(ctx context.Context, name string, at tenant.DSN, info serverInfo) (bool, error) {
	dsn, err := c.ShardDSN(ctx, name)
	if err != nil {
		return false, err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, &tenant.Error{
			Kind: tenant.KindUnavailable, Code: "shards-not-told-apart",
			Message: fmt.Sprintf("%s could not be told apart from shard %q, which has the same system identifier (%s) and cannot be reached now", at, name, info.SystemID),
			Hint:    "one server is one shard. If it is a different cluster that was copied from that one, try again when both can be reached", Err: err,
		}
	}
	defer closeConn(ctx, conn)
	other, err := inspect(ctx, conn)
	if err != nil {
		return false, err
	}
	return other.StartedAt.Equal(info.StartedAt), nil
}

// UpdateShard changes a shard. A new DSN is checked as AddShard does, and must lead to the same server while the shard
// holds databases.
func (c *Catalogue) UpdateShard(ctx context.Context, name string, u ShardUpdate) (Shard, error) {
	old, err := c.shard(ctx, name)
	if err != nil {
		return Shard{}, err
	}
	if u.Weight != nil && *u.Weight < 0 {
		return Shard{}, badWeight(*u.Weight)
	}
	var sealed []byte
	var label, system *string
	var version *int
	if u.DSN != nil {
		info, err := c.checkServer(ctx, name, *u.DSN)
		if err != nil {
			return Shard{}, err
		}
		if info.SystemID != old.SystemID && len(old.Databases) > 0 {
			return Shard{}, tenant.Errorf(tenant.KindRefused, "another-server", "add it as a new shard and move the realms there",
				"%s is another server, and shard %q holds %s", *u.DSN, name, strings.Join(old.Databases, ", "))
		}
		l := u.DSN.String()
		sealed, label, system, version = c.box.Seal(sealShard, u.DSN.Reveal()), &l, &info.SystemID, &info.Version
	}
	_, err = c.pool.Exec(ctx, `UPDATE rehome_control.shards SET weight = COALESCE($2, weight), zone = COALESCE($3, zone), accepting = COALESCE($4, accepting),
			dsn_sealed = COALESCE($5, dsn_sealed), dsn_label = COALESCE($6, dsn_label), system_identifier = COALESCE($7, system_identifier),
			server_version = COALESCE($8, server_version), updated_at = now()
		WHERE name = $1`, name, u.Weight, u.Zone, u.Accepting, sealed, label, system, version)
	if err != nil {
		return Shard{}, fmt.Errorf("update shard %s: %w", name, err)
	}
	return c.shard(ctx, name)
}

// RemoveShard forgets a shard. Refused while it holds databases, deleted but not purged ones too.
func (c *Catalogue) RemoveShard(ctx context.Context, name string) error {
	return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		var found string
		err := tx.QueryRow(ctx, `SELECT name FROM rehome_control.shards WHERE name = $1 FOR UPDATE`, name).Scan(&found)
		if errors.Is(err, pgx.ErrNoRows) {
			return shardUnknown(name)
		}
		if err != nil {
			return fmt.Errorf("lock shard %s: %w", name, err)
		}
		rows, err := tx.Query(ctx, `SELECT database FROM rehome_control.database_shards WHERE shard = $1 ORDER BY database`, name)
		if err != nil {
			return fmt.Errorf("list the databases of shard %s: %w", name, err)
		}
		holds, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("list the databases of shard %s: %w", name, err)
		}
		if len(holds) > 0 {
			return tenant.Errorf(tenant.KindRefused, "shard-in-use", "move its realms to other shards first; deleted databases count until they are purged",
				"shard %q holds realms of %s", name, strings.Join(holds, ", "))
		}
		_, err = tx.Exec(ctx, `DELETE FROM rehome_control.shards WHERE name = $1`, name)
		return err
	})
}

// ShardDSN is the connection string to a shard's maintenance database.
func (c *Catalogue) ShardDSN(ctx context.Context, name string) (tenant.DSN, error) {
	var sealed []byte
	err := c.pool.QueryRow(ctx, `SELECT dsn_sealed FROM rehome_control.shards WHERE name = $1`, name).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", shardUnknown(name)
	}
	if err != nil {
		return "", fmt.Errorf("read shard %s: %w", name, err)
	}
	plain, err := c.box.Open(sealShard, sealed)
	if err != nil {
		return "", fmt.Errorf("open the connection string of shard %s: %w", name, err)
	}
	return tenant.DSN(plain), nil
}

// Shards lists the shards by ordinal and asks each, in parallel and for a few seconds at most, whether it is there and
// how large its databases are.
func (c *Catalogue) Shards(ctx context.Context) ([]Shard, error) {
	shards, err := c.listShards(ctx, "")
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(probeParallel)
	for i := range shards {
		g.Go(func() error {
			sizes, err := c.shardSizes(gctx, shards[i].Name, shards[i].Databases)
			if err != nil {
				shards[i].Error = tenant.AsError(err).Message
				return gctx.Err()
			}
			shards[i].Reachable, shards[i].Bytes = true, 0
			for _, b := range sizes {
				shards[i].Bytes += b
			}
			return nil
		})
	}
	return shards, g.Wait()
}

// shardSizes reads the sizes of databases on a shard, in bytes.
func (c *Catalogue) shardSizes(ctx context.Context, name string, databases []string) (map[string]int64, error) {
	dsn, err := c.ShardDSN(ctx, name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*probeTimeout)
	defer cancel()
	conn, err := connect(ctx, dsn, probeTimeout)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	rows, err := conn.Query(ctx, `SELECT datname::text, pg_database_size(oid) FROM pg_database WHERE datname = ANY($1)`, databases)
	if err != nil {
		return nil, fmt.Errorf("ask shard %s for sizes: %w", name, err)
	}
	sizes := map[string]int64{}
	var db string
	var bytes int64
	if _, err := pgx.ForEachRow(rows, []any{&db, &bytes}, func() error { sizes[db] = bytes; return nil }); err != nil {
		return nil, fmt.Errorf("ask shard %s for sizes: %w", name, err)
	}
	return sizes, nil
}

func (c *Catalogue) shard(ctx context.Context, name string) (Shard, error) {
	list, err := c.listShards(ctx, name)
	if err != nil {
		return Shard{}, err
	}
	if len(list) == 0 {
		return Shard{}, shardUnknown(name)
	}
	return list[0], nil
}

// listShards reads shards from the control database; name "" means all.
func (c *Catalogue) listShards(ctx context.Context, name string) ([]Shard, error) {
	rows, err := c.pool.Query(ctx, `SELECT s.name, s.ordinal, s.dsn_label, s.weight, s.zone, s.accepting, s.server_version, s.system_identifier, s.created_at,
			ARRAY(SELECT ds.database FROM rehome_control.database_shards ds WHERE ds.shard = s.name ORDER BY 1),
			COALESCE((SELECT sum((r->>'to')::int - (r->>'from')::int + 1) FROM rehome_control.databases d
				JOIN rehome_control.placements p ON p.database = d.name AND p.epoch = d.placement_epoch
				CROSS JOIN LATERAL jsonb_array_elements(p.placement->'ranges') r
				WHERE d.state <> 'purged' AND r->>'shard' = s.name), 0)::int
		FROM rehome_control.shards s WHERE $1 = '' OR s.name = $1 ORDER BY s.ordinal`, name)
	if err != nil {
		return nil, fmt.Errorf("list shards: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Shard, error) {
		s := Shard{Bytes: -1}
		err := row.Scan(&s.Name, &s.Ordinal, &s.Address, &s.Weight, &s.Zone, &s.Accepting, &s.Version, &s.SystemID, &s.CreatedAt, &s.Databases, &s.Buckets)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list shards: %w", err)
	}
	return list, nil
}

func isNotFound(err error) bool {
	var e *tenant.Error
	return errors.As(err, &e) && e.Kind == tenant.KindNotFound
}
