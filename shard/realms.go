package shard

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// Realms reads where realms are and how many rows they have, by counting in the sharded tables of the shards. A table
// is sharded when it has the database's realm key column, or the column that q.TableKeys names for it. It scans those
// tables (or their indexes): a report for people, not for a hot path.
func (c *Catalogue) Realms(ctx context.Context, database string, q RealmQuery) ([]Realm, error) {
	d, err := c.Database(ctx, database)
	if err != nil {
		return nil, err
	}
	p, err := c.Placement(ctx, database)
	if err != nil {
		return nil, err
	}
	switch q.Sort {
	case "":
		q.Sort = BySize
	case BySize, ByName:
	default:
		return nil, tenant.Errorf(tenant.KindInvalid, "bad-sort", "use size or name", "realms cannot be sorted by %q", q.Sort)
	}
	if q.Limit <= 0 {
		q.Limit = DefaultRealmLimit
	}
	shards := d.Shards
	if q.Shard != "" {
		if !slices.Contains(shards, q.Shard) {
			return nil, tenant.Errorf(tenant.KindNotFound, "database-not-on-shard", "see: rehome databases", "database %q is not on shard %q", database, q.Shard)
		}
		shards = []string{q.Shard}
	}
	found := make([][]Realm, len(shards))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(probeParallel)
	for i, s := range shards {
		g.Go(func() error {
			list, err := c.realmsOn(gctx, d, s, q)
			if err != nil {
				return fmt.Errorf("read the realms on shard %s: %w", s, err)
			}
			found[i] = list
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(found...)
	for i := range all {
		all[i].Bucket = tenant.Bucket(all[i].Realm)
		_, all[i].Pinned = p.Pins[all[i].Realm]
	}
	slices.SortFunc(all, func(a, b Realm) int {
		byName := cmp.Or(cmp.Compare(a.Realm, b.Realm), cmp.Compare(a.Shard, b.Shard))
		if q.Sort == BySize {
			return cmp.Or(cmp.Compare(b.Rows, a.Rows), byName)
		}
		return byName
	})
	return all[:min(len(all), q.Limit)], nil
}

func (c *Catalogue) realmsOn(ctx context.Context, d Database, shard string, q RealmQuery) ([]Realm, error) {
	dsn, err := c.DatabaseDSN(ctx, d.Name, shard)
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	keys, err := shardedTables(ctx, conn, d.RealmKey, q.TableKeys)
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	parts := make([]string, len(keys))
	for i, k := range keys {
		// ONLY where it is an ordinary table: an inheriting child is counted by itself.
		parts[i] = fmt.Sprintf(`SELECT %s::text AS realm, count(*) AS n FROM %s%s WHERE %[1]s IS NOT NULL GROUP BY 1`, tenant.QuoteIdent(k.column), k.only, k.table.Quoted())
	}
	order := `sum(n) DESC, realm COLLATE "C"`
	if q.Sort == ByName {
		order = `realm COLLATE "C"`
	}
	rows, err := conn.Query(ctx, `SELECT realm, sum(n)::bigint FROM (`+strings.Join(parts, " UNION ALL ")+`) AS u GROUP BY realm ORDER BY `+order+` LIMIT $1`, q.Limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Realm, error) {
		r := Realm{Shard: shard}
		err := row.Scan(&r.Realm, &r.Rows)
		return r, err
	})
}

type keyedTable struct {
	table  tenant.TableName
	only   string
	column string
}

// shardedTables lists ordinary tables and partition roots that have their realm key column.
func shardedTables(ctx context.Context, conn *pgx.Conn, realmKey string, tableKeys map[string]string) ([]keyedTable, error) {
	byTable := map[tenant.TableName]string{}
	for name, key := range tableKeys {
		t, err := tenant.ParseTableName(name)
		if err != nil {
			return nil, err
		}
		byTable[t] = key
	}
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, c.relkind = 'r', array_agg(a.attname::text)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
			AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'rehome')
		GROUP BY 1, 2, 3 ORDER BY 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var out []keyedTable
	var t tenant.TableName
	var ordinary bool
	var columns []string
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &ordinary, &columns}, func() error {
		key, named := byTable[t]
		if !named {
			key = realmKey
		}
		if key == "" || !slices.Contains(columns, key) {
			return nil
		}
		k := keyedTable{table: t, column: key}
		if ordinary {
			k.only = "ONLY "
		}
		out = append(out, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return out, nil
}
