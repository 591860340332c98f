package ddl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Permitted reports whether the session's role may create event triggers: superusers may, and on managed servers others
// as well. It tries and takes it back; nothing is left.
func Permitted(ctx context.Context, conn *pgx.Conn) (bool, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadWrite})
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, sql := range []string{
		`CREATE FUNCTION pg_temp.rehome_try() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'`,
		`CREATE EVENT TRIGGER rehome_try ON sql_drop WHEN TAG IN ('DROP AGGREGATE') EXECUTE FUNCTION pg_temp.rehome_try()`,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code[:2] != "08" && pe.Code[:2] != "57" {
				return false, nil
			}
			return false, fmt.Errorf("try to create an event trigger: %w", err)
		}
	}
	return true, nil
}

// Installed reports whether the event triggers are there.
func Installed(ctx context.Context, conn *pgx.Conn) (there bool, err error) {
	err = conn.QueryRow(ctx, `SELECT to_regclass('rehome.ddl') IS NOT NULL AND to_regprocedure('rehome.ddl_table(oid)') IS NOT NULL
		AND (SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'rehome\_ddl\_%' AND evtenabled <> 'D') = 3`).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("look for the event triggers: %w", err)
	}
	return there, nil
}

// SourceChange is the installation as a change of the source. Publications share it: undoing it for one leaves it to the others.
func SourceChange(publication, replication string, opts tenant.ReplicationOptions) tenant.SourceChange {
	return tenant.SourceChange{
		Object:      "event triggers rehome_ddl_*",
		Description: "event triggers that record changes of the schema",
		Do:          installSQL(publication, replication, opts),
		Undo:        undoSQL(publication, replication),
	}
}

func installSQL(publication, replication string, opts tenant.ReplicationOptions) string {
	return strings.Join([]string{
		createTables, sqlTable, sqlEnum, sqlSequence, sqlLeaves, sqlWrite, sqlCommandEnd, sqlDrop, sqlRewrite, createTriggers, revoke,
		fmt.Sprintf(`INSERT INTO rehome.ddl_scope (publication, include, exclude, truncations) VALUES (%s, %s, %s, %s)
			ON CONFLICT (publication) DO UPDATE SET include = excluded.include, exclude = excluded.exclude, truncations = excluded.truncations`,
			tenant.QuoteLiteral(publication), patterns(opts.Include), patterns(opts.Exclude), tenant.QuoteLiteral(catalog.TruncationTrigger(replication))),
	}, ";\n")
}

// patterns are the options' patterns as regular expressions over schema.name. A pattern that needs quotes may match less
// here than in package catalog: a table that is left unpublished for that pauses the replication, one that is published
// in vain is left alone by the stream.
func patterns(list []string) string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		if p != "*" && !strings.Contains(p, "*") {
			if t, err := tenant.ParseTableName(p); err == nil {
				p = t.Schema + "." + t.Name
			}
		} else if p != "*" && !strings.Contains(p, ".") {
			p = "public." + p
		}
		out = append(out, tenant.QuoteLiteral("^(?:"+catalog.PatternRegexp(p)+")$"))
	}
	if len(out) == 0 {
		return "'{}'"
	}
	return "ARRAY[" + strings.Join(out, ", ") + "]"
}

// undoSQL takes the installation away, unless another publication still streams it, and the triggers that this one got on
// partitions wherever they are by now. The lock waits for commands that are making one.
func undoSQL(publication, replication string) string {
	body := fmt.Sprintf(`
DECLARE
	t regclass;
BEGIN
	IF to_regclass('rehome.ddl_scope') IS NOT NULL THEN
		LOCK TABLE rehome.ddl_scope IN ACCESS EXCLUSIVE MODE;
		DELETE FROM rehome.ddl_scope WHERE publication = %s;
	END IF;
	FOR t IN SELECT tgrelid FROM pg_catalog.pg_trigger WHERE tgname = %s LOOP
		EXECUTE pg_catalog.format('DROP TRIGGER %%I ON %%s', %[2]s, t);
	END LOOP;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel WHERE prrelid = to_regclass('rehome.ddl')) THEN
		DROP EVENT TRIGGER IF EXISTS rehome_ddl_end;
		DROP EVENT TRIGGER IF EXISTS rehome_ddl_drop;
		DROP EVENT TRIGGER IF EXISTS rehome_ddl_rewrite;
		DROP FUNCTION IF EXISTS rehome.ddl_end(), rehome.ddl_drop(), rehome.ddl_rewrite(), rehome.ddl_write(text, oid[], oid[], oid[], jsonb, jsonb, text), rehome.ddl_leaves(oid[], text),
			rehome.ddl_table(oid), rehome.ddl_enum(oid), rehome.ddl_sequence(oid);
		DROP TABLE IF EXISTS rehome.ddl, rehome.ddl_scope;
	END IF;
END`, tenant.QuoteLiteral(publication), tenant.QuoteLiteral(catalog.TruncationTrigger(replication)))
	return "DO " + tenant.QuoteLiteral(body)
}
