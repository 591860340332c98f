package shard

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// fenceCode is the SQLSTATE with which a fence refuses writes to a database that has moved.
const fenceCode = "RH001"

// destroyAdopted empties an adopted database in throttled batches and drops it. Tables that its fence protects are
// dropped whole: the fence stays up until its table is gone, so the old side never takes a write again. If the role may
// not drop the database, an empty one is left, and the result says so.
func (c *Catalogue) destroyAdopted(ctx context.Context, d Database, opts PurgeOptions, res *PurgeResult) error {
	dsn, err := c.AdoptedDSN(ctx, d.Name)
	if err != nil {
		return err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if isCode3D000(err) {
		return nil // a former attempt dropped it
	}
	if err != nil {
		return fmt.Errorf("purge database %s: %w", d.Name, err)
	}
	defer closeConn(ctx, conn)
	var physical string
	if err := conn.QueryRow(ctx, `SELECT current_database()::text`).Scan(&physical); err != nil {
		return fmt.Errorf("purge database %s: %w", d.Name, err)
	}
	if err := dropSlots(ctx, conn, physical); err != nil {
		return err
	}
	endSessions(ctx, conn)
	// A session that came back and holds a lock makes this purge fail; the next one ends it again.
	if _, err := conn.Exec(ctx, `SET lock_timeout = '10s'`); err != nil {
		return fmt.Errorf("purge database %s: %w", d.Name, err)
	}
	// Without replica role foreign keys decide the order; what they refuse is dropped with its table.
	_, _ = conn.Exec(ctx, `SET session_replication_role = replica`)
	if err := emptyTables(ctx, conn, opts, res); err != nil {
		return fmt.Errorf("empty database %s: %w", d.Name, err)
	}
	closeConn(ctx, conn) // or it would keep the database from being dropped
	return c.dropAdopted(ctx, dsn, physical, res)
}

func isCode3D000(err error) bool { // invalid_catalog_name: no such database
	e := tenant.AsError(err)
	return e != nil && e.Code == codeNoDatabase
}

// endSessions terminates other sessions of this database, as far as the role may.
func endSessions(ctx context.Context, conn *pgx.Conn) {
	rows, err := conn.Query(ctx, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`)
	if err != nil {
		return
	}
	pids, _ := pgx.CollectRows(rows, pgx.RowTo[int32])
	for _, pid := range pids {
		_, _ = conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid) // of a stronger role: dropping the database decides
	}
}

type ownTable struct {
	Name  tenant.TableName
	Root  tenant.TableName // the table to drop: itself, or the root of its partition tree
	Owned bool
}

// emptyTables deletes the rows of every table, smallest first, and drops the table.
func emptyTables(ctx context.Context, conn *pgx.Conn, opts PurgeOptions, res *PurgeResult) error {
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text, pg_has_role(c.relowner, 'USAGE')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_class r ON r.oid = COALESCE(CASE WHEN c.relispartition THEN pg_partition_root(c.oid) END, c.oid) JOIN pg_namespace rn ON rn.oid = r.relnamespace
		WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
			AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
		ORDER BY n.nspname = 'rehome', pg_table_size(c.oid), 1, 2`)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ownTable, error) {
		var t ownTable
		err := row.Scan(&t.Name.Schema, &t.Name.Name, &t.Root.Schema, &t.Root.Name, &t.Owned)
		return t, err
	})
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if !t.Owned {
			res.Left = append(res.Left, fmt.Sprintf("table %s: it belongs to another role", t.Name))
			continue
		}
		n, err := deleteRows(ctx, conn, t.Name, opts)
		res.RowsDeleted += n
		if err != nil && !isCode(err, fenceCode, "23503", "23001", "42501", "55000") { // fence, foreign key, privilege, trigger or rule: dropping decides
			return fmt.Errorf("delete the rows of %s: %w", t.Name, err)
		}
	}
	roots := map[tenant.TableName]bool{}
	for _, t := range tables {
		if !t.Owned || roots[t.Root] {
			continue
		}
		roots[t.Root] = true
		if _, err := conn.Exec(ctx, `DROP TABLE IF EXISTS `+t.Root.Quoted()+` CASCADE`); err != nil {
			if !isCode(err, "42501", "2BP01") { // insufficient_privilege, dependent_objects_still_exist
				return fmt.Errorf("drop table %s: %w", t.Root, err)
			}
			res.Left = append(res.Left, fmt.Sprintf("table %s: this role may not drop it", t.Root))
		}
	}
	return nil
}

// deleteRows deletes a table's rows batch by batch.
func deleteRows(ctx context.Context, conn *pgx.Conn, t tenant.TableName, opts PurgeOptions) (int64, error) {
	var total int64
	for {
		tag, err := conn.Exec(ctx, `DELETE FROM ONLY `+t.Quoted()+` WHERE ctid = ANY(ARRAY(SELECT ctid FROM ONLY `+t.Quoted()+` LIMIT $1))`, opts.BatchRows)
		if err != nil {
			return total, err
		}
		total += tag.RowsAffected()
		if tag.RowsAffected() < int64(opts.BatchRows) {
			return total, nil
		}
		if err := sleep(ctx, opts.Pause); err != nil {
			return total, err
		}
	}
}

// dropAdopted drops the Postgres database from a maintenance database of its server.
func (c *Catalogue) dropAdopted(ctx context.Context, dsn tenant.DSN, physical string, res *PurgeResult) error {
	if slices.Contains([]string{"postgres", "template1"}, physical) {
		res.Left = append(res.Left, fmt.Sprintf("the empty database %q: every server has one", physical))
		return nil
	}
	var conn *pgx.Conn
	for _, maintenance := range []string{"postgres", "template1"} {
		to, err := withDatabase(dsn, maintenance)
		if err != nil {
			return err
		}
		if conn, err = connect(ctx, to, connectTimeout); err == nil {
			break
		} else if ctx.Err() != nil {
			return err
		}
	}
	if conn == nil {
		res.Left = append(res.Left, fmt.Sprintf("the empty database %q: this role reaches no maintenance database to drop it from", physical))
		return nil
	}
	defer closeConn(ctx, conn)
	_, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(physical)+` WITH (FORCE)`)
	if isCode(err, "42501") { // insufficient_privilege
		res.Left = append(res.Left, fmt.Sprintf("the empty database %q: this role may not drop it", physical))
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop database %s: %w", physical, err)
	}
	res.Dropped = append(res.Dropped, dsn.String())
	return nil
}
