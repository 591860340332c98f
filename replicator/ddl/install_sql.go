package ddl

// createTables: the functions only insert into rehome.ddl: reading it there could fail a serializable transaction of the
// owner's. The engine removes old rows.
const createTables = `
DO $do$
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('rehome') AND c.relname IN ('ddl', 'ddl_scope')
		AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')) THEN
		RAISE EXCEPTION 'tables of the schema rehome belong to another role' USING ERRCODE = '42501';
	END IF;
END $do$;
CREATE TABLE IF NOT EXISTS rehome.ddl (
	id    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	kind  text NOT NULL,
	tag   text NOT NULL,
	query text NOT NULL,
	state jsonb NOT NULL,
	at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS rehome.ddl_scope (
	publication text PRIMARY KEY,
	include     text[] NOT NULL,
	exclude     text[] NOT NULL,
	truncations text NOT NULL -- name of the trigger that notes a TRUNCATE of a partition
)`

// sqlTable describes a table. Functions that print definitions qualify names by the search_path and print values by other
// settings; all of them are pinned to those of the engine's sessions.
const sqlTable = `
CREATE OR REPLACE FUNCTION rehome.ddl_table(rel oid) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
	SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET timezone = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex' SET lc_monetary = 'C' AS $f$
SELECT jsonb_build_object(
	'oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind, 'persistence', c.relpersistence,
	'partition', c.relispartition, 'root', coalesce(pg_partition_root(c.oid)::oid, c.oid)::bigint,
	'parents', coalesce((SELECT jsonb_agg(i.inhparent::bigint ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = c.oid), '[]'),
	'key', coalesce(pg_get_partkeydef(c.oid), ''), 'bound', coalesce(pg_get_expr(c.relpartbound, c.oid), ''), 'replident', c.relreplident,
	'published', coalesce((SELECT jsonb_agg(p.pubname ORDER BY p.pubname) FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid WHERE pr.prrelid = c.oid), '[]'),
	'columns', coalesce((
		SELECT jsonb_agg(jsonb_build_object(
			'num', a.attnum, 'name', a.attname, 'type_oid', a.atttypid::bigint, 'type', format_type(a.atttypid, -1), 'type_mod', format_type(a.atttypid, a.atttypmod),
			'mod', a.atttypmod, 'base', b.oid::bigint, 'base_type', CASE WHEN b.oid <> a.atttypid THEN format_type(b.oid, -1) ELSE '' END, 'category', b.typcategory, 'generated', a.attgenerated, 'identity', a.attidentity,
			'not_null', a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND k.conkey[1] = a.attnum AND NOT k.convalidated),
			'default', coalesce(pg_get_expr(d.adbin, d.adrelid), ''), 'inherited', a.attinhcount > 0 AND NOT a.attislocal,
			'missing', CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1]
				WHEN c.relkind = 'p' THEN (SELECT (l.attmissingval::text::text[])[1] FROM pg_partition_tree(c.oid) t JOIN pg_attribute l ON l.attrelid = t.relid
					WHERE l.attname = a.attname AND l.atthasmissing LIMIT 1) END,
			'collation', coalesce((SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace
				WHERE co.oid = a.attcollation AND a.attcollation <> ty.typcollation), ''),
			'equal', coalesce((SELECT format('OPERATOR(%I.%s)', xn.nspname, o.oprname)
				FROM pg_opclass oc JOIN pg_am m ON m.oid = oc.opcmethod
				JOIN pg_amop x ON x.amopfamily = oc.opcfamily AND x.amoplefttype = oc.opcintype AND x.amoprighttype = oc.opcintype AND x.amopstrategy = 3
				JOIN pg_operator o ON o.oid = x.amopopr JOIN pg_namespace xn ON xn.oid = o.oprnamespace
				WHERE m.amname = 'btree' AND oc.opcdefault AND oc.opcintype = b.oid AND xn.nspname <> 'pg_catalog' LIMIT 1), '')
		) ORDER BY a.attnum)
		FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid
		CROSS JOIN LATERAL (WITH RECURSIVE down AS (
			SELECT t.oid, t.typbasetype, t.typcategory FROM pg_type t WHERE t.oid = a.atttypid
			UNION ALL SELECT t.oid, t.typbasetype, t.typcategory FROM down JOIN pg_type t ON t.oid = down.typbasetype)
			SELECT down.oid, down.typcategory FROM down WHERE down.typbasetype = 0) b
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
	'constraints', coalesce((
		SELECT jsonb_agg(jsonb_build_object('oid', k.oid::bigint, 'name', k.conname, 'type', k.contype, 'def', pg_get_constraintdef(k.oid), 'validated', k.convalidated,
			'deferrable', k.condeferrable, 'deferred', k.condeferred, 'points', k.confrelid::bigint,
			'columns', coalesce((SELECT jsonb_agg(a.attname ORDER BY u.ord) FROM unnest(k.conkey) WITH ORDINALITY u(num, ord)
				JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num), '[]')) ORDER BY k.oid)
		FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x', 'f', 'c') AND k.conparentid = 0 AND k.conislocal), '[]'),
	'indexes', coalesce((
		SELECT jsonb_agg(jsonb_build_object('oid', i.indexrelid::bigint, 'name', ic.relname, 'def', pg_get_indexdef(i.indexrelid), 'unique', i.indisunique, 'valid', i.indisvalid,
			'own', NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')),
			'identity', i.indisreplident, 'primary', i.indisprimary, 'immediate', i.indimmediate,
			'parent', coalesce((SELECT pi.inhparent FROM pg_inherits pi WHERE pi.inhrelid = i.indexrelid), 0)::bigint,
			'columns', coalesce((SELECT jsonb_agg(a.attname ORDER BY u.ord) FROM unnest(i.indkey::int2[]) WITH ORDINALITY u(num, ord)
				JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.num WHERE u.ord <= i.indnkeyatts), '[]')) ORDER BY i.indexrelid)
		FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid), '[]'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = rel
$f$`

const sqlEnum = `
CREATE OR REPLACE FUNCTION rehome.ddl_enum(typ oid) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $f$
SELECT jsonb_build_object('oid', t.oid::bigint, 'schema', n.nspname, 'name', t.typname,
	'labels', coalesce((SELECT jsonb_agg(jsonb_build_object('oid', e.oid::bigint, 'label', e.enumlabel) ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid), '[]'))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = typ AND t.typtype = 'e'
$f$`

const sqlSequence = `
CREATE OR REPLACE FUNCTION rehome.ddl_sequence(seq oid) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $f$
SELECT jsonb_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'type', format_type(s.seqtypid, -1), 'increment', s.seqincrement,
	'min', s.seqmin, 'max', s.seqmax, 'start', s.seqstart, 'cache', s.seqcache, 'cycle', s.seqcycle,
	'owner', coalesce(d.refobjid, 0)::bigint, 'column', coalesce(d.refobjsubid, 0), 'internal', coalesce(d.deptype = 'i', false))
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
WHERE c.oid = seq AND c.relpersistence = 'p'
$f$`

// sqlWrite completes the list of tables that a command touched, publishes those that are new, and writes the row.
//
// A command on a parent reaches its children, which are tables of their own. In a partition tree those count that this
// transaction touched: their rows in the catalogue carry its number or, within a savepoint, a later one. age() is then not
// positive.
const sqlWrite = `
CREATE OR REPLACE FUNCTION rehome.ddl_write(tag text, tabs oid[], enums oid[], seqs oid[], dropped jsonb, others jsonb, context text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	all_tabs oid[];
	r        record;
	p        record;
	st       jsonb;
	states   jsonb := '[]';
	nothing  boolean;
	clean    boolean;
	failed   text;
	leaves   oid[] := '{}';
BEGIN
	WITH RECURSIVE heirs(oid) AS (
		SELECT unnest(tabs) UNION SELECT i.inhrelid FROM heirs JOIN pg_inherits i ON i.inhparent = heirs.oid JOIN pg_class c ON c.oid = i.inhrelid WHERE NOT c.relispartition
	), touched(oid) AS (
		SELECT heirs.oid FROM heirs
		UNION SELECT t.relid::oid FROM heirs h JOIN pg_class c ON c.oid = h.oid AND c.relkind = 'p', pg_partition_tree(h.oid) t
			JOIN pg_class tc ON tc.oid = t.relid LEFT JOIN pg_inherits i ON i.inhrelid = t.relid WHERE age(tc.xmin) <= 0 OR age(i.xmin) <= 0
		UNION SELECT c.oid FROM pg_class c WHERE tag = 'ALTER TABLE' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND age(c.xmin) <= 0
			AND EXISTS (SELECT FROM heirs h JOIN pg_class hc ON hc.oid = h.oid WHERE hc.relkind = 'p')
		-- The foreign keys that point to a table name it and its columns.
		UNION SELECT k.conrelid FROM heirs h JOIN pg_constraint k ON k.confrelid = h.oid AND k.contype = 'f' AND k.conparentid = 0
			WHERE tag LIKE 'ALTER %'
	)
	SELECT array_agg(c.oid ORDER BY c.relispartition, c.oid) INTO all_tabs
	FROM touched t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');

	FOR r IN SELECT c.oid, n.nspname, c.relname, c.relkind, c.relispartition, c.relpersistence, age(c.xmin) <= 0 AS touched,
			c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
				AND (c.relreplident = 'd' AND i.indisprimary AND i.indimmediate OR c.relreplident = 'i' AND i.indisreplident)) AS keyed
		FROM unnest(all_tabs) u(oid) JOIN pg_class c ON c.oid = u.oid JOIN pg_namespace n ON n.oid = c.relnamespace
	LOOP
		nothing := NULL; failed := '';
		IF r.touched AND tag NOT LIKE '%INDEX' THEN
			BEGIN
				EXECUTE format('SELECT NOT EXISTS (SELECT FROM %s %I.%I)', CASE r.relkind WHEN 'p' THEN '' ELSE 'ONLY' END, r.nspname, r.relname) INTO nothing;
			EXCEPTION WHEN OTHERS THEN failed := SQLERRM;
			END;
			IF r.relispartition THEN
				leaves := leaves || r.oid;
			END IF;
		END IF;
		-- Without an identity a published table would refuse its owner's UPDATE and DELETE.
		IF r.relpersistence = 'p' AND NOT r.relispartition AND r.keyed THEN
			FOR p IN SELECT s.publication, pub.oid FROM rehome.ddl_scope s JOIN pg_publication pub ON pub.pubname = s.publication
				WHERE (s.include = '{}' OR r.nspname || '.' || r.relname ~ ANY (s.include)) AND NOT (r.nspname || '.' || r.relname ~ ANY (s.exclude))
					AND NOT EXISTS (SELECT FROM pg_publication_rel pr WHERE pr.prpubid = pub.oid AND pr.prrelid = r.oid)
			LOOP
				BEGIN
					EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s %I.%I', p.publication, CASE r.relkind WHEN 'p' THEN '' ELSE 'ONLY' END, r.nspname, r.relname);
					IF r.relkind = 'p' THEN
						leaves := leaves || r.oid;
					END IF;
				EXCEPTION WHEN OTHERS THEN failed := SQLERRM;
				END;
			END LOOP;
		END IF;
		st := rehome.ddl_table(r.oid);
		states := states || jsonb_build_array(st || jsonb_build_object('empty', coalesce(nothing, false), 'failed', failed));
	END LOOP;

	PERFORM rehome.ddl_leaves(leaves, tag);
	IF states = '[]' AND coalesce(cardinality(enums), 0) = 0 AND coalesce(cardinality(seqs), 0) = 0 AND dropped = '[]' AND others = '[]' THEN
		RETURN;
	END IF;
	-- Whether a type was changed by the cast that belongs to it, without USING: the text of the command is in the query or, for
	-- one that a function runs, in its context. Functions in SQL show no text.
	clean := NOT (current_query() || ' ' || context) ~* '\yusing\y' AND context !~ '(^|\n)SQL function';
	INSERT INTO rehome.ddl (kind, tag, query, state) VALUES ('state', tag, left(current_query(), 4000), jsonb_build_object(
		'tables', states, 'plain', clean, 'dropped', dropped, 'others', others,
		'enums', coalesce((SELECT jsonb_agg(rehome.ddl_enum(e)) FROM unnest(enums) e WHERE rehome.ddl_enum(e) IS NOT NULL), '[]'),
		'sequences', coalesce((SELECT jsonb_agg(rehome.ddl_sequence(s)) FROM unnest(seqs) s WHERE rehome.ddl_sequence(s) IS NOT NULL), '[]'),
		'settings', (SELECT jsonb_object_agg(name, current_setting(name)) FROM unnest(ARRAY['TimeZone', 'DateStyle', 'IntervalStyle', 'extra_float_digits', 'bytea_output', 'lc_monetary']) name)));
END $f$`

// sqlLeaves gives partitions of published trees, those below the given ones too, the trigger that notes a TRUNCATE of them
// alone (catalog.PlanTruncations): the stream does not tell of it. The command that made or attached them has them locked.
// What the statements here do is no change of the owner's: rehome.ddl_end knows them by this function's name.
const sqlLeaves = `
CREATE OR REPLACE FUNCTION rehome.ddl_leaves(rels oid[], tag text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT DISTINCT c.oid, n.nspname, c.relname, s.truncations AS trig
		FROM unnest(rels) u(oid) CROSS JOIN pg_partition_tree(u.oid) t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_publication_rel pr ON pr.prrelid = pg_partition_root(c.oid) JOIN pg_publication p ON p.oid = pr.prpubid JOIN rehome.ddl_scope s ON s.publication = p.pubname
		WHERE c.relispartition AND c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = s.truncations)
	LOOP
		BEGIN
			EXECUTE format('CREATE TRIGGER %I AFTER TRUNCATE ON %I.%I FOR EACH STATEMENT EXECUTE FUNCTION rehome.note_truncation()', r.trig, r.nspname, r.relname);
			EXECUTE format('ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER %I', r.nspname, r.relname, r.trig);
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO rehome.ddl (kind, tag, query, state) VALUES ('unnoted', tag, left(current_query(), 4000),
				jsonb_build_object('schema', r.nspname, 'name', r.relname, 'trigger', r.trig, 'error', SQLERRM));
		END;
	END LOOP;
END $f$`

// unknown is what every function does with an error of its own.
const unknown = `
EXCEPTION WHEN OTHERS THEN
	INSERT INTO rehome.ddl (kind, tag, query, state) VALUES ('unknown', tg_tag, left(current_query(), 4000), jsonb_build_object('error', SQLERRM));`

// ours: what the gate and the engine do at the source is no change of the owner's.
const ours = `
	IF current_setting('application_name') ~ '^rehome( gate|-setup-)' OR tg_tag IN ('COMMENT', 'GRANT', 'REVOKE', 'ALTER DEFAULT PRIVILEGES', 'SECURITY LABEL',
		'REFRESH MATERIALIZED VIEW', 'ALTER PUBLICATION', 'CREATE PUBLICATION', 'DROP PUBLICATION', 'IMPORT FOREIGN SCHEMA') THEN
		RETURN;
	END IF;`

const sqlCommandEnd = `
CREATE OR REPLACE FUNCTION rehome.ddl_end() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $f$
DECLARE
	r      record;
	tabs   oid[] := '{}';
	enums  oid[] := '{}';
	seqs   oid[] := '{}';
	others jsonb := '[]';
	ctx    text;
	kind   "char";
BEGIN` + ours + `
	GET DIAGNOSTICS ctx = PG_CONTEXT;
	IF ctx LIKE '%function rehome.ddl_leaves(%' THEN
		RETURN;
	END IF;
	FOR r IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE NOT in_extension AND coalesce(schema_name, '') NOT IN ('pg_temp', 'rehome') LOOP
		IF r.classid = 'pg_class'::regclass THEN
			SELECT c.relkind INTO kind FROM pg_class c WHERE c.oid = r.objid;
			CASE
				WHEN kind IN ('r', 'p') THEN tabs := tabs || r.objid;
				WHEN kind IN ('i', 'I') THEN tabs := tabs || (SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = r.objid);
				WHEN kind = 'S' THEN
					seqs := seqs || r.objid;
				ELSE others := others || jsonb_build_array(jsonb_build_object('tag', r.command_tag, 'type', r.object_type, 'name', r.object_identity));
			END CASE;
		ELSIF r.classid = 'pg_type'::regclass THEN
			tabs := tabs || ARRAY(SELECT DISTINCT a.attrelid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = r.objid
				WHERE a.atttypid IN (t.oid, t.typarray) AND c.relkind IN ('r', 'p') AND r.command_tag IN ('ALTER TYPE', 'ALTER DOMAIN') AND NOT a.attisdropped);
			IF EXISTS (SELECT FROM pg_type t WHERE t.oid = r.objid AND t.typtype = 'e') THEN
				enums := enums || r.objid;
			ELSE
				others := others || jsonb_build_array(jsonb_build_object('tag', r.command_tag, 'type', r.object_type, 'name', r.object_identity));
			END IF;
		ELSIF r.classid = 'pg_namespace'::regclass THEN
			IF r.command_tag = 'ALTER SCHEMA' THEN
				tabs := tabs || ARRAY(SELECT c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p') AND (c.relnamespace = r.objid OR EXISTS (
					SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND NOT a.attisdropped AND t.typnamespace = r.objid)));
				seqs := seqs || ARRAY(SELECT c.oid FROM pg_class c WHERE c.relnamespace = r.objid AND c.relkind = 'S');
				enums := enums || ARRAY(SELECT t.oid FROM pg_type t WHERE t.typnamespace = r.objid AND t.typtype = 'e');
			END IF;
		ELSIF r.object_identity NOT LIKE 'rehome\_%' THEN
			others := others || jsonb_build_array(jsonb_build_object('tag', r.command_tag, 'type', r.object_type, 'name', r.object_identity));
		END IF;
	END LOOP;
	-- Sequences that belong to the tables come with them: those of identity columns are made without a command of their own.
	seqs := ARRAY(SELECT DISTINCT s FROM unnest(seqs || ARRAY(SELECT d.objid FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (tabs) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i'))) s);
	PERFORM rehome.ddl_write(tg_tag, tabs, enums, seqs, '[]', others, coalesce(ctx, ''));` + unknown + `
END $f$`

// sqlDrop lists what is dropped. A table that a DROP of something else took columns from is described here; the end of an
// ALTER TABLE describes its table itself.
const sqlDrop = `
CREATE OR REPLACE FUNCTION rehome.ddl_drop() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $f$
DECLARE
	tabs    oid[];
	dropped jsonb;
BEGIN` + ours + `
	SELECT coalesce(array_agg(DISTINCT d.objid) FILTER (WHERE d.classid = 'pg_class'::regclass AND d.objsubid > 0 AND tg_tag LIKE 'DROP %'), '{}'),
		coalesce(jsonb_agg(jsonb_build_object('class', d.classid::regclass::text, 'oid', d.objid::bigint, 'type', d.object_type,
			'schema', coalesce(d.schema_name, ''), 'name', coalesce(d.object_name, ''), 'identity', d.object_identity, 'original', d.original)) FILTER (WHERE d.objsubid = 0), '[]')
	INTO tabs, dropped
	FROM pg_event_trigger_dropped_objects() d
	WHERE NOT d.is_temporary AND coalesce(d.schema_name, '') NOT IN ('rehome', 'pg_toast', 'pg_temp') AND d.object_type NOT IN ('default value', 'toast table');
	PERFORM rehome.ddl_write(tg_tag, tabs, '{}', '{}', dropped, '[]', '');` + unknown + `
END $f$`

// sqlRewrite notes that a table is about to be rewritten, before the row that describes its new state.
const sqlRewrite = `
CREATE OR REPLACE FUNCTION rehome.ddl_rewrite() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $f$
BEGIN` + ours + `
	INSERT INTO rehome.ddl (kind, tag, query, state) VALUES ('rewrite', tg_tag, left(current_query(), 4000),
		jsonb_build_object('oid', pg_event_trigger_table_rewrite_oid()::bigint, 'reason', pg_event_trigger_table_rewrite_reason()));` + unknown + `
END $f$`

// createTriggers enables them ALWAYS, so that session_replication_role does not get around them.
const createTriggers = `
DROP EVENT TRIGGER IF EXISTS rehome_ddl_end;
DROP EVENT TRIGGER IF EXISTS rehome_ddl_drop;
DROP EVENT TRIGGER IF EXISTS rehome_ddl_rewrite;
CREATE EVENT TRIGGER rehome_ddl_end ON ddl_command_end EXECUTE FUNCTION rehome.ddl_end();
CREATE EVENT TRIGGER rehome_ddl_drop ON sql_drop EXECUTE FUNCTION rehome.ddl_drop();
CREATE EVENT TRIGGER rehome_ddl_rewrite ON table_rewrite EXECUTE FUNCTION rehome.ddl_rewrite();
ALTER EVENT TRIGGER rehome_ddl_end ENABLE ALWAYS;
ALTER EVENT TRIGGER rehome_ddl_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER rehome_ddl_rewrite ENABLE ALWAYS`

// revoke takes back what default privileges may have granted to others, PUBLIC included.
const revoke = `
DO $do$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT DISTINCT c.relname, a.grantee FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
		WHERE c.relnamespace = 'rehome'::regnamespace AND c.relname IN ('ddl', 'ddl_scope') AND c.relkind = 'r' AND a.grantee <> c.relowner
	LOOP
		EXECUTE format('REVOKE ALL ON TABLE rehome.%I FROM %s', r.relname, CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
	END LOOP;
	FOR r IN SELECT DISTINCT p.oid::regprocedure AS f, a.grantee FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
		WHERE p.pronamespace = 'rehome'::regnamespace AND p.proname LIKE 'ddl\_%' AND a.grantee <> p.proowner
	LOOP
		EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', r.f, CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
	END LOOP;
END $do$`
