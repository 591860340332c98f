package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Describe reads the catalogue of the database that conn is connected to. Outside a transaction it opens one of its own,
// REPEATABLE READ READ ONLY, so that the queries agree with each other; inside one it reads what that sees. The number of
// queries does not depend on the number of tables.
//
// The system identifier stays empty where pg_control_system() may not be called; IDENTIFY_SYSTEM on a replication
// connection then tells it.
func Describe(ctx context.Context, conn *pgx.Conn, opts tenant.ReplicationOptions) (*Catalogue, error) {
	if conn.PgConn().TxStatus() != 'I' {
		return describe(ctx, conn, opts)
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("describe the source: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	return describe(ctx, conn, opts)
}

func describe(ctx context.Context, conn *pgx.Conn, opts tenant.ReplicationOptions) (_ *Catalogue, err error) {
	opts = opts.WithDefaults()
	// With an empty search_path format_type() qualifies everything that is not in pg_catalog.
	var path string
	if err := conn.QueryRow(ctx, `SELECT current_setting('search_path')`).Scan(&path); err != nil {
		return nil, fmt.Errorf("describe the source: %w", err)
	}
	if _, err := conn.Exec(ctx, `SELECT set_config('search_path', '', true)`); err != nil {
		return nil, fmt.Errorf("describe the source: %w", err)
	}
	defer func() {
		if _, e := conn.Exec(ctx, `SELECT set_config('search_path', $1, true)`, path); e != nil && err == nil {
			err = fmt.Errorf("describe the source: %w", e)
		}
	}()

	cat := &Catalogue{}
	if cat.Server, err = describeServer(ctx, conn); err != nil {
		return nil, fmt.Errorf("describe the server: %w", err)
	}
	rels, err := readRelations(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	cat.Tables = assemble(rels, opts)
	if err := readColumns(ctx, conn, cat); err != nil {
		return nil, fmt.Errorf("list the columns: %w", err)
	}
	if err := readIdentities(ctx, conn, cat); err != nil {
		return nil, fmt.Errorf("list the keys: %w", err)
	}
	resolveRealmKeys(cat, opts)
	if err := readNullability(ctx, conn, cat); err != nil {
		return nil, fmt.Errorf("read the realm keys of partitions: %w", err)
	}
	if cat.Sequences, err = listSequences(ctx, conn, cat, opts); err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	return cat, nil
}

func describeServer(ctx context.Context, conn *pgx.Conn) (Server, error) {
	var s Server
	// The timeline comes from the name of the current WAL file: the control file lags behind after a promotion.
	err := conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_database()::text, pg_encoding_to_char(d.encoding)::text,
		       d.datcollate::text, d.datctype::text,
		       CASE WHEN pg_is_in_recovery() THEN 0
		            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
		FROM pg_database d WHERE d.datname = current_database()`).
		Scan(&s.Version, &s.Database, &s.Encoding, &s.Collate, &s.CType, &s.Timeline)
	if err != nil {
		return s, err
	}
	var may bool
	if err := conn.QueryRow(ctx, `SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')`).Scan(&may); err != nil {
		return s, err
	}
	if may {
		err = conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&s.SystemIdentifier)
	}
	return s, err
}

// relation is a row of pg_class that takes part: a table, or a member of a partition tree.
type relation struct {
	oid, root, parent uint32
	level             int
	name              tenant.TableName
	kind, persistence string
	replident         string
	filenode          uint32
	bytes, rows       int64
	children          bool
}

// userSchema is the condition that a schema is neither the system's nor Rehome's. $1: ownSchemas.
const userSchema = `n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND n.nspname <> ALL ($1)`

func readRelations(ctx context.Context, conn *pgx.Conn) ([]relation, error) {
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE tree(oid, root, parent, level) AS (
			SELECT c.oid, c.oid, 0::oid, 0
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r','p') AND c.relpersistence = 'p' AND NOT c.relispartition AND `+userSchema+`
			  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
			UNION ALL
			SELECT i.inhrelid, t.root, t.oid, t.level + 1
			FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
			WHERE c.relispartition
		)
		SELECT c.oid, t.root, t.parent, t.level, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
		       coalesce(pg_relation_filenode(c.oid), 0),
		       CASE WHEN c.relkind = 'r' THEN coalesce(pg_relation_size(c.oid), 0)
		            + CASE WHEN c.reltoastrelid <> 0 THEN coalesce(pg_relation_size(c.reltoastrelid), 0) ELSE 0 END ELSE 0 END,
		       greatest(c.reltuples, 0)::float8::bigint,
		       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
		FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
		ORDER BY t.root, t.level, n.nspname, c.relname`, ownSchemas)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r relation, err error) {
		err = row.Scan(&r.oid, &r.root, &r.parent, &r.level, &r.name.Schema, &r.name.Name, &r.kind, &r.persistence, &r.replident,
			&r.filenode, &r.bytes, &r.rows, &r.children)
		return r, err
	})
}

// assemble joins the members of each partition tree to one table and leaves out what the options exclude. Leaving out a
// single partition is not possible: the root is what is published.
func assemble(rels []relation, opts tenant.ReplicationOptions) []Table {
	var tables []Table
	var cur *Table
	for _, r := range rels {
		leaf := Leaf{
			OID: r.oid, Name: r.name, Filenode: r.filenode, Bytes: r.bytes, Rows: r.rows,
			Identity: Identity{Kind: r.replident}, Parent: r.parent, Unlogged: r.persistence == "u",
		}
		if r.level == 0 {
			cur = nil
			if !Included(opts, r.name) {
				continue
			}
			tables = append(tables, Table{OID: r.oid, Name: r.name, Partitioned: r.kind == "p", Children: r.children, Identity: Identity{Kind: r.replident}})
			cur = &tables[len(tables)-1]
			if r.kind == "r" {
				cur.add(leaf)
			}
			continue
		}
		if cur == nil || cur.OID != r.root {
			continue
		}
		switch r.kind {
		case "r":
			cur.add(leaf)
		case "p":
			cur.Branches = append(cur.Branches, leaf)
		}
	}
	slices.SortFunc(tables, func(a, b Table) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name.Schema, b.Name.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return tables
}

func (t *Table) add(l Leaf) {
	t.Leaves = append(t.Leaves, l)
	t.Bytes += l.Bytes
	t.Rows += l.Rows
}

// index lists every relation of the catalogue with a replica identity by OID: tables, branches and leaves.
func (c *Catalogue) index() map[uint32][]*Identity {
	m := make(map[uint32][]*Identity)
	for i := range c.Tables {
		t := &c.Tables[i]
		m[t.OID] = append(m[t.OID], &t.Identity)
		for j := range t.Branches {
			m[t.Branches[j].OID] = append(m[t.Branches[j].OID], &t.Branches[j].Identity)
		}
		for j := range t.Leaves {
			m[t.Leaves[j].OID] = append(m[t.Leaves[j].OID], &t.Leaves[j].Identity)
		}
	}
	return m
}

func (c *Catalogue) oids() []uint32 {
	out := make([]uint32, len(c.Tables))
	for i := range c.Tables {
		out[i] = c.Tables[i].OID
	}
	return out
}

func resolveRealmKeys(cat *Catalogue, opts tenant.ReplicationOptions) {
	for i := range cat.Tables {
		t := &cat.Tables[i]
		if DeclaredReference(opts, t.Name) {
			continue
		}
		want, _ := WantedRealmKey(opts, t.Name)
		if c := t.Column(want); c != nil {
			t.RealmKey, t.RealmFixed = want, RealmFixed(opts, t.Name)
		}
	}
}

// Column finds a column by name.
func (t *Table) Column(name string) *Column {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return &t.Columns[i]
		}
	}
	return nil
}
