package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The fence's triggers stop writes to the tables that are there. Event triggers stop what would get around them: new
// tables, dropped or renamed ones, partitions that come or go, indexes, sequences that run on, and the fence's own triggers
// being disabled or dropped. They are made in the transaction that decides and go in the one that takes the writes back,
// ENABLE ALWAYS, so that session_replication_role does not get around them. Where our role may not create event triggers
// (everywhere but for superusers and the administrators of some managed servers) there are none: then a watcher has to
// notice such a change.
const (
	ddlFenceStart = "rehome_fence_ddl_start" // what cannot be taken back at its end: … CONCURRENTLY
	ddlFenceEnd   = "rehome_fence_ddl_end"
	ddlFenceDrop  = "rehome_fence_ddl_drop"
)

var ddlFences = [...]string{ddlFenceStart, ddlFenceEnd, ddlFenceDrop}

// createDDLFence: the function behind the event triggers. It lets pass whoever has the pass, and the transaction that moves
// the gate itself: its own statements follow (sequences that are frozen, triggers that are made or disabled). Temporary
// objects, views, functions, comments and privileges are free: reports on the old side go on. Our own schema is, too: only
// its owner may change it.
//
// A command that commits halfway (CREATE INDEX CONCURRENTLY, DETACH PARTITION CONCURRENTLY) is not undone by an error at its
// end, so it is refused at its begin, where only its text is known.
const createDDLFence = `
CREATE OR REPLACE FUNCTION rehome.fence_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $fence$
DECLARE
    g    record;
    what text;
BEGIN
    SELECT pass_hash, new_url, xmin AS mover INTO g FROM rehome.gate;
    IF sha256(convert_to(current_setting('rehome.pass', true), 'UTF8')) = g.pass_hash OR g.mover = pg_current_xact_id_if_assigned()::xid THEN
        RETURN;
    END IF;
    IF tg_event = 'ddl_command_start' THEN
        IF current_query() ~* '\mconcurrently\M' THEN
            what := tg_tag || ' CONCURRENTLY';
        END IF;
    ELSIF tg_event = 'sql_drop' THEN
        SELECT tg_tag || ' of ' || d.object_type || ' ' || d.object_identity INTO what FROM pg_event_trigger_dropped_objects() d
        WHERE (d.object_type IN ('table', 'table column', 'foreign table', 'sequence', 'index', 'trigger', 'table constraint', 'policy')
               OR d.object_type = 'rule' AND tg_tag = 'DROP RULE')
          AND NOT d.is_temporary AND coalesce(d.schema_name, '') NOT IN ('rehome', 'pg_temp', 'pg_toast')
          AND coalesce(d.address_names[1], '') NOT IN ('rehome', 'pg_temp')
        ORDER BY d.original DESC LIMIT 1;
    ELSE
        SELECT c.command_tag || ' on ' || c.object_identity INTO what FROM pg_event_trigger_ddl_commands() c
        WHERE NOT c.in_extension AND coalesce(c.schema_name, '') NOT IN ('pg_temp', 'rehome')
          AND c.command_tag IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA',
              'CREATE INDEX', 'ALTER INDEX', 'CREATE SEQUENCE', 'ALTER SEQUENCE', 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE RULE', 'ALTER RULE',
              'CREATE POLICY', 'ALTER POLICY', 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER SCHEMA')
          AND c.object_type NOT IN ('view', 'materialized view')
          AND NOT EXISTS (SELECT FROM (
                SELECT tgrelid FROM pg_trigger WHERE c.classid = 'pg_trigger'::regclass AND oid = c.objid
                UNION ALL SELECT ev_class FROM pg_rewrite WHERE c.classid = 'pg_rewrite'::regclass AND oid = c.objid
                UNION ALL SELECT polrelid FROM pg_policy WHERE c.classid = 'pg_policy'::regclass AND oid = c.objid) o(rel)
              JOIN pg_class t ON t.oid = o.rel
              WHERE t.relpersistence = 't' OR t.relkind = 'v' OR t.relnamespace = 'rehome'::regnamespace)
        LIMIT 1;
    END IF;
    IF what IS NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'database has moved',
        DETAIL = what || ' was refused: tables and sequences stay here as they were when it moved.',
        HINT = CASE WHEN coalesce(g.new_url, '') = '' THEN 'It lives elsewhere now; connect again to learn where.'
                    ELSE 'It lives at ' || g.new_url || '; change it there.' END;
END
$fence$`

const revokeDDLFence = `REVOKE ALL ON FUNCTION rehome.fence_ddl() FROM PUBLIC`

// closeDDLSQL makes the event triggers, whatever was there of them.
func closeDDLSQL() string {
	return openDDLSQL() +
		"CREATE EVENT TRIGGER " + ddlFenceStart + " ON ddl_command_start WHEN TAG IN ('CREATE INDEX', 'DROP INDEX', 'ALTER TABLE') EXECUTE FUNCTION rehome.fence_ddl();\n" +
		"CREATE EVENT TRIGGER " + ddlFenceEnd + " ON ddl_command_end EXECUTE FUNCTION rehome.fence_ddl();\n" +
		"CREATE EVENT TRIGGER " + ddlFenceDrop + " ON sql_drop EXECUTE FUNCTION rehome.fence_ddl();\n" +
		"ALTER EVENT TRIGGER " + strings.Join(ddlFences[:], " ENABLE ALWAYS; ALTER EVENT TRIGGER ") + " ENABLE ALWAYS;\n"
}

// openDDLSQL drops them. It takes locks on nothing but themselves.
func openDDLSQL() string {
	var b strings.Builder
	for _, name := range ddlFences {
		b.WriteString("DROP EVENT TRIGGER IF EXISTS " + name + ";\n")
	}
	return b.String()
}

// PermitsDDLFence reports whether the session's role may make the event triggers. It tries and takes it back; nothing is
// left. No function of ours (a gate that an older version installed) counts as not permitted.
func PermitsDDLFence(ctx context.Context, conn *pgx.Conn) (bool, error) {
	permitted, _, err := tryDDLFence(ctx, conn)
	return permitted, err
}

// DDLRight remembers that a role may not make the event triggers, for whoever looks at the same source again and again: each
// try is an ERROR in the server's log then. The zero value knows nothing yet, nil asks every time. Not for several goroutines.
type DDLRight struct{ refused bool }

// permits is PermitsDDLFence, asked once where the answer is no.
func (r *DDLRight) permits(ctx context.Context, conn *pgx.Conn) (bool, error) {
	if r != nil && r.refused {
		return false, nil
	}
	permitted, code, err := tryDDLFence(ctx, conn)
	// insufficient_privilege and undefined_function last; what else refuses (a lock, a standby) may pass.
	if r != nil && (code == "42501" || code == "42883") {
		r.refused = true
	}
	return permitted, err
}

// tryDDLFence also returns the SQLSTATE of what refused.
func tryDDLFence(ctx context.Context, conn *pgx.Conn) (permitted bool, code string, err error) {
	errTried := errors.New("taken back")
	err = inTx(ctx, conn, func(tx pgx.Tx) error {
		// Another name than the real ones': an attempt under way holds those until it ends.
		_, err := tx.Exec(ctx, `CREATE EVENT TRIGGER rehome_fence_try ON sql_drop WHEN TAG IN ('DROP AGGREGATE') EXECUTE FUNCTION rehome.fence_ddl()`)
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok && !lost(pe) {
			code = pe.Code
			return errTried
		}
		if err != nil {
			return err
		}
		permitted = true
		return errTried
	})
	if err != nil && !errors.Is(err, errTried) {
		return false, "", fmt.Errorf("try to create an event trigger: %w", err)
	}
	return permitted, code, nil
}

// lost reports whether the server ended the session or the statement, which says nothing of permissions.
func lost(pe *pgconn.PgError) bool {
	return strings.HasPrefix(pe.Code, "08") || strings.HasPrefix(pe.Code, "57")
}

// ddlFenceStands reports whether all event triggers are there and enabled.
func ddlFenceStands(ctx context.Context, q Querier) (stands bool, err error) {
	err = q.QueryRow(ctx, `SELECT count(*) = $2 FROM pg_catalog.pg_event_trigger WHERE evtname = ANY ($1) AND evtenabled = 'A'`, ddlFences[:], len(ddlFences)).Scan(&stands)
	if err != nil {
		return false, fmt.Errorf("look for the event triggers: %w", err)
	}
	return stands, nil
}

// ddlFenceThere reports whether any of them is there.
func ddlFenceThere(ctx context.Context, q Querier) (there bool, err error) {
	err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = ANY ($1))`, ddlFences[:]).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("look for the event triggers: %w", err)
	}
	return there, nil
}
