package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// objects finds what is in the source's database and is not carried, or not as it was.
func (c *checker) objects(ctx context.Context, tx pgx.Tx) error {
	var large, eventful int64
	var publications, spaces []string
	oids, _ := members(c.cat)
	err := tx.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_event_trigger),
		       ARRAY(SELECT p.pubname::text FROM pg_publication p WHERE p.pubname NOT LIKE 'rehome\_%'
		             AND (p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = ANY ($1))) ORDER BY 1),
		       ARRAY(SELECT DISTINCT s.spcname::text FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE c.oid = ANY ($1) ORDER BY 1)`, oids).
		Scan(&large, &eventful, &publications, &spaces)
	if err != nil {
		return err
	}
	if large > 0 {
		c.blockAcceptable("large-objects", "source", "move their content into bytea columns, or carry them by hand (pg_dump --blobs)", "there are %d large objects, which are not carried: columns of type oid or lo would point to nothing", large)
	}
	if len(publications) > 0 {
		c.notice("publication", "source", "make them at the target if they are needed there", "publications are not carried: %s", strings.Join(publications, ", "))
	}
	if len(spaces) > 0 {
		c.notice("tablespaces", "source", "", "tablespaces are not carried, their tables go to the target's default: %s", strings.Join(spaces, ", "))
	}
	c.notice("grants-not-carried", "source", "grant at the targets what applications need", "owners and grants are not carried: everything belongs to the role that Rehome uses at the target")
	if eventful > 0 {
		if err := c.eventTriggers(ctx, tx); err != nil {
			return err
		}
	}
	if err := c.relations(ctx, tx); err != nil {
		return err
	}
	return c.subscriptions(ctx, tx, oids)
}

func (c *checker) eventTriggers(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT evtname::text FROM pg_event_trigger t WHERE evtname NOT LIKE 'rehome\_%'
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = t.oid AND d.deptype = 'e') ORDER BY 1`)
	if err != nil {
		return err
	}
	var name string
	_, err = pgx.ForEachRow(rows, []any{&name}, func() error {
		c.warn("event-trigger", name, "make it at the target after the move", "event trigger %s is not carried", name)
		return nil
	})
	return err
}

// relations finds foreign and unlogged tables and materialized views.
func (c *checker) relations(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE (c.relkind IN ('f','m') OR (c.relkind IN ('r','p') AND c.relpersistence = 'u' AND NOT c.relispartition))
		  AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY 1, 2`)
	if err != nil {
		return err
	}
	var t tenant.TableName
	var kind, persistence string
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &kind, &persistence}, func() error {
		switch {
		case catalog.MatchesAny(c.in.Options.Exclude, t):
		case kind == "f":
			c.blockAcceptable("foreign-table", t.String(), "make it at the target by hand", "foreign table %s is not carried, nor are servers and user mappings", t)
		case kind == "m" && c.in.Shards > 1:
			c.warn("materialized-view", t.String(), "", "materialized view %s is computed on each shard from that shard's rows", t)
		case kind == "m":
			c.notice("materialized-view", t.String(), "", "materialized view %s is refreshed once after the copy", t)
		default:
			if catalog.Included(c.in.Options, t) {
				c.blockAcceptable("unlogged-table", t.String(), fmt.Sprintf("ALTER TABLE %s SET LOGGED if its rows matter, or leave it out (--exclude %s)", t.Quoted(), shellQuote(t.String())),
					"unlogged table %s arrives empty: its rows are not in the WAL", t)
			}
		}
		return nil
	})
	return err
}

func (c *checker) subscriptions(ctx context.Context, tx pgx.Tx, oids []uint32) error {
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT n.nspname::text, c.relname::text
		FROM pg_subscription_rel s JOIN pg_class c ON c.oid = s.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE s.srrelid = ANY ($1) ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var t tenant.TableName
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name}, func() error {
		c.warn("subscription", t.String(), "disable the subscription before the cutover, and subscribe the target", "a subscription writes to %s: after the cutover its changes are refused here and missing there", t)
		return nil
	})
	return err
}

// triggers finds those that would also fire for what the applier writes, whose effects the stream carries anyway.
func (c *checker) triggers(ctx context.Context, tx pgx.Tx) error {
	oids, of := members(c.cat)
	rows, err := tx.Query(ctx, `
		SELECT t.tgrelid, t.tgname::text, t.tgenabled::text, 'trigger'
		FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND n.nspname <> 'rehome'
		UNION ALL
		SELECT r.ev_class, r.rulename::text, r.ev_enabled::text, 'rule' FROM pg_rewrite r WHERE r.ev_class = ANY ($1)
		ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var (
		oid                 uint32
		name, enabled, kind string
		plain               int
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &name, &enabled, &kind}, func() error {
		t := of[oid].Name
		if enabled != "A" && enabled != "R" {
			plain++
			return nil
		}
		c.blockAcceptable("trigger-always", t.String()+"."+name, fmt.Sprintf("ALTER TABLE %s ENABLE %s %s", t.Quoted(), strings.ToUpper(kind), tenant.QuoteIdent(name)),
			"%s %s of %s fires also for replicated rows (ENABLE ALWAYS or REPLICA): its effects would happen twice", kind, name, t)
		return nil
	})
	if plain > 0 {
		c.notice("triggers", "source", "", "%d triggers and rules are carried; they fire at the target after the cutover, not for what is replicated", plain)
	}
	return err
}

func (c *checker) sequences(ctx context.Context, tx pgx.Tx) error {
	if len(c.cat.Sequences) == 0 {
		return nil
	}
	readable := &catalog.Catalogue{}
	for _, s := range c.cat.Sequences {
		if !slices.Contains(c.facts.unreadable, s.Name) {
			readable.Sequences = append(readable.Sequences, s)
		}
	}
	values, err := catalog.ReadSequences(ctx, tx.Conn(), readable)
	if err != nil {
		return err
	}
	worst := catalog.Step(c.in.Shards) - 1 // a shard's number may be higher than how many this database has
	for _, v := range values {
		if _, _, err := catalog.NextValue(v, worst, catalog.Step(c.in.Shards)); err != nil {
			e := tenant.AsError(err)
			c.block(e.Code, v.Name.String(), e.Hint, "%s", e.Message)
		}
	}
	how := "go on where they are"
	if c.in.Shards > 1 {
		how = fmt.Sprintf("go on at least %d ahead, in steps of %d, each shard with numbers of its own", catalog.SequenceHeadroom, catalog.SequenceStep)
	}
	c.notice("sequences", "source", "", "%d sequences are set at the cutover; they %s", len(c.cat.Sequences), how)
	return nil
}
