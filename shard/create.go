package shard

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// renameTries and renamePause bound the wait for the server to notice that the provisioning session is gone.
const (
	renameTries = 40
	renamePause = 25 * time.Millisecond
)

var errNameTaken = errors.New("a database of that name is there and is not ours")

// ourID names what this installation created as name; another installation's secret gives another id.
func (c *Catalogue) ourID(name string) string {
	return hex.EncodeToString(c.box.Derive("database:" + name)[:8])
}

func (c *Catalogue) ourComment(name string) string { return "rehome:" + c.ourID(name) }

// CreateDatabase makes a database on its shards, or finishes a creation that was interrupted. It refuses, and leaves
// nothing behind, where a shard has a database of that name that is not ours.
func (c *Catalogue) CreateDatabase(ctx context.Context, req CreateRequest) (Database, error) {
	if err := tenant.CheckDatabaseName(req.Name); err != nil {
		return Database{}, err
	}
	for _, upstream := range []string{req.Upstream, req.SourceUpstream} {
		if err := checkUpstream(upstream); err != nil {
			return Database{}, err
		}
	}
	if req.RealmKey == "" {
		req.RealmKey = DefaultRealmKey
	}
	if len(req.RealmKey) > 63 || strings.ContainsRune(req.RealmKey, 0) {
		return Database{}, tenant.Errorf(tenant.KindInvalid, "bad-realm-key", "name a column, at most 63 bytes", "the realm key cannot be a column's name")
	}
	unlock, err := c.lockName(ctx, req.Name)
	if err != nil {
		return Database{}, err
	}
	defer unlock()

	d, err := c.Database(ctx, req.Name)
	switch {
	case isNotFound(err) || (err == nil && d.Gone()):
		if d, err = c.beginCreate(ctx, req); err != nil {
			return Database{}, err
		}
	case err != nil:
		return Database{}, err
	case !d.Creating():
		return Database{}, tenant.Errorf(tenant.KindConflict, "database-exists", "choose another name", "there is a database %q already", req.Name)
	case len(req.Shards) > 0 && !sameSet(req.Shards, d.Shards):
		return Database{}, tenant.Errorf(tenant.KindConflict, "database-being-created", "repeat the command with the same shards, or without --shards",
			"database %q is being created on %s", req.Name, strings.Join(d.Shards, ", "))
	}
	return c.finishCreate(ctx, d, req)
}

// lockName keeps two servers from creating, adopting or purging one name at once. The lock is a session of its own and
// ends with it: one of the pool would be held while its holder needs a second one.
func (c *Catalogue) lockName(ctx context.Context, name string) (unlock func(), err error) {
	conn, err := pgx.ConnectConfig(ctx, c.pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("lock database name %s: %w", name, err)
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended('rehome database ' || $1, 0))`, name); err != nil {
		closeConn(ctx, conn)
		return nil, fmt.Errorf("lock database name %s: %w", name, err)
	}
	return func() { closeConn(ctx, conn) }, nil
}

// beginCreate checks the shards and records what is to be made.
func (c *Catalogue) beginCreate(ctx context.Context, req CreateRequest) (Database, error) {
	shards, err := c.chooseShards(ctx, req.Shards)
	if err != nil {
		return Database{}, err
	}
	weighted := make([]Weighted, len(shards))
	for i, s := range shards {
		weighted[i] = Weighted{Name: s.Name, Weight: s.Weight}
	}
	placement, err := Spread(weighted)
	if err != nil {
		return Database{}, err
	}
	for _, s := range shards {
		free, err := c.nameFree(ctx, s.Name, req.Name)
		if err != nil {
			return Database{}, err
		}
		if !free {
			return Database{}, nameTaken(req.Name, s.Name)
		}
	}
	raw, err := json.Marshal(placement)
	if err != nil {
		return Database{}, fmt.Errorf("write the placement of %s: %w", req.Name, err)
	}
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := forgetPurged(ctx, tx, req.Name); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.databases (name, kind, owner_email, realm_key, upstream_url, source_upstream_url, placement_epoch) VALUES ($1, 'sharded', $2, $3, $4, $5, 0)
			ON CONFLICT (name) DO UPDATE SET kind = 'sharded', state = 'active', owner_email = $2, realm_key = $3, upstream_url = $4, source_upstream_url = $5, placement_epoch = 0,
				adopted_dsn_sealed = NULL, adopted_dsn_label = '', created_at = now(), deleted_at = NULL, purge_after = NULL, purged_at = NULL`,
			req.Name, req.Owner, req.RealmKey, req.Upstream, req.SourceUpstream)
		if err != nil {
			return err
		}
		for _, s := range placement.Shards() {
			if _, err := tx.Exec(ctx, `INSERT INTO rehome_control.database_shards (database, shard) VALUES ($1, $2)`, req.Name, s); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `INSERT INTO rehome_control.placements (database, epoch, placement, reason) VALUES ($1, $2, $3, 'created')`, req.Name, placement.Epoch, raw)
		return err
	})
	if err != nil {
		return Database{}, fmt.Errorf("record database %s: %w", req.Name, err)
	}
	return c.Database(ctx, req.Name)
}

// forgetPurged makes a purged name free again, unless its tombstone still answers.
func forgetPurged(ctx context.Context, tx pgx.Tx, name string) error {
	var to string
	err := tx.QueryRow(ctx, `SELECT r.target_url FROM rehome_control.redirects r WHERE r.database = $1`, name).Scan(&to)
	if err == nil {
		return tenant.Errorf(tenant.KindRefused, "name-redirects", "take the redirect back first, with: rehome redirect --off", "the name %q redirects to %s", name, to)
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	for _, table := range []string{"placements", "routes", "domains"} {
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.`+table+` WHERE database = $1`, name); err != nil {
			return err
		}
	}
	return forgetKeys(ctx, tx, name)
}

// forgetKeys takes a name out of the keys of those who had it before: the next database of that name is somebody else's.
// A key that is left without any would be one for everything, so it ends.
func forgetKeys(ctx context.Context, tx pgx.Tx, name string) error {
	var purged bool // a key may be made before its database
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.databases WHERE name = $1 AND state = 'purged')`, name).Scan(&purged); err != nil || !purged {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE rehome_control.api_clients SET
			revoked_at = CASE WHEN array_remove(databases, $1) = '{}' THEN coalesce(revoked_at, now()) ELSE revoked_at END,
			databases = CASE WHEN array_remove(databases, $1) = '{}' THEN databases ELSE array_remove(databases, $1) END
		WHERE $1 = ANY (databases)`, name)
	return err
}

func nameTaken(name, shard string) error {
	return tenant.Errorf(tenant.KindRefused, "database-on-shard", "rename or drop it there, choose another name, or leave that shard out with --shards",
		"shard %q has a Postgres database %q that was not made by this database's creation", shard, name)
}

// chooseShards finds the shards of a new database, by ordinal.
func (c *Catalogue) chooseShards(ctx context.Context, names []string) ([]Shard, error) {
	all, err := c.listShards(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []Shard
	for _, s := range all {
		asked := slices.Contains(names, s.Name)
		if asked && (!s.Accepting || s.Weight == 0) {
			return nil, tenant.Errorf(tenant.KindRefused, "shard-not-accepting", "change it with: rehome update-shard "+s.Name+" --accepting --weight 100",
				"shard %q takes no new realms", s.Name)
		}
		if asked || (len(names) == 0 && s.Accepting && s.Weight > 0) {
			out = append(out, s)
		}
	}
	for _, n := range names {
		if !slices.ContainsFunc(out, func(s Shard) bool { return s.Name == n }) {
			return nil, shardUnknown(n)
		}
	}
	if len(out) == 0 {
		return nil, tenant.Errorf(tenant.KindRefused, "no-shards", "add one with: rehome add-shard NAME DSN", "there is no shard that takes new realms")
	}
	return out, nil
}

func (c *Catalogue) nameFree(ctx context.Context, shard, name string) (bool, error) {
	dsn, err := c.ShardDSN(ctx, shard)
	if err != nil {
		return false, err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return false, fmt.Errorf("shard %s: %w", shard, err)
	}
	defer closeConn(ctx, conn)
	_, exists, err := databaseComment(ctx, conn, name)
	return !exists, err
}

// databaseComment reads how a database is marked, from any database of its server.
func databaseComment(ctx context.Context, conn *pgx.Conn, name string) (comment string, exists bool, err error) {
	err = conn.QueryRow(ctx, `SELECT COALESCE(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = $1`, name).Scan(&comment)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look for database %s: %w", name, err)
	}
	return comment, true, nil
}

// finishCreate makes what was recorded, then puts the placement in force.
func (c *Catalogue) finishCreate(ctx context.Context, d Database, req CreateRequest) (Database, error) {
	var raw []byte
	if err := c.pool.QueryRow(ctx, `SELECT placement FROM rehome_control.placements WHERE database = $1 AND epoch = 1`, d.Name).Scan(&raw); err != nil {
		return Database{}, fmt.Errorf("read the placement of %s: %w", d.Name, err)
	}
	var placement tenant.Placement
	if err := json.Unmarshal(raw, &placement); err != nil {
		return Database{}, fmt.Errorf("read the placement of %s: %w", d.Name, err)
	}
	// Where one shard fails, the others finish: a server goes on with a statement that is given up, and might complete its
	// database after it was taken back.
	var g errgroup.Group
	for _, s := range d.Shards {
		g.Go(func() error {
			err := c.buildOn(ctx, s, req, placement)
			if errors.Is(err, errNameTaken) {
				return nameTaken(d.Name, s)
			}
			if err != nil {
				return fmt.Errorf("create database %s on shard %s: %w", d.Name, s, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		var e *tenant.Error
		if errors.As(err, &e) && e.Code == "database-on-shard" {
			if aerr := c.abandonCreate(ctx, d); aerr != nil {
				c.log.ErrorContext(ctx, "creation not taken back", "database", d.Name, "error", aerr)
			}
		}
		return Database{}, err
	}
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.databases SET placement_epoch = 1 WHERE name = $1 AND placement_epoch = 0`, d.Name); err != nil {
			return err
		}
		return notifyRoutes(ctx, tx)
	})
	if err != nil {
		return Database{}, fmt.Errorf("put the placement of %s in force: %w", d.Name, err)
	}
	c.log.InfoContext(ctx, "database created", "database", d.Name, "shards", d.Shards)
	return c.Database(ctx, d.Name)
}

// buildOn makes the database on one shard under a private name, and renames it when it is complete.
func (c *Catalogue) buildOn(ctx context.Context, shard string, req CreateRequest, p tenant.Placement) error {
	dsn, err := c.ShardDSN(ctx, shard)
	if err != nil {
		return err
	}
	admin, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return err
	}
	defer closeConn(ctx, admin)
	comment, exists, err := databaseComment(ctx, admin, req.Name)
	if err != nil {
		return err
	}
	if exists {
		if comment != c.ourComment(req.Name) {
			return errNameTaken
		}
		return provisionAt(ctx, dsn, req.Name, shard, p)
	}
	private := "rehome_new_" + c.ourID(req.Name)
	if _, err := admin.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(private)+` WITH (FORCE)`); err != nil {
		return fmt.Errorf("drop what an interrupted creation left: %w", err)
	}
	// template0: template1 may carry objects of the server's owner, and only template0 allows another encoding.
	create := `CREATE DATABASE ` + tenant.QuoteIdent(private) + ` TEMPLATE template0 ENCODING 'UTF8'`
	if req.Collate != "" {
		create += ` LC_COLLATE ` + tenant.QuoteLiteral(req.Collate)
	}
	if req.CType != "" {
		create += ` LC_CTYPE ` + tenant.QuoteLiteral(req.CType)
	}
	if _, err := admin.Exec(ctx, create); err != nil {
		return fmt.Errorf("create it: %w", err)
	}
	if err := provisionAt(ctx, dsn, private, shard, p); err != nil {
		return err
	}
	if _, err := admin.Exec(ctx, `COMMENT ON DATABASE `+tenant.QuoteIdent(private)+` IS `+tenant.QuoteLiteral(c.ourComment(req.Name))); err != nil {
		return fmt.Errorf("mark it: %w", err)
	}
	return rename(ctx, admin, private, req.Name)
}

// rename waits out sessions that are just ending (55006, object_in_use).
func rename(ctx context.Context, admin *pgx.Conn, from, to string) error {
	var err error
	for range renameTries {
		_, err = admin.Exec(ctx, `ALTER DATABASE `+tenant.QuoteIdent(from)+` RENAME TO `+tenant.QuoteIdent(to))
		if isCode(err, "42P04") { // duplicate_database: somebody was faster
			_, _ = admin.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(from)+` WITH (FORCE)`) // else the next attempt drops it
			return errNameTaken
		}
		if !isCode(err, "55006") {
			break
		}
		if werr := sleep(ctx, renamePause/2+rand.N(renamePause)); werr != nil { //nolint:gosec // jitter needs no secrecy
			return werr
		}
	}
	if err != nil {
		return fmt.Errorf("give it its name: %w", err)
	}
	return nil
}

func provisionAt(ctx context.Context, server tenant.DSN, database, shard string, p tenant.Placement) error {
	dsn, err := withDatabase(server, database)
	if err != nil {
		return err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if err := Provision(ctx, conn); err != nil {
		return err
	}
	return ApplyPlacement(ctx, conn, p, shard)
}

// abandonCreate takes back a creation that cannot succeed: nothing of it was ever served.
func (c *Catalogue) abandonCreate(ctx context.Context, d Database) error {
	for _, s := range d.Shards {
		if _, err := c.dropOn(ctx, s, d.Name); err != nil {
			return err
		}
	}
	_, err := c.pool.Exec(ctx, `DELETE FROM rehome_control.databases WHERE name = $1 AND placement_epoch = 0`, d.Name)
	return err
}

// sleep waits, or ends with the context's cause.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), b)
}
