package gate

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// Names of the fence triggers. The row-level one exists only on tables that a subscription writes to: an apply worker
// fires row triggers and no statement triggers.
const (
	TriggerName    = "rehome_fence"
	RowTriggerName = "rehome_fence_row"
)

// Table is a table or a partition that a fence covers.
type Table struct {
	OID         uint32
	Name        tenant.TableName
	Partitioned bool
	Owned       bool   // we may create and enable triggers on it
	Subscribed  bool   // a subscription writes to it
	fence       string // the fence trigger's tgenabled: "" none, "A" always, "D" disabled, others
	fenceRow    string
	depth       int // 1: ordinary tables and roots; partitions below them
}

// listTables is the part of the catalogue that a fence covers: ordinary and partitioned tables of users. Statement triggers on
// a root do not fire for direct access to a leaf and vice versa, so both are listed. Members of extensions are the
// extension's. Views and foreign tables store nothing here. Roots come before leaves; see Attempt.order.
const listTables = `
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid),
       coalesce((SELECT t.tgenabled::text FROM pg_catalog.pg_trigger t
                 WHERE t.tgrelid = c.oid AND t.tgname = '` + TriggerName + `' AND t.tgfoid = to_regprocedure('rehome.fence()')), ''),
       coalesce((SELECT t.tgenabled::text FROM pg_catalog.pg_trigger t
                 WHERE t.tgrelid = c.oid AND t.tgname = '` + RowTriggerName + `' AND t.tgfoid = to_regprocedure('rehome.fence()')), ''),
       greatest(1, (SELECT count(*) FROM pg_catalog.pg_partition_ancestors(c.oid)))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 9, c.oid`

// Tables lists what a fence covers, roots before leaves. Those that are not Owned cannot be fenced by this role.
func Tables(ctx context.Context, q Querier) ([]Table, error) {
	rows, err := q.Query(ctx, listTables)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Table, error) {
		var t Table
		err := row.Scan(&t.OID, &t.Name.Schema, &t.Name.Name, &t.Partitioned, &t.Owned, &t.Subscribed, &t.fence, &t.fenceRow, &t.depth)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	return out, nil
}

// tablesOf reads listTables' rows as the simple protocol gives them: as text.
func tablesOf(r *pgconn.Result) ([]Table, error) {
	out := make([]Table, 0, len(r.Rows))
	for _, row := range r.Rows {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("list the tables: %w", err)
		}
		depth, err := strconv.Atoi(string(row[8]))
		if err != nil {
			return nil, fmt.Errorf("list the tables: %w", err)
		}
		yes := func(i int) bool { return string(row[i]) == "t" }
		out = append(out, Table{
			OID: uint32(oid), Name: tenant.TableName{Schema: string(row[1]), Name: string(row[2])}, Partitioned: yes(3), Owned: yes(4), Subscribed: yes(5),
			fence: string(row[6]), fenceRow: string(row[7]), depth: depth,
		})
	}
	return out, nil
}

// owned leaves out what this role cannot fence.
func owned(tables []Table) []Table {
	out := make([]Table, 0, len(tables))
	for _, t := range tables {
		if t.Owned {
			out = append(out, t)
		}
	}
	return out
}

// sameTables reports whether both lists hold the same relations.
func sameTables(a, b []Table) bool {
	if len(a) != len(b) {
		return false
	}
	seen := make(map[uint32]struct{}, len(a))
	for _, t := range a {
		seen[t.OID] = struct{}{}
	}
	for _, t := range b {
		if _, ok := seen[t.OID]; !ok {
			return false
		}
	}
	return true
}

// Closed reports whether the table's fence stands.
func (t Table) Closed() bool {
	return t.fence == "A" && (!t.Subscribed || t.Partitioned || t.fenceRow == "A")
}

// Open reports whether no fence is in the way.
func (t Table) Open() bool {
	return (t.fence == "" || t.fence == "D") && (t.fenceRow == "" || t.fenceRow == "D")
}

// lockSQL is one LOCK statement over all tables, in order. Empty if there are none.
func lockSQL(tables []Table, mode string) string {
	if len(tables) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("LOCK TABLE ")
	for i, t := range tables {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("ONLY " + t.Name.Quoted())
	}
	b.WriteString(" IN " + mode + " MODE")
	return b.String()
}

// closeSQL makes the fence stand on every table: creates what is missing and enables it ALWAYS, so that
// session_replication_role does not get around it. It takes SHARE ROW EXCLUSIVE locks and no stronger ones.
func closeSQL(tables []Table) string {
	var b strings.Builder
	for _, t := range tables {
		name := t.Name.Quoted()
		if t.fence == "" {
			b.WriteString("CREATE TRIGGER " + TriggerName + " BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON " + name +
				" FOR EACH STATEMENT EXECUTE FUNCTION rehome.fence();\n")
		}
		if t.fence != "A" {
			b.WriteString("ALTER TABLE ONLY " + name + " ENABLE ALWAYS TRIGGER " + TriggerName + ";\n")
		}
		if !t.Subscribed || t.Partitioned {
			continue
		}
		if t.fenceRow == "" {
			b.WriteString("CREATE TRIGGER " + RowTriggerName + " BEFORE INSERT OR UPDATE OR DELETE ON " + name +
				" FOR EACH ROW EXECUTE FUNCTION rehome.fence();\n")
		}
		if t.fenceRow != "A" {
			b.WriteString("ALTER TABLE ONLY " + name + " ENABLE ALWAYS TRIGGER " + RowTriggerName + ";\n")
		}
	}
	return b.String()
}

// FenceTableSQL makes the statements that close one table that is just being made at a shard: each by itself, for whoever
// makes the table to run them in the same transaction.
func FenceTableSQL(t tenant.TableName) []string {
	name := t.Quoted()
	return []string{
		"DROP TRIGGER IF EXISTS " + TriggerName + " ON " + name,
		"CREATE TRIGGER " + TriggerName + " BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON " + name + " FOR EACH STATEMENT EXECUTE FUNCTION rehome.fence()",
		"ALTER TABLE ONLY " + name + " ENABLE ALWAYS TRIGGER " + TriggerName,
	}
}

// openSQL takes the fence out of the way by disabling it: DROP TRIGGER would wait for readers.
func openSQL(tables []Table) string {
	var b strings.Builder
	for _, t := range tables {
		if t.fence != "" && t.fence != "D" {
			b.WriteString("ALTER TABLE ONLY " + t.Name.Quoted() + " DISABLE TRIGGER " + TriggerName + ";\n")
		}
		if t.fenceRow != "" && t.fenceRow != "D" {
			b.WriteString("ALTER TABLE ONLY " + t.Name.Quoted() + " DISABLE TRIGGER " + RowTriggerName + ";\n")
		}
	}
	return b.String()
}
