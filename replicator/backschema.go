package replicator

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The way back carries rows, not changes of the schema. Where event triggers are permitted at the shards, commands that
// change replicated tables are refused there while it is open; where they are not, a change is noticed (watchSchema).

// refuseDDL makes the event triggers. Indexes, views, functions, temporary tables and what belongs to extensions are let
// through: they do not change what rows are like. So is whoever has the fence's pass, and the transaction that moves the gate:
// the fence's own triggers follow in it. A name would not do: anybody can take one.
const refuseDDL = `
CREATE OR REPLACE FUNCTION rehome.back_refuse() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	what text;
BEGIN
	IF EXISTS (SELECT FROM rehome.gate g WHERE g.pass_hash = sha256(convert_to(coalesce(current_setting('rehome.pass', true), ''), 'UTF8'))
			OR g.xmin = pg_current_xact_id_if_assigned()::xid) THEN
		RETURN;
	END IF;
	IF tg_event = 'sql_drop' THEN
		SELECT d.object_identity INTO what FROM pg_event_trigger_dropped_objects() d
		WHERE NOT d.is_temporary AND coalesce(d.schema_name, '') NOT IN ('rehome', 'pg_temp', 'pg_toast')
			AND d.object_type IN ('table', 'table column', 'sequence') LIMIT 1;
	ELSE
		SELECT d.object_identity INTO what FROM pg_event_trigger_ddl_commands() d LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
		WHERE NOT d.in_extension AND coalesce(d.schema_name, '') NOT IN ('rehome', 'pg_temp')
			AND (c.relkind IN ('r', 'p') AND c.relpersistence <> 't' OR d.command_tag IN ('ALTER TYPE', 'ALTER DOMAIN', 'ALTER SCHEMA')) LIMIT 1;
	END IF;
	IF what IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'RH003', MESSAGE = format('%s of %s is refused while the way back to the former source is open', tg_tag, what),
			DETAIL = 'The way back carries rows, not changes of the schema.', HINT = 'rehome complete closes the way back; then the schema can be changed.';
	END IF;
END $f$;
REVOKE ALL ON FUNCTION rehome.back_refuse() FROM PUBLIC;
DROP EVENT TRIGGER IF EXISTS rehome_back_end;
DROP EVENT TRIGGER IF EXISTS rehome_back_drop;
CREATE EVENT TRIGGER rehome_back_end ON ddl_command_end EXECUTE FUNCTION rehome.back_refuse();
CREATE EVENT TRIGGER rehome_back_drop ON sql_drop EXECUTE FUNCTION rehome.back_refuse();
ALTER EVENT TRIGGER rehome_back_end ENABLE ALWAYS;
ALTER EVENT TRIGGER rehome_back_drop ENABLE ALWAYS`

const allowDDL = `
DROP EVENT TRIGGER IF EXISTS rehome_back_end;
DROP EVENT TRIGGER IF EXISTS rehome_back_drop;
DO $do$ BEGIN IF to_regnamespace('rehome') IS NOT NULL THEN DROP FUNCTION IF EXISTS rehome.back_refuse(); END IF; END $do$`

// schemaOf is a digest of what the rows of a database are like: tables, their columns and identities, and enumerations.
const schemaOf = `
SELECT md5(coalesce((SELECT string_agg(concat_ws(' ', n.nspname, c.relname, c.relkind, c.relreplident, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod)), E'\n' ORDER BY n.nspname, c.relname, a.attnum)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')), '')
	|| coalesce((SELECT string_agg(concat_ws(' ', t.typnamespace::regnamespace, t.typname, e.enumlabel), E'\n' ORDER BY t.typnamespace::regnamespace::text, t.typname, e.enumsortorder)
	FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid), ''))`

func schemaDigest(ctx context.Context, c *pgx.Conn) (digest string, err error) {
	if err = c.QueryRow(ctx, schemaOf).Scan(&digest); err != nil {
		return "", fmt.Errorf("read the schema: %w", err)
	}
	return digest, nil
}

// watchSchema compares the shard's schema with what it was, until the context ends. It also tells of a way back that has been
// away for long: an end that cannot be reached is tried again without a problem.
func (b *Back) watchSchema(ctx context.Context, s *backSide) {
	for {
		if err := b.lookAtSchema(ctx, s); err != nil && ctx.Err() == nil {
			b.log.Warn("way back: look at the shard's schema", "shard", s.shard.Name, "error", err)
		}
		if away, _ := s.look(time.Now(), s.engine.Progress()); away > backSteady && !s.isBroken() {
			s.journal.alarm(ctx, problem{reason: "the way back from shard " + s.shard.Name + " does not stream: one of its ends cannot be reached", remedy: "see replication-progress for what it meets"})
		}
		if wait(ctx, backSchemaEvery) != nil {
			return
		}
	}
}

func (b *Back) lookAtSchema(ctx context.Context, s *backSide) error {
	ctx, cancel := context.WithTimeout(ctx, watchPatience)
	defer cancel()
	c, err := s.engine.src.conn(ctx, "watch")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	now, err := schemaDigest(ctx, c)
	if err != nil {
		return err
	}
	p := problem{}
	s.mu.Lock()
	if now != s.schema {
		p = problem{
			reason: "the schema at shard " + s.shard.Name + " was changed since the way back was made: what it carries may not fit, and rows of new tables are not carried",
			remedy: "take the change back at the shards, or give the way back up: rehome complete",
		}
	}
	s.drift = p
	s.mu.Unlock()
	if p.reason != "" {
		s.journal.alarm(ctx, p)
	}
	return nil
}
