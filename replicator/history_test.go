package replicator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// Dice decide a random history; *rand.Rand is one.
type Dice interface{ IntN(n int) int }

// The tables of a history. All have the columns realm_id, id, u (unique, but for whole), v and big.
const (
	plainTable    = iota // PRIMARY KEY (realm_id, id), UNIQUE (u)
	deferredTable        // the same, UNIQUE (u) DEFERRABLE INITIALLY DEFERRED
	refTable             // PRIMARY KEY (id), on every shard
	blindTable           // PRIMARY KEY (id), whose realms never change
	wholeTable           // no key, REPLICA IDENTITY FULL, equal rows
	historyTables
)

// HistoryTables names them; HistoryDDL makes them at a source.
var HistoryTables = [historyTables]string{"plain", "deferred", "ref", "blind", "whole"}

// HistoryDDL makes the tables.
const HistoryDDL = `
	CREATE TABLE plain (realm_id text NOT NULL, id int NOT NULL, u int UNIQUE, v text, big text, PRIMARY KEY (realm_id, id));
	CREATE TABLE deferred (realm_id text NOT NULL, id int NOT NULL, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text, big text, PRIMARY KEY (realm_id, id));
	CREATE TABLE ref (realm_id text NOT NULL, id int PRIMARY KEY, u int UNIQUE, v text, big text);
	CREATE TABLE blind (realm_id text NOT NULL, id int PRIMARY KEY, u int UNIQUE, v text, big text);
	CREATE TABLE whole (realm_id text NOT NULL, id int NOT NULL, u int, v text, big text);
	ALTER TABLE whole REPLICA IDENTITY FULL;
	DO $$ DECLARE t text; BEGIN FOREACH t IN ARRAY ARRAY['plain', 'deferred', 'ref', 'blind', 'whole'] LOOP EXECUTE format('ALTER TABLE %I ALTER big SET STORAGE EXTERNAL', t); END LOOP; END $$;`

// HistoryRow is a row: u and big may be "" for NULL; a big that begins with T is large enough to be stored apart.
type HistoryRow struct{ Realm, ID, U, V, Big string }

func (r HistoryRow) large() bool { return strings.HasPrefix(r.Big, "T") }

func (r HistoryRow) values() []string {
	return []string{sqlText(r.Realm), r.ID, orNull(r.U), sqlText(r.V), bigText(r.Big)}
}

func sqlText(s string) string { return "'" + s + "'" }

func orNull(s string) string {
	if s == "" {
		return "NULL"
	}
	return s
}

func bigText(s string) string {
	switch {
	case s == "":
		return "NULL"
	case s[0] == 'T':
		return "rpad('" + s + "', 3000, '.')" // above the 2 kB from which on values are stored apart
	}
	return sqlText(s)
}

// HistoryOp is one change of a row at the source, or one TRUNCATE, as a statement and as what the source sends of it.
type HistoryOp struct {
	SQL      string
	kind     op
	table    int
	tables   []int // TRUNCATE
	old, new HistoryRow
	bigSent  bool
}

// History is what a source did: transactions in the order of their commits, and the rows that were there at the end.
type History struct {
	Txns [][]HistoryOp
	Rows [historyTables][]HistoryRow
}

// state is a row of a table in words; HistoryState says the same of a database's.
func (r HistoryRow) state(t int) string {
	return HistoryTables[t] + " " + r.Realm + " " + r.ID + " u=" + r.U + " v=" + r.V + " " + r.Big
}

// HistoryState lists the rows of a database in words.
func HistoryState() string {
	var parts []string
	for _, t := range HistoryTables {
		parts = append(parts, "SELECT '"+t+" ' || realm_id || ' ' || id || ' u=' || coalesce(u::text, '') || ' v=' || v || ' ' || "+
			"CASE WHEN big LIKE 'T%' AND length(big) = 3000 THEN rtrim(big, '.') ELSE coalesce(big, '') END FROM "+t)
	}
	return strings.Join(parts, " UNION ALL ")
}

// Want is what a shard has to have when everything is applied: the source's rows that it owns.
func (h *History) Want(place tenant.Placement, shard string) []string {
	out := []string{}
	for t, rows := range h.Rows {
		for _, r := range rows {
			if t == refTable || place.ShardOf(r.Realm) == shard {
				out = append(out, r.state(t))
			}
		}
	}
	slices.Sort(out)
	return out
}

type historian struct {
	d     Dice
	h     *History
	txn   []HistoryOp
	fresh int
}

const (
	historyRealms = 6
	historyIDs    = 7
	historyUs     = 9
)

// NewHistory makes up a history that a source accepts.
func NewHistory(d Dice, txns int) *History {
	g := &historian{d: d, h: &History{}}
	for range txns {
		g.txn = nil
		for range 1 + d.IntN(6) {
			g.step()
		}
		if len(g.txn) > 0 {
			g.h.Txns = append(g.h.Txns, g.txn)
		}
	}
	return g.h
}

func (g *historian) realm() string { return "r" + strconv.Itoa(g.d.IntN(historyRealms)) }

func (g *historian) next() string {
	g.fresh++
	return strconv.Itoa(g.fresh)
}

func (g *historian) big() string {
	switch g.d.IntN(4) {
	case 0:
		return ""
	case 1:
		return "s" + g.next()
	}
	return "T" + g.next()
}

// freeU is a value of u that no row has, or none.
func (g *historian) freeU(t int) string {
	u := strconv.Itoa(g.d.IntN(historyUs))
	if g.d.IntN(5) == 0 || (t != wholeTable && slices.ContainsFunc(g.h.Rows[t], func(r HistoryRow) bool { return r.U == u })) {
		return ""
	}
	return u
}

// free reports whether a key may be taken.
func (g *historian) free(t int, realm, id string) bool {
	return t == wholeTable || !slices.ContainsFunc(g.h.Rows[t], func(r HistoryRow) bool {
		return r.ID == id && (r.Realm == realm || t == refTable || t == blindTable)
	})
}

func (g *historian) step() {
	t := g.d.IntN(historyTables)
	rows := g.h.Rows[t]
	kind := g.d.IntN(20)
	if len(rows) == 0 && kind > 0 {
		kind = 1
	}
	switch {
	case kind == 0 && g.d.IntN(3) == 0:
		g.truncate(t)
	case kind <= 4:
		g.insert(t, g.freeU(t))
	case kind <= 6:
		g.remove(t, g.d.IntN(len(rows)))
	case kind <= 8: // another key
		i := g.d.IntN(len(rows))
		row := rows[i]
		row.ID = strconv.Itoa(g.d.IntN(historyIDs))
		g.change(t, i, row)
	case kind <= 12 && t != blindTable: // another realm, there and perhaps back, perhaps with another key
		i := g.d.IntN(len(rows))
		home := rows[i].Realm
		for range 1 + g.d.IntN(3) {
			row := g.h.Rows[t][i]
			row.Realm = g.realm()
			if g.d.IntN(4) == 0 {
				row.ID = strconv.Itoa(g.d.IntN(historyIDs))
			}
			if g.d.IntN(4) == 0 {
				row.V = g.next()
			}
			if g.d.IntN(6) == 0 {
				row.Big = g.big()
			}
			g.change(t, i, row)
		}
		if g.d.IntN(2) == 0 {
			row := g.h.Rows[t][i]
			row.Realm = home
			g.change(t, i, row)
		}
	case kind == 13 && len(rows) > 1:
		g.swap(t)
	case kind == 14: // a unique value goes from a row that is deleted to one that comes
		i := g.d.IntN(len(rows))
		u := rows[i].U
		g.remove(t, i)
		g.insert(t, u)
	case kind == 15: // several updates of one row
		i := g.d.IntN(len(rows))
		for range 2 + g.d.IntN(3) {
			g.alter(t, i)
		}
	default:
		g.alter(t, g.d.IntN(len(rows)))
	}
}

// swap exchanges the unique values of two rows.
func (g *historian) swap(t int) {
	rows := g.h.Rows[t]
	i := g.d.IntN(len(rows))
	j := (i + 1 + g.d.IntN(len(rows)-1)) % len(rows)
	a, b := rows[i], rows[j]
	set := func(n int, u string) {
		row := g.h.Rows[t][n]
		row.U = u
		g.change(t, n, row)
	}
	if t == deferredTable {
		set(i, b.U)
		set(j, a.U)
		return
	}
	set(i, "")
	set(j, a.U)
	set(i, b.U)
}

// alter changes values that are no key.
func (g *historian) alter(t, i int) {
	row := g.h.Rows[t][i]
	row.V = g.next()
	switch g.d.IntN(6) {
	case 0:
		row.Big = g.big()
	case 1:
		if u := g.freeU(t); u != "" {
			row.U = u
		}
	}
	g.change(t, i, row)
}

func (g *historian) insert(t int, u string) {
	row := HistoryRow{Realm: g.realm(), ID: strconv.Itoa(g.d.IntN(historyIDs)), U: u, V: g.next(), Big: g.big()}
	if t == wholeTable && len(g.h.Rows[t]) > 0 && g.d.IntN(2) == 0 {
		row = g.h.Rows[t][g.d.IntN(len(g.h.Rows[t]))] // equal rows
	}
	if !g.free(t, row.Realm, row.ID) {
		return
	}
	g.h.Rows[t] = append(g.h.Rows[t], row)
	g.txn = append(g.txn, HistoryOp{kind: opInsert, table: t, new: row, SQL: "INSERT INTO " + HistoryTables[t] + " VALUES (" + strings.Join(row.values(), ", ") + ")"})
}

func (g *historian) remove(t, i int) {
	row := g.h.Rows[t][i]
	g.h.Rows[t] = slices.Delete(slices.Clone(g.h.Rows[t]), i, i+1)
	g.txn = append(g.txn, HistoryOp{kind: opDelete, table: t, old: row, SQL: "DELETE FROM " + HistoryTables[t] + " WHERE " + where(t, row)})
}

func (g *historian) change(t, i int, row HistoryRow) {
	was := g.h.Rows[t][i]
	if (row.ID != was.ID || row.Realm != was.Realm) && !g.free(t, row.Realm, row.ID) {
		return
	}
	g.h.Rows[t] = slices.Clone(g.h.Rows[t])
	g.h.Rows[t][i] = row
	var set []string
	names := []string{"realm_id", "id", "u", "v", "big"}
	from, to := was.values(), row.values()
	for n := range names {
		if from[n] != to[n] {
			set = append(set, names[n]+" = "+to[n])
		}
	}
	if set == nil {
		set = []string{"v = v"}
	}
	g.txn = append(g.txn, HistoryOp{
		kind: opUpdate, table: t, old: was, new: row, bigSent: !was.large() || was.Big != row.Big,
		SQL: "UPDATE " + HistoryTables[t] + " SET " + strings.Join(set, ", ") + " WHERE " + where(t, was),
	})
}

func (g *historian) truncate(t int) {
	tables := []int{t}
	if other := g.d.IntN(historyTables); other != t {
		tables = append(tables, other)
	}
	var names []string
	for _, t := range tables {
		g.h.Rows[t] = nil
		names = append(names, HistoryTables[t])
	}
	g.txn = append(g.txn, HistoryOp{kind: opTruncate, tables: tables, SQL: "TRUNCATE " + strings.Join(names, ", ")})
}

// where finds the row, and just one of equal ones.
func where(t int, r HistoryRow) string {
	switch t {
	case refTable, blindTable:
		return "id = " + r.ID
	case wholeTable:
		v := r.values()
		return fmt.Sprintf("ctid = (SELECT ctid FROM whole WHERE realm_id = %s AND id = %s AND u IS NOT DISTINCT FROM %s AND v = %s AND big IS NOT DISTINCT FROM %s LIMIT 1)", v[0], v[1], v[2], v[3], v[4])
	}
	return "realm_id = " + sqlText(r.Realm) + " AND id = " + r.ID
}

// tuple is the row as the source sends it.
func (r HistoryRow) tuple(bigSent bool) pgoutput.Tuple {
	opt := func(s string) pgoutput.Value {
		if s == "" {
			return pgoutput.Value{Kind: pgoutput.Null}
		}
		return text(s)
	}
	t := pgoutput.Tuple{text(r.Realm), text(r.ID), opt(r.U), text(r.V), opt(r.Big)}
	if !bigSent {
		t[4] = pgoutput.Value{Kind: pgoutput.Unchanged}
	}
	return t
}

// message is what the source sends of the change.
func (o *HistoryOp) message(rels []*relation) pgoutput.Message {
	m := pgoutput.Message{Kind: pgoutput.Truncate}
	if o.kind == opTruncate {
		for _, t := range o.tables {
			m.OIDs = append(m.OIDs, rels[t].table.OID)
		}
		return m
	}
	rel := rels[o.table]
	m.OID = rel.table.OID
	moved := false
	if o.kind != opInsert {
		was := o.old.tuple(true)
		now := o.new.tuple(true)
		for i := range was {
			switch {
			case rel.full:
			case !rel.isKey(i):
				was[i] = pgoutput.Value{Kind: pgoutput.Null}
			case string(was[i].Data) != string(now[i].Data):
				moved = true
			}
		}
		m.Old, m.OldKind = was, pgoutput.OldKey
		if rel.full {
			m.OldKind = pgoutput.OldFull
		}
	}
	switch o.kind {
	case opInsert:
		m.Kind, m.New = pgoutput.Insert, o.new.tuple(true)
	case opDelete:
		m.Kind = pgoutput.Delete
	default:
		m.Kind, m.New = pgoutput.Update, o.new.tuple(o.bigSent)
		if !moved && !rel.full {
			m.Old, m.OldKind = nil, pgoutput.OldNone
		}
	}
	return m
}

// historyRelations describes the tables as the stream does.
func historyRelations() []*relation {
	var cols []catalog.Column
	for _, n := range []string{"realm_id", "id", "u", "v", "big"} {
		cols = append(cols, catalog.Column{Name: n, Type: "text", Category: "S"})
	}
	out := make([]*relation, historyTables)
	for t := range out {
		out[t] = &relation{table: &catalog.Table{OID: uint32(t + 1)}, columns: cols, keys: []int{0, 1}, arrays: true, realm: 0}
		switch t {
		case refTable:
			out[t].keys, out[t].realm = []int{1}, -1
		case blindTable:
			out[t].keys, out[t].blind = []int{1}, true
		case wholeTable:
			out[t].keys, out[t].full = nil, true
		}
	}
	return out
}
