package shard

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ResetDatabase makes a database as empty as it was created: on every shard it is dropped and made again, with the
// collation that it had. It is how a cancelled replication takes back what it copied; whoever calls it makes sure that
// no client was ever let in. It may be repeated after a crash or an error.
func (c *Catalogue) ResetDatabase(ctx context.Context, name string) error {
	unlock, err := c.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := c.Database(ctx, name)
	if err != nil {
		return err
	}
	if d.Kind != KindSharded || d.State != Active {
		return wrongState(name, d.State, "only an active database that was created here can be emptied")
	}
	placement, err := c.Placement(ctx, name)
	if err != nil {
		return err
	}
	for _, s := range d.Shards {
		req := CreateRequest{Name: name}
		if req.Collate, req.CType, err = c.collationOn(ctx, s, name); err != nil {
			return fmt.Errorf("reset database %s on shard %s: %w", name, s, err)
		}
		if _, err := c.dropOn(ctx, s, name); err != nil {
			return fmt.Errorf("reset database %s on shard %s: %w", name, s, err)
		}
		if err := c.buildOn(ctx, s, req, placement); err != nil {
			return fmt.Errorf("reset database %s on shard %s: %w", name, s, err)
		}
	}
	c.log.InfoContext(ctx, "database emptied", "database", name, "shards", d.Shards)
	return nil
}

// collationOn reads a database's locale; empty when it is not there, as after an interrupted reset: the server's then.
func (c *Catalogue) collationOn(ctx context.Context, shard, name string) (collate, ctype string, err error) {
	dsn, err := c.ShardDSN(ctx, shard)
	if err != nil {
		return "", "", err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return "", "", err
	}
	defer closeConn(ctx, conn)
	err = conn.QueryRow(ctx, `SELECT datcollate, datctype FROM pg_database WHERE datname = $1`, name).Scan(&collate, &ctype)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("read its locale: %w", err)
	}
	return collate, ctype, nil
}
