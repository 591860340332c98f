package replicator_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// hazard is rows of a kind that replications get wrong: rows before the start, which the copy must carry, and changes
// while the stream runs.
type hazard struct {
	shards int // default 2
	opts   tenant.ReplicationOptions
	before string
	// stream are scripts, run one by one. A script that begins with BEGIN is one transaction, else each statement is.
	stream []string
	// held runs the scripts while the lanes cannot commit, so that all of them become one group, applied set-wise.
	held bool
	// after looks at the shards by itself, when both comparisons are through.
	after func(t *testing.T, r *rig)
}

// run carries the hazard, lets the engine compare both sides, and compares them itself without any of the engine's code.
func (h hazard) run(t *testing.T) {
	t.Helper()
	t.Parallel()
	n := h.shards
	if n == 0 {
		n = 2
	}
	h.runOn(t, newRig(t, n, h.opts, "SELECT 1"))
}

func (h hazard) runOn(t *testing.T, r *rig) {
	t.Helper()
	script(t, r.srcDB, h.before)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	r.sameRows() // what the copy brought
	release := func() {}
	if h.held {
		release = r.holdLanes()
	}
	for _, sql := range h.stream {
		script(t, r.srcDB, sql)
	}
	release()
	r.verifyClean(e)
	r.sameRows()
	if h.after != nil {
		h.after(t, r)
	}
}

// script runs statements, and shows what is around the one that fails.
func script(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	_, err := c.PgConn().Exec(t.Context(), sql).ReadAll()
	if err == nil {
		return
	}
	at := 0
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		at = int(pe.Position)
	}
	t.Fatalf("%.1000s: %v", sql[max(0, min(at, len(sql))-200):], err)
}

// holdLanes keeps every lane from committing until release is called: they take the row that is locked here first.
func (r *rig) holdLanes() (release func()) {
	r.t.Helper()
	var held []*pgx.Conn
	for _, sh := range r.shards {
		c := open(r.t, sh.DSN)
		exec(r.t, c, "BEGIN")
		exec(r.t, c, "SELECT FROM rehome.applier FOR UPDATE")
		held = append(held, c)
	}
	return func() {
		for _, c := range held {
			exec(r.t, c, "ROLLBACK")
		}
	}
}

// plain are settings under which a row's text tells all of it, whatever a database has as its own.
const plain = `SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 1;
	SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content'; SET search_path = ''; SET quote_all_identifiers = off; SET standard_conforming_strings = on`

// sameRows compares the rows of all tables, as texts, and that each lies where its realm belongs.
func (r *rig) sameRows() {
	r.t.Helper()
	src := open(r.t, r.source)
	exec(r.t, src, plain)
	shards := make([]*pgx.Conn, len(r.shards))
	for i, sh := range r.shards {
		shards[i] = open(r.t, sh.DSN)
		exec(r.t, shards[i], plain)
	}
	rows, err := src.Query(r.t.Context(), `SELECT n.nspname::text, c.relname::text, c.relkind = 'p', ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome') ORDER BY 1, 2`)
	if err != nil {
		r.t.Fatal(err)
	}
	type table struct {
		name    tenant.TableName
		tree    bool
		columns []string
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (tb table, err error) {
		err = row.Scan(&tb.name.Schema, &tb.name.Name, &tb.tree, &tb.columns)
		return tb, err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, tb := range tables {
		if !catalog.Included(r.opts, tb.name) {
			continue
		}
		realm, _ := catalog.WantedRealmKey(r.opts, tb.name)
		sharded := slices.Contains(tb.columns, realm) && !catalog.DeclaredReference(r.opts, tb.name)
		list := make([]string, len(tb.columns))
		for i, c := range tb.columns {
			list[i] = "t." + tenant.QuoteIdent(c)
		}
		from := "ONLY " + tb.name.Quoted()
		if tb.tree {
			from = tb.name.Quoted()
		}
		key := "''"
		if sharded {
			key = "t." + tenant.QuoteIdent(realm) + "::text"
		}
		sql := "SELECT " + key + ", ROW(" + strings.Join(list, ", ") + ")::text FROM " + from + " t"
		want := r.texts(src, sql, "")
		var got []string
		for i, c := range shards {
			if sharded {
				got = append(got, r.texts(c, sql, r.shards[i].Name)...)
			} else {
				r.same(tb.name.String()+" on "+r.shards[i].Name, want, r.texts(c, sql, ""))
			}
		}
		if sharded {
			r.same(tb.name.String(), want, got)
		}
	}
}

// texts reads rows, which must be of realms that the shard owns, if one is named.
func (r *rig) texts(c *pgx.Conn, sql, shard string) []string {
	r.t.Helper()
	rows, err := c.Query(r.t.Context(), sql)
	if err != nil {
		r.t.Fatalf("%s: %v", sql[:min(len(sql), 400)], err)
	}
	var realm, text string
	var out []string
	if _, err := pgx.ForEachRow(rows, []any{&realm, &text}, func() error {
		if shard != "" && r.place.ShardOf(realm) != shard {
			r.t.Errorf("realm %q does not belong on %s", realm, shard)
		}
		out = append(out, text)
		return nil
	}); err != nil {
		r.t.Fatalf("%s: %v", sql[:min(len(sql), 400)], err)
	}
	return out
}

// same compares two multisets of rows.
func (r *rig) same(what string, want, got []string) {
	r.t.Helper()
	count := map[string]int{}
	for _, s := range want {
		count[s]++
	}
	for _, s := range got {
		count[s]--
	}
	shown := 0
	for s, n := range count {
		if n != 0 && shown < 5 {
			shown++
			r.t.Errorf("%s: %d at the source too many: %.300q", what, n, s)
		}
	}
	if len(want) != len(got) {
		r.t.Errorf("%s: %d rows at the source, %d on the shards", what, len(want), len(got))
	}
}

// lit is a value as SQL: a text with = before it is an expression.
func lit(value, typ string) string {
	if e, ok := strings.CutPrefix(value, "="); ok {
		return "(" + e + ")::" + typ
	}
	return tenant.QuoteLiteral(value) + "::" + typ
}

// each repeats a statement with %[1]s for each table.
func each(tables []string, sql string) string {
	var b strings.Builder
	for _, t := range tables {
		fmt.Fprintf(&b, sql+";\n", t)
	}
	return b.String()
}
