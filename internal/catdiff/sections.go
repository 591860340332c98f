package catdiff

// section is a part of the catalogue: a statement whose single column is one line each.
type section struct{ name, sql string }

// ours leaves the system's own schemas out. It is said of a namespace n.
const ours = `n.nspname !~ '^pg_(catalog$|toast|temp_)' AND n.nspname <> 'information_schema'`

// sections list what a snapshot holds. Columns that only later versions have are read through to_jsonb, so that every
// supported version answers the same statements.
func sections() []section {
	return []section{
		{"object", `SELECT DISTINCT (i.type, i.identity) FROM (
				SELECT classid, objid, objsubid FROM pg_depend UNION SELECT refclassid, refobjid, refobjsubid FROM pg_depend
				UNION SELECT classid, objid, objsubid FROM pg_shdepend WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) d,
			pg_identify_object(d.classid, d.objid, d.objsubid) i
			WHERE d.objid >= 16384 AND i.identity !~ '^pg_(toast|temp)|^"?_?pg_' AND i.identity !~ 'pg_toast'`},
		{"schema", `SELECT jsonb_build_array(nspname, nspowner::regrole, nspacl) FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp_)'`},
		{"relation", `SELECT jsonb_build_array(c.oid::regclass, relkind, relpersistence, relowner::regrole, relacl, reloptions, relreplident, relrowsecurity, relforcerowsecurity,
				relispartition, pg_get_expr(relpartbound, c.oid), CASE relkind WHEN 'p' THEN pg_get_partkeydef(c.oid) END, (SELECT spcname FROM pg_tablespace t WHERE t.oid = reltablespace),
				(SELECT amname FROM pg_am a WHERE a.oid = relam), CASE WHEN reloftype <> 0 THEN reloftype::regtype END,
				CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END, (SELECT t.reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid),
				(SELECT jsonb_agg(inhparent::regclass ORDER BY inhseqno) FROM pg_inherits WHERE inhrelid = c.oid))
			FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE ` + ours},
		{"column", `SELECT jsonb_build_array(a.attrelid::regclass, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attisdropped, attislocal, attinhcount, attidentity, attgenerated,
				attstorage, to_jsonb(a)->>'attcompression', coalesce(nullif(to_jsonb(a)->>'attstattarget', '-1'), 'default'), attacl, attoptions, attfdwoptions,
				CASE WHEN attcollation <> 0 THEN attcollation::regcollation END, atthasmissing, pg_get_expr(d.adbin, d.adrelid))
			FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			WHERE attnum > 0 AND ` + ours},
		{"constraint", `SELECT jsonb_build_array(conrelid::regclass, contypid::regtype, conname, contype, pg_get_constraintdef(k.oid), convalidated, condeferrable, condeferred, conislocal, coninhcount, connoinherit)
			FROM pg_constraint k JOIN pg_namespace n ON n.oid = connamespace WHERE ` + ours},
		{"index", `SELECT jsonb_build_array(indrelid::regclass, pg_get_indexdef(indexrelid), indisvalid, indisready, indislive, indisclustered, indisreplident, indisprimary, indimmediate)
			FROM pg_index i JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE ` + ours},
		{"trigger", `SELECT jsonb_build_array(tgrelid::regclass, tgname, tgenabled, tgisinternal, CASE WHEN tgisinternal THEN tgfoid::regproc::text || ' ' || tgtype ELSE pg_get_triggerdef(t.oid) END)
			FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE NOT tgisinternal AND ` + ours},
		// Triggers of foreign keys bear oids in their names; how many of which kind is compared.
		{"foreign-key-trigger", `SELECT jsonb_build_array(tgrelid::regclass, tgenabled, tgfoid::regproc, tgtype) FROM pg_trigger WHERE tgisinternal`},
		{"rule", `SELECT jsonb_build_array(ev_class::regclass, rulename, ev_enabled, pg_get_ruledef(r.oid)) FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class JOIN pg_namespace n ON n.oid = relnamespace WHERE ` + ours},
		{"policy", `SELECT jsonb_build_array(polrelid::regclass, polname, polcmd, polpermissive, (SELECT jsonb_agg(r::regrole ORDER BY r::regrole::text) FROM unnest(polroles) r),
			pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) FROM pg_policy`},
		{"function", `SELECT jsonb_build_array(p.oid::regprocedure, proowner::regrole, proacl, proconfig, CASE prokind WHEN 'a' THEN prokind::text ELSE pg_get_functiondef(p.oid) END)
			FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE ` + ours},
		{"type", `SELECT jsonb_build_array(t.oid::regtype, typtype, typowner::regrole, typacl, typnotnull, typdefault, format_type(typbasetype, typtypmod),
				(SELECT jsonb_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid), (SELECT rngsubtype::regtype FROM pg_range WHERE rngtypid = t.oid))
			FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE ` + ours},
		{"sequence", `SELECT jsonb_build_array(seqrelid::regclass, seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle,
			(SELECT jsonb_agg(jsonb_build_array(deptype, refobjid::regclass, refobjsubid)) FROM pg_depend WHERE objid = seqrelid AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass)) FROM pg_sequence`},
		{SequenceValues, `SELECT jsonb_build_array(seqrelid::regclass, (xpath('//v/text()', query_to_xml('SELECT last_value || '' '' || is_called AS v FROM ' || seqrelid::regclass, false, true, '')))[1]::text) FROM pg_sequence`},
		{"statistics", `SELECT jsonb_build_array(s.stxrelid::regclass, pg_get_statisticsobjdef(s.oid), stxowner::regrole) FROM pg_statistic_ext s`},
		{"publication", `SELECT jsonb_build_array(to_jsonb(p) - 'oid' - 'pubowner', pubowner::regrole, (SELECT jsonb_agg(jsonb_build_array(prrelid::regclass, to_jsonb(r)->>'prattrs', to_jsonb(r)->>'prqual') ORDER BY prrelid::regclass::text)
			FROM pg_publication_rel r WHERE prpubid = p.oid)) FROM pg_publication p`},
		{"publication-table", `SELECT jsonb_build_array(pubname, schemaname, tablename) FROM pg_publication_tables`},
		{"subscription", `SELECT jsonb_build_array(subname, subowner::regrole, subenabled, subslotname, subpublications) FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`},
		{"event-trigger", `SELECT jsonb_build_array(evtname, evtevent, evtowner::regrole, evtfoid::regproc, evtenabled, evttags) FROM pg_event_trigger`},
		{"extension", `SELECT jsonb_build_array(extname, extowner::regrole, extnamespace::regnamespace, extversion, extcondition) FROM pg_extension`},
		{"default-privilege", `SELECT jsonb_build_array(defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl) FROM pg_default_acl`},
		{"foreign-server", `SELECT jsonb_build_array(srvname, srvowner::regrole, srvacl, srvoptions) FROM pg_foreign_server`},
		{"large-object", `SELECT jsonb_build_array(oid::bigint, lomowner::regrole, lomacl) FROM pg_largeobject_metadata`},
		{"comment", `SELECT jsonb_build_array((pg_identify_object(classoid, objoid, objsubid)).identity, description) FROM pg_description WHERE objoid >= 16384 OR classoid = 'pg_namespace'::regclass`},
		{"shared-comment", `SELECT jsonb_build_array((pg_identify_object(classoid, objoid, 0)).identity, description) FROM pg_shdescription WHERE classoid <> 'pg_database'::regclass OR objoid = (SELECT oid FROM pg_database WHERE datname = current_database())`},
		{"security-label", `SELECT jsonb_build_array(objtype, objname, provider, label) FROM pg_seclabels`},
		// What was granted on the system's own objects since initdb.
		{"system-privilege", `SELECT jsonb_build_array('relation', c.oid::regclass, relacl) FROM pg_class c LEFT JOIN pg_init_privs i ON i.objoid = c.oid AND i.classoid = 'pg_class'::regclass AND i.objsubid = 0
				WHERE c.oid < 16384 AND relacl IS DISTINCT FROM i.initprivs
			UNION ALL SELECT jsonb_build_array('function', p.oid::regprocedure, proacl) FROM pg_proc p LEFT JOIN pg_init_privs i ON i.objoid = p.oid AND i.classoid = 'pg_proc'::regclass
				WHERE p.oid < 16384 AND proacl IS DISTINCT FROM i.initprivs`},
		{"database", `SELECT jsonb_build_array(datdba::regrole, datacl, datconnlimit, datallowconn, datistemplate, pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database WHERE datname = current_database()`},
		{"setting", `SELECT jsonb_build_array(setdatabase <> 0, CASE WHEN setrole <> 0 THEN setrole::regrole END, setconfig) FROM pg_db_role_setting
			WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))`},
		{"role", `SELECT jsonb_build_array(rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil) FROM pg_roles`},
		{"membership", `SELECT jsonb_build_array(roleid::regrole, member::regrole, to_jsonb(m) - 'oid' - 'roleid' - 'member' - 'grantor') FROM pg_auth_members m`},
		{"tablespace", `SELECT jsonb_build_array(spcname, spcowner::regrole, spcacl, spcoptions) FROM pg_tablespace`},
		{"origin", `SELECT jsonb_build_array(roname) FROM pg_replication_origin`},
		{"slot", `SELECT jsonb_build_array(slot_name, plugin, slot_type, temporary) FROM pg_replication_slots WHERE database = current_database()`},
		{"session", `SELECT jsonb_build_array(application_name, usename, backend_type) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'rehome%'`},
		{"prepared-transaction", `SELECT jsonb_build_array(gid, owner) FROM pg_prepared_xacts WHERE database = current_database()`},
		{"advisory-lock", `SELECT jsonb_build_array(classid::bigint, objid::bigint, objsubid, mode) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`},
	}
}
