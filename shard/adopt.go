package shard

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// AdoptDatabase puts an existing Postgres database under management: it is asked whether it is there, and its address
// and its server's identity are recorded. Nothing is created in it.
func (c *Catalogue) AdoptDatabase(ctx context.Context, req AdoptRequest) (Database, error) {
	if err := tenant.CheckDatabaseName(req.Name); err != nil {
		return Database{}, err
	}
	if err := checkUpstream(req.Upstream); err != nil {
		return Database{}, err
	}
	if req.RealmKey == "" {
		req.RealmKey = DefaultRealmKey
	}
	unlock, err := c.lockName(ctx, req.Name)
	if err != nil {
		return Database{}, err
	}
	defer unlock()
	if d, err := c.Database(ctx, req.Name); err == nil && !d.Gone() {
		return Database{}, tenant.Errorf(tenant.KindConflict, "database-exists", "choose another name", "there is a database %q already", req.Name)
	} else if err != nil && !isNotFound(err) {
		return Database{}, err
	}
	system, err := c.checkAdoptable(ctx, req.DSN)
	if err != nil {
		return Database{}, err
	}
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := forgetPurged(ctx, tx, req.Name); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.databases (name, kind, owner_email, realm_key, upstream_url, adopted_dsn_sealed, adopted_dsn_label)
			VALUES ($1, 'adopted', $2, $3, $4, $5, $6)
			ON CONFLICT (name) DO UPDATE SET kind = 'adopted', state = 'active', owner_email = $2, realm_key = $3, upstream_url = $4, source_upstream_url = '', adopted_dsn_sealed = $5,
				adopted_dsn_label = $6, placement_epoch = 0, created_at = now(), deleted_at = NULL, purge_after = NULL, purged_at = NULL`,
			req.Name, req.Owner, req.RealmKey, req.Upstream, c.box.Seal(sealAdopted, req.DSN.Reveal()), req.DSN.String())
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO rehome_control.settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2, updated_at = now()`, systemSetting(req.Name), system)
		if err != nil {
			return err
		}
		return notifyRoutes(ctx, tx)
	})
	if err != nil {
		return Database{}, fmt.Errorf("record database %s: %w", req.Name, err)
	}
	c.log.InfoContext(ctx, "database adopted", "database", req.Name, "address", req.DSN)
	return c.Database(ctx, req.Name)
}

// checkAdoptable asks a database who it is. The control database is refused: a purge would take it away; and so is one
// that is under management already.
func (c *Catalogue) checkAdoptable(ctx context.Context, dsn tenant.DSN) (system string, err error) {
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return "", err
	}
	defer closeConn(ctx, conn)
	info, err := inspect(ctx, conn)
	if err != nil {
		return "", err
	}
	if info.Version < minVersion {
		return "", tenant.Errorf(tenant.KindRefused, "postgres-too-old", "use PostgreSQL 13 or later", "%s is PostgreSQL %d", dsn, info.Version/10000)
	}
	var control bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('rehome_control.databases') IS NOT NULL`).Scan(&control); err != nil {
		return "", fmt.Errorf("look for a control schema: %w", err)
	}
	if control {
		return "", tenant.Errorf(tenant.KindRefused, "control-database", "a tenant's data belongs into a database of its own", "%s is the control database of an installation", dsn)
	}
	if info.SystemID == "" { // cannot be told from others; the address is all there is
		return "", nil
	}
	comment, _, err := databaseComment(ctx, conn, info.Database)
	if err != nil {
		return "", err
	}
	if info.Database != "" && comment == c.ourComment(info.Database) {
		return "", adoptedAlready(dsn, info.Database)
	}
	rows, err := c.pool.Query(ctx, `SELECT d.name FROM rehome_control.databases d JOIN rehome_control.settings s ON s.name = 'adopted_system.' || d.name
		WHERE d.kind = 'adopted' AND d.state <> 'purged' AND s.value = $1`, info.SystemID)
	if err != nil {
		return "", fmt.Errorf("look for databases of the same server: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("look for databases of the same server: %w", err)
	}
	for _, name := range names {
		other, err := c.AdoptedDSN(ctx, name)
		if err != nil {
			return "", err
		}
		cfg, err := parseDSN(other)
		if err != nil {
			return "", errors.New("a stored connection string cannot be read")
		}
		if cfg.Database == info.Database || (cfg.Database == "" && cfg.User == info.Database) {
			return "", adoptedAlready(dsn, name)
		}
	}
	return info.SystemID, nil
}

func adoptedAlready(dsn tenant.DSN, name string) error {
	return tenant.Errorf(tenant.KindConflict, "database-adopted-already", "one Postgres database is one database here", "%s is under management as %q", dsn, name)
}
