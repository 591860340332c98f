package preflight

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// oldestTarget is the oldest version that is tested as a shard (make matrix).
const oldestTarget = 130000

// needs reads at the source what the targets must have.
func (c *checker) needs(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql'`)
	if err != nil {
		return err
	}
	c.facts.extensions = map[string]string{}
	var name, version string
	if _, err = pgx.ForEachRow(rows, []any{&name, &version}, func() error { c.facts.extensions[name] = version; return nil }); err != nil {
		return err
	}
	oids, _ := members(c.cat)
	return tx.QueryRow(ctx, `
		SELECT ARRAY(SELECT DISTINCT r.rolname::text FROM pg_policy p CROSS JOIN unnest(p.polroles) x(oid) JOIN pg_roles r ON r.oid = x.oid WHERE p.polrelid = ANY ($1) ORDER BY 1),
		       ARRAY(SELECT DISTINCT l.collname::text FROM pg_attribute a JOIN pg_collation l ON l.oid = a.attcollation
		             WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND l.collnamespace = 'pg_catalog'::regnamespace
		               AND l.collname NOT IN ('default','C','POSIX') ORDER BY 1),
		       ARRAY(SELECT DISTINCT m.amname::text FROM pg_class c JOIN pg_am m ON m.oid = c.relam WHERE c.oid = ANY ($1) AND m.amname <> 'heap' ORDER BY 1),
		       ARRAY(SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid = ANY ($1) AND c.relrowsecurity AND c.relforcerowsecurity ORDER BY 1)`, oids).
		Scan(&c.facts.roles, &c.facts.collations, &c.facts.accessMethods, &c.facts.forcedRLS)
}

func (c *checker) target(ctx context.Context, t Target) error {
	side := "shard " + t.Shard
	conn, problem := connect(ctx, t.DSN)
	if problem != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.block("target-unreachable", side, problem.remedy, "%s: %s", t.DSN, problem.message)
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	parts := []part{
		{"settings", func(ctx context.Context, tx pgx.Tx) error { return c.targetServer(ctx, tx, side) }},
		{"session_replication_role", func(ctx context.Context, tx pgx.Tx) error { return c.replicaRole(ctx, tx, side) }},
		{"connections", func(ctx context.Context, tx pgx.Tx) error {
			return c.connections(ctx, tx, side, c.in.Options.CopyJobs+4)
		}},
		{"clock", func(ctx context.Context, tx pgx.Tx) error { return c.clock(ctx, tx, side) }},
	}
	if c.facts.described {
		parts = append(parts,
			part{"tables", func(ctx context.Context, tx pgx.Tx) error { return c.targetTables(ctx, tx, side) }},
			part{"extensions, roles and collations", func(ctx context.Context, tx pgx.Tx) error { return c.targetNeeds(ctx, tx, side) }},
			part{"disk space", func(ctx context.Context, tx pgx.Tx) error { return c.disk(ctx, tx, side, conn.Config().Host) }})
	}
	return c.parts(ctx, conn, side, parts)
}

func (c *checker) targetServer(ctx context.Context, tx pgx.Tx, side string) error {
	var (
		version                                                     int
		encoding, collate, ctype, fsync, user, database, identifier string
		standby, create, createPublic, bypass, control              bool
	)
	err := tx.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text,
		       current_setting('fsync'), pg_is_in_recovery(), current_user::text, d.datname::text, has_database_privilege(d.oid, 'CREATE'),
		       coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'), true), r.rolsuper OR r.rolbypassrls,
		       has_function_privilege('pg_control_system()', 'EXECUTE')
		FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user`).
		Scan(&version, &encoding, &collate, &ctype, &fsync, &standby, &user, &database, &create, &createPublic, &bypass, &control)
	if err != nil {
		return err
	}
	if control {
		if err := tx.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&identifier); err != nil {
			return err
		}
	}
	quoted := tenant.QuoteIdent(user)
	if standby {
		c.block("target-is-standby", side, "name the primary: rehome update-shard", "the %s is a standby", side)
	}
	if version < oldestTarget {
		c.block("target-too-old", side, "upgrade it to Postgres 13 or newer, best to the source's version or newer", "the %s is Postgres %d", side, version/10000)
	}
	if fsync != "on" {
		c.warn("fsync-off", side, "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()", "fsync is %s at the %s: a crash may lose rows that were acknowledged", fsync, side)
	}
	if !create {
		c.block("no-create-privilege", side, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", tenant.QuoteIdent(database), quoted), "role %s may not create schemas at the %s", user, side)
	}
	if c.cat == nil {
		return nil
	}
	src := c.cat.Server
	if identifier != "" && identifier == c.facts.systemID && database == src.Database {
		c.block("same-database", side, "name another source or another database", "source and %s are the same database", side)
	}
	if !createPublic && slices.ContainsFunc(c.cat.Tables, func(t catalog.Table) bool { return t.Name.Schema == "public" }) {
		c.block("no-create-privilege", side+": schema public", "GRANT CREATE ON SCHEMA public TO "+quoted, "role %s may not create tables in schema public at the %s", user, side)
	}
	if version/10000 < src.Version/10000 {
		c.warn("target-older", side, "upgrade the shard", "the %s is Postgres %d, older than the source's %d: its schema may not be understood there", side, version/10000, src.Version/10000)
	}
	switch {
	case src.Encoding == "SQL_ASCII":
		// Named without the shard: what is accepted is a property of the source's texts.
		c.blockAcceptable("encoding", "source", "make sure that every text is valid UTF-8, and recode what is not",
			"the source is SQL_ASCII, which checks nothing: a text that is not valid UTF-8 would stop the copy or the stream at the %s", side)
	case encoding != src.Encoding && encoding != "UTF8":
		c.block("encoding", side, "create the database there with encoding UTF8", "the %s has encoding %s, the source %s: not every character fits", side, encoding, src.Encoding)
	case encoding != src.Encoding:
		c.notice("encoding", side, "", "texts are converted from %s to %s", src.Encoding, encoding)
	}
	if collate != src.Collate || ctype != src.CType {
		c.warn("collation-differs", side, "create the database there with the source's collation, or check sorting and comparisons of texts",
			"the source sorts texts by %s (character classes %s), the %s by %s (%s)", src.Collate, src.CType, side, collate, ctype)
	}
	if !bypass && len(c.facts.forcedRLS) > 0 {
		c.block("row-security-forced", side, "ALTER ROLE "+quoted+" BYPASSRLS at the shard", "row security is forced for owners too at %s: role %s could not write all rows at the %s", strings.Join(c.facts.forcedRLS, ", "), user, side)
	}
	return nil
}

// replicaRole tries what the applier needs: triggers and foreign keys must not fire for what is replicated. The setting
// ends with the transaction.
func (c *checker) replicaRole(ctx context.Context, tx pgx.Tx, side string) error {
	_, err := tx.Exec(ctx, "SET LOCAL session_replication_role = replica")
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	var user string
	if conn := tx.Conn(); conn != nil {
		user = conn.Config().User
	}
	c.block("session-replication-role", side, "GRANT SET ON PARAMETER session_replication_role TO "+tenant.QuoteIdent(user)+" (Postgres 15 and newer; before: a superuser)",
		"role %s may not set session_replication_role at the %s: triggers would fire for replicated rows (%s)", user, side, pg.Message)
	return nil
}

// targetTables refuses a target that holds tables of those names, unless an earlier run of a replication made them.
func (c *checker) targetTables(ctx context.Context, tx pgx.Tx, side string) error {
	var schemas, names []string
	for _, t := range c.cat.Tables {
		schemas, names = append(schemas, t.Name.Schema), append(names, t.Name.Name)
	}
	var there []string
	var ours bool
	err := tx.QueryRow(ctx, `
		SELECT ARRAY(SELECT format('%I.%I', n.nspname, c.relname) FROM unnest($1::text[], $2::text[]) w(schema, name)
		             JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name ORDER BY 1),
		       to_regclass('rehome.ddl_done') IS NOT NULL`, schemas, names).Scan(&there, &ours)
	if err != nil || len(there) == 0 {
		return err
	}
	if ours {
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome.ddl_done WHERE item = 'pre-data')`).Scan(&ours); err != nil {
			return err
		}
	}
	const shown = 5
	list := strings.Join(there[:min(shown, len(there))], ", ")
	if len(there) > shown {
		list += fmt.Sprintf(" and %d more", len(there)-shown)
	}
	if ours {
		c.notice("target-has-earlier-run", side, "", "the %s holds tables of an earlier run: %s", side, list)
		return nil
	}
	c.block("target-not-empty", side, "replicate into a new database (rehome create), or drop these tables there", "the %s already holds tables of these names: %s", side, list)
	return nil
}

func (c *checker) targetNeeds(ctx context.Context, tx pgx.Tx, side string) error {
	var roles, collations, methods []string
	var super, create bool
	err := tx.QueryRow(ctx, `
		SELECT ARRAY(SELECT w.name FROM unnest($1::text[]) w(name) WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = w.name)),
		       ARRAY(SELECT w.name FROM unnest($2::text[]) w(name) WHERE NOT EXISTS (
		           SELECT FROM pg_collation l WHERE l.collname = w.name AND l.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database())))),
		       ARRAY(SELECT w.name FROM unnest($3::text[]) w(name) WHERE NOT EXISTS (SELECT FROM pg_am m WHERE m.amname = w.name)),
		       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), has_database_privilege(current_database(), 'CREATE')`,
		c.facts.roles, c.facts.collations, c.facts.accessMethods).Scan(&roles, &collations, &methods, &super, &create)
	if err != nil {
		return err
	}
	for _, r := range roles {
		c.block("role-missing", side+": "+r, "CREATE ROLE "+tenant.QuoteIdent(r)+" at the shard", "policies name role %s, which the %s does not have", r, side)
	}
	for _, l := range collations {
		c.block("collation-missing", side+": "+l, "install the locale at the shard and run pg_import_system_collations('pg_catalog')", "columns use collation %s, which the %s does not have", l, side)
	}
	for _, m := range methods {
		c.block("access-method-missing", side+": "+m, "install it at the shard", "tables use access method %s, which the %s does not have", m, side)
	}

	rows, err := tx.Query(ctx, `
		SELECT a.name::text, a.default_version, coalesce(a.installed_version, ''), coalesce(bool_or(v.trusted), false)
		FROM pg_available_extensions a LEFT JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = a.default_version
		WHERE a.name = ANY ($1) GROUP BY 1, 2, 3`, slices.Collect(maps.Keys(c.facts.extensions)))
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	var name, available, installed string
	var trusted bool
	_, err = pgx.ForEachRow(rows, []any{&name, &available, &installed, &trusted}, func() error {
		seen[name] = true
		object := side + ": " + name
		if installed == "" && !super && (!trusted || !create) {
			c.block("extension-not-creatable", object, "CREATE EXTENSION "+tenant.QuoteIdent(name)+" at the shard, as superuser", "extension %s is not installed at the %s, and may not be by this role", name, side)
		}
		there := installed
		if there == "" {
			there = available
		}
		if there != c.facts.extensions[name] {
			c.warn("extension-version", object, "use the same version on both sides, if the difference matters", "extension %s is %s at the source and %s at the %s", name, c.facts.extensions[name], there, side)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.facts.extensions)) {
		if !seen[name] {
			// Named without the shard: accepting it leaves the extension out everywhere.
			c.blockAcceptable("extension-missing", name, "install it at the "+side, "the source uses extension %s, which the %s does not have", name, side)
		}
	}
	return nil
}
