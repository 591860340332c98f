package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/tenant"
)

// reference: the tables without a realm are the same on every shard, and as the source has them.
func (c *checker) reference(ctx context.Context) (finding, error) {
	f := finding{detail: "the same everywhere"}
	for _, table := range ReferenceTables() {
		var digest, where string
		compare := func(name string, pool *pgxpool.Pool) error {
			d, n, err := tableDigest(ctx, pool, table)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			f.figure += n
			if where == "" {
				digest, where = d, name
			} else if d != digest {
				f.complain("%s differs between %s and %s", table, where, name)
			}
			return nil
		}
		if c.source != nil {
			if err := compare("the source", c.source); err != nil {
				return f, err
			}
		}
		for _, name := range c.names {
			if err := compare("shard "+name, c.shards[name]); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

// tableDigest is a digest of a small table's rows. Timestamps are text in the session's time zone: it is set.
func tableDigest(ctx context.Context, pool *pgxpool.Pool, table tenant.TableName) (digest string, rows int64, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL timezone = 'UTC'`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT md5(coalesce(string_agg(t::text, E'\n' ORDER BY t::text COLLATE "C"), '')), count(*) FROM `+table.Quoted()+` t`).
			Scan(&digest, &rows)
	})
	return digest, rows, err
}

// constraints: foreign keys were validated, indexes are usable, and none was forgotten.
func (c *checker) constraints(ctx context.Context) (finding, error) {
	f := finding{detail: "all there and valid on every shard"}
	const list = `
		SELECT conrelid::regclass || ' ' || conname, convalidated FROM pg_constraint
		WHERE connamespace IN ('public'::regnamespace, 'ledger'::regnamespace) AND contype IN ('c', 'f', 'p', 'u', 'x') AND conrelid <> 0
		UNION ALL
		SELECT indrelid::regclass || ' ' || indexrelid::regclass, indisvalid AND indisready FROM pg_index
		JOIN pg_class c ON c.oid = indexrelid
		WHERE relnamespace IN ('public'::regnamespace, 'ledger'::regnamespace) AND relname NOT LIKE 'rehome%'
		UNION ALL
		SELECT tgrelid::regclass || ' ' || tgname, tgenabled IN ('O', 'A') FROM pg_trigger WHERE tgname = 'touch'
		ORDER BY 1`
	var name string
	var valid bool
	has := map[string][]string{}
	err := c.each(ctx, list, []any{&name, &valid}, func(shard string) error {
		f.figure++
		has[shard] = append(has[shard], name)
		if !valid {
			f.complain("%s is not valid on shard %s", name, shard)
		}
		return nil
	})
	if err != nil {
		return f, err
	}
	want := has[c.names[0]]
	if c.source != nil {
		rows, err := c.source.Query(ctx, list)
		if err != nil {
			return f, fmt.Errorf("the source: %w", err)
		}
		want = nil
		if _, err := pgx.ForEachRow(rows, []any{&name, &valid}, func() error {
			want = append(want, name)
			return nil
		}); err != nil {
			return f, fmt.Errorf("the source: %w", err)
		}
	}
	for _, shard := range c.names {
		for _, name := range want {
			if !slices.Contains(has[shard], name) {
				f.complain("%s is missing on shard %s", name, shard)
			}
		}
	}
	return f, nil
}

// errStillOpen ends a probing transaction that should have been refused.
var errStillOpen = errors.New("the statement was not refused")

// fenced tries to write to each of the source's tables, in transactions that are rolled back whatever happens.
func (c *checker) fenced(ctx context.Context) (finding, error) {
	f := finding{detail: "INSERT, UPDATE, DELETE and TRUNCATE on each table"}
	tables := slices.Concat(ShardedTables(), Partitions(), ReferenceTables())
	for _, table := range tables {
		t := table.Quoted()
		var column string
		err := c.source.QueryRow(ctx, `SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum = 1`, t).Scan(&column)
		if err != nil {
			return f, fmt.Errorf("%s: %w", table, err)
		}
		one := ` WHERE ctid = (SELECT ctid FROM ` + t + ` LIMIT 1)`
		for _, sql := range []string{
			`INSERT INTO ` + t + ` DEFAULT VALUES`,
			`UPDATE ` + t + ` SET ` + column + ` = ` + column + one,
			`DELETE FROM ` + t + one,
			`TRUNCATE ` + t + ` CASCADE`, // without CASCADE foreign keys refuse it before the fence does
		} {
			hint, err := c.refused(ctx, sql)
			if err != nil {
				f.complain("%s: %v", sql, err)
				continue
			}
			f.figure++
			if hint != "" {
				f.detail = "INSERT, UPDATE, DELETE and TRUNCATE on each table; the hint says: " + hint
			}
		}
	}
	return f, nil
}

// refused runs a statement that a fence must refuse; nothing of it stays.
func (c *checker) refused(ctx context.Context, sql string) (hint string, err error) {
	err = pgx.BeginFunc(ctx, c.source, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
		return errStillOpen // rolls back
	})
	err = moved(err)
	if errors.Is(err, ErrMoved) {
		return tenant.AsError(err).Hint, nil
	}
	return "", err
}
