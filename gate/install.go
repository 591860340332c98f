package gate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// installLock serialises installations in one database (a transaction-level advisory lock).
const installLock = 0x7265686f6d65 // "rehome"

// Roles of a gate row: where it stands. They choose the fence's words.
const (
	roleSource = "source"
	roleShard  = "shard"
)

const createGate = `
CREATE TABLE IF NOT EXISTS rehome.gate (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch       bigint NOT NULL,
    side        text NOT NULL CHECK (side IN ('source', 'target', 'closed')),
    attempt     text NOT NULL DEFAULT '',
    new_url     text NOT NULL DEFAULT '',
    pass_hash   bytea NOT NULL,
    role        text NOT NULL CHECK (role IN ('source', 'shard')),
    made_schema boolean NOT NULL DEFAULT false,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
)`

// createFence: the trigger function. It refuses unless the session's pass matches; whether a database is open is said
// by the triggers being there and enabled, not here, so that a transaction with an old snapshot is refused too (it reads
// no row, or an old one, and a comparison with NULL is not true). It serves statement and row triggers.
//
// It runs as its owner, before each statement of every session, that of the replication too. So that no other's objects can
// take part, every type, function and operator is named with its schema: to set a search_path for the function would be as safe,
// but costs more than all the rest of it. What is only said in a refusal is read then. One thing is found by the caller's
// search_path even so: convert_to, in a database that is not UTF8, takes its default conversion from there. That is harmless:
// whoever made a conversion of their own would need a preimage of the hash for it to answer with.
const createFence = `
CREATE OR REPLACE FUNCTION rehome.fence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $fence$
DECLARE
    g pg_catalog.record;
BEGIN
    PERFORM FROM rehome.gate WHERE pass_hash OPERATOR(pg_catalog.=)
        pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.current_setting('rehome.pass', true), 'UTF8'));
    IF FOUND THEN
        IF TG_LEVEL OPERATOR(pg_catalog.=) 'STATEMENT' THEN RETURN NULL; END IF;
        IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN RETURN OLD; END IF;
        RETURN NEW;
    END IF;
    SELECT role, new_url INTO g FROM rehome.gate;
    IF g.role OPERATOR(pg_catalog.=) 'shard' THEN
        RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'database is not open yet',
            DETAIL = pg_catalog.format('%s on %I.%I was refused.', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME),
            HINT = 'Writes are accepted where the data comes from, until the cutover.';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'database has moved',
        DETAIL = pg_catalog.format('%s on %I.%I was refused.', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME),
        HINT = CASE WHEN coalesce(g.new_url, '') OPERATOR(pg_catalog.=) '' THEN 'It accepts writes elsewhere now; connect again to learn where.'
                    ELSE pg_catalog.concat('It accepts writes at ', g.new_url) END;
END
$fence$`

// Text keys, no sequences: the installation leaves as few objects as can be.
const createMarker = `
CREATE TABLE IF NOT EXISTS rehome.marker (
    id      text PRIMARY KEY,
    attempt text NOT NULL,
    kind    text NOT NULL,
    at      timestamptz NOT NULL
)`

const createHeartbeat = `
CREATE TABLE IF NOT EXISTS rehome.heartbeat (
    replication text PRIMARY KEY,
    beat        bigint NOT NULL,
    at          timestamptz NOT NULL
)`

// revokeAll takes back what default privileges may have granted to others, PUBLIC included, on our objects only.
const revokeAll = `
DO $revoke$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT DISTINCT c.relname, a.grantee FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
        WHERE c.relnamespace = 'rehome'::regnamespace AND c.relname IN ('gate', 'marker', 'heartbeat', 'truncated') AND c.relkind = 'r'
          AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON TABLE rehome.%I FROM %s', r.relname, CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
    END LOOP;
    FOR r IN
        SELECT DISTINCT a.grantee FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
        WHERE p.oid = 'rehome.fence()'::regprocedure AND a.grantee <> p.proowner
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION rehome.fence() FROM %s', CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
    END LOOP;
    FOR r IN
        SELECT DISTINCT a.grantee FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
        WHERE n.nspname = 'rehome' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
    LOOP
        EXECUTE format('REVOKE CREATE ON SCHEMA rehome FROM %s', CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
    END LOOP;
END
$revoke$`

// foreignObjects counts what somebody else owns: whoever owns the schema or a table in it could forge markers.
const foreignObjects = `
SELECT (SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = 'rehome' AND NOT pg_catalog.pg_has_role(nspowner, 'USAGE'))
     + (SELECT count(*) FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('rehome')
          AND c.relname IN ('gate', 'marker', 'heartbeat', 'truncated') AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'))`

// InstallSource makes schema rehome with gate, marker, heartbeat and the fence function at a source. It may be run
// again; a gate that is there keeps its epoch and side, the pass is brought up to date. ErrForeignSchema if somebody else
// owns the schema. Until the fence nothing in the tenant's own tables is touched.
func InstallSource(ctx context.Context, conn *pgx.Conn, pass tenant.Secret) error {
	if err := install(ctx, conn, pass, roleSource); err != nil {
		return fmt.Errorf("install the gate at the source: %w", err)
	}
	return nil
}

// InstallShard makes gate and fence function in a shard's database: epoch 0, closed. FenceShardTables closes its tables.
func InstallShard(ctx context.Context, conn *pgx.Conn, pass tenant.Secret) error {
	if err := install(ctx, conn, pass, roleShard); err != nil {
		return fmt.Errorf("install the gate at the shard: %w", err)
	}
	return nil
}

func install(ctx context.Context, conn *pgx.Conn, pass tenant.Secret, role string) error {
	return inTx(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(installLock)); err != nil {
			return fmt.Errorf("wait for another installation: %w", err)
		}
		var foreign int
		var there bool
		if err := tx.QueryRow(ctx, foreignObjects).Scan(&foreign); err != nil {
			return fmt.Errorf("look for schema rehome: %w", err)
		}
		if foreign > 0 {
			return ErrForeignSchema
		}
		if err := tx.QueryRow(ctx, `SELECT to_regnamespace('rehome') IS NOT NULL`).Scan(&there); err != nil {
			return fmt.Errorf("look for schema rehome: %w", err)
		}
		statements := []string{createGate, createFence}
		if !there {
			statements = append([]string{`CREATE SCHEMA rehome`}, statements...)
		}
		if role == roleSource {
			statements = append(statements, createMarker, createHeartbeat, createTruncated, createNoteTruncation, revokeNoteTruncation, createDDLFence, revokeDDLFence)
		}
		for _, sql := range append(statements, revokeAll) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		epoch, side := int64(1), SideSource
		if role == roleShard {
			epoch, side = 0, SideClosed
		}
		if _, err := tx.Exec(ctx, `INSERT INTO rehome.gate (epoch, side, pass_hash, role, made_schema) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (only_row) DO NOTHING`, epoch, string(side), PassHash(pass), role, !there); err != nil {
			return fmt.Errorf("insert the gate: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome.gate SET pass_hash = $1 WHERE pass_hash <> $1`, PassHash(pass)); err != nil {
			return fmt.Errorf("set the gate's pass: %w", err)
		}
		return nil
	})
}
