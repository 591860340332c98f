package verify

import (
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// classes is how many classes a table's rows fall into. It bounds what comes back from a scan, and how much of a table
// is read again for one row that differs: a thousandth.
const classes = 1024

// settings make every type's text the same on both sides, and the plans predictable. row_security=off turns a policy
// that would hide rows into an error.
const settings = `SET LOCAL client_encoding = 'UTF8'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC';
SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'; SET LOCAL xmloption = 'content'; SET LOCAL search_path = '';
SET LOCAL quote_all_identifiers = off; SET LOCAL row_security = off; SET LOCAL statement_timeout = 0; SET LOCAL jit = off`

// statements are the queries for one table. Each reads the table in a subquery that ends in LIMIT ALL: it changes nothing
// but keeps the planner from pulling the subquery up, so that a row's texts are made once and hashed twice; unlike OFFSET 0
// it leaves parallel plans with partial aggregation possible.
type statements struct {
	keyed    bool
	totals   string // rows, sum 1, sum 2
	classes  string // class, rows, sum 1, sum 2
	drill    string // $1 classes: key hash, key, realm, hash 1, hash 2, rows; ordered by key hash
	byRealm  string // the table's realms with their rows: r, n
	rowRealm string // all rows: key k, realm r
	columns  string // of keyed tables; $1 key hashes: key, the columns' hashes
}

// newStatements writes the queries for a table. With transcode the texts are hashed as UTF-8, whatever the server's encoding is.
func newStatements(t *catalog.Table, transcode bool) statements {
	return newStatementsWithin(t, transcode, "", "")
}

// newStatementsWithin writes queries that read only rows for which a condition on t holds, the unit's; totals, classes and
// byRealm also heed that of a part of it.
func newStatementsWithin(t *catalog.Table, transcode bool, unit, part string) statements {
	var s statements
	table := fromTable(t)
	from := table + " t" + whereText(unit)
	within := table + " t" + whereText(unit, part)
	row := newRowHash(t, transcode)
	keyHash, key, values := "", "'row ' || left("+rowText(t)+", 200)", "NULL::text[]"
	keyColumns := identityColumns(t)
	if s.keyed = len(keyColumns) > 0; s.keyed {
		keyHash, key, values = hashOf(keyColumns, transcode), textOf(keyColumns), valuesOf(keyColumns)
	}
	realm := "NULL::text"
	if t.Sharded() {
		realm = "t." + tenant.QuoteIdent(t.RealmKey) + "::text"
	}

	s.totals = totalsOf(t, row, within)
	s.rowRealm = fmt.Sprintf(`SELECT %s AS k, %s AS r, %s AS h, %s AS kv FROM %s`, key, realm, row.inline(1), values, from)
	if s.keyed {
		s.classes = fmt.Sprintf(`SELECT kh & %d, count(*), sum(%s)::text, sum(%s)::text
			FROM (SELECT %s AS kh, %s FROM %s LIMIT ALL) x GROUP BY 1`, classes-1, row.over(1), row.over(2), keyHash, row.columns(), within)
		s.drill = fmt.Sprintf(`SELECT kh, k, realm, %s, %s, count(*), kv
			FROM (SELECT %s AS kh, %s AS k, %s AS realm, %s AS kv, %s FROM %s LIMIT ALL) x
			WHERE kh & %d = ANY ($1::bigint[]) GROUP BY 1, 2, 3, 4, 5, 7 ORDER BY 1`, row.over(1), row.over(2), keyHash, key, realm, values, row.columns(), from, classes-1)
		s.columns = fmt.Sprintf(`SELECT %s, %s FROM %s t%s`, key, columnHashesOf(t, transcode), table, whereText(unit, keyHash+" = ANY ($1::bigint[])"))
	} else {
		hashes := fmt.Sprintf("%s AS h1, %s AS h2", row.over(1), row.over(2))
		s.classes = fmt.Sprintf(`SELECT h1 & %d, count(*), sum(h1)::text, sum(h2)::text
			FROM (SELECT %s FROM (SELECT %s FROM %s LIMIT ALL) y LIMIT ALL) x GROUP BY 1`, classes-1, hashes, row.columns(), within)
		s.drill = fmt.Sprintf(`SELECT h1, min(k), min(realm), h1, h2, count(*), NULL::text[]
			FROM (SELECT %s, k, realm FROM (SELECT %s AS k, %s AS realm, %s FROM %s LIMIT ALL) y LIMIT ALL) x
			WHERE h1 & %d = ANY ($1::bigint[]) GROUP BY h1, h2 ORDER BY 1`, hashes, key, realm, row.columns(), from, classes-1)
	}
	if t.Sharded() {
		s.byRealm = byRealmOf(t, within)
	}
	return s
}

// totalsOf sums up what a table, or a part of it, has: rows, sum 1, sum 2.
func totalsOf(t *catalog.Table, row rowHash, within string) string {
	return fmt.Sprintf(`SELECT count(*), sum(%s)::text, sum(%s)::text FROM (SELECT %s FROM %s LIMIT ALL) x`, row.over(1), row.over(2), row.columns(), within)
}

// byRealmOf lists the realms of a table, or of a part of it: r, n.
func byRealmOf(t *catalog.Table, within string) string {
	col := "t." + tenant.QuoteIdent(t.RealmKey)
	return fmt.Sprintf(`SELECT %s::text AS r, count(*) AS n FROM %s GROUP BY %s`, col, within, col)
}

// misplacedCount counts the rows whose realm the shard does not own. By realm first: far cheaper than hashing every row's.
func misplacedCount(byRealm string, p tenant.Placement, shard string) string {
	here, elsewhere := pins(p, shard)
	return misplacedAmong("coalesce(sum(n), 0)::bigint", byRealm, p, shard, textArray(here), textArray(elsewhere))
}

func textArray(values []string) string {
	quoted := make([]string, len(values))
	for i := range values {
		quoted[i] = tenant.QuoteLiteral(values[i])
	}
	return "ARRAY[" + strings.Join(quoted, ",") + "]"
}

// whereText joins conditions; empty ones do not count.
func whereText(conditions ...string) string {
	var list []string
	for _, c := range conditions {
		if c != "" {
			list = append(list, "("+c+")")
		}
	}
	if len(list) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(list, " AND ")
}

// identityColumns are the columns that name a row: those of the replica identity, or of the primary key where the identity
// is the whole row; none where neither is there.
func identityColumns(t *catalog.Table) []catalog.Column {
	names := t.Identity.Columns
	if t.Identity.Kind != "d" && t.Identity.Kind != "i" {
		if names = t.PrimaryKey; t.DeferrableKey {
			return nil
		}
	}
	var out []catalog.Column
	for _, name := range names {
		for _, c := range t.Columns {
			if c.Name == name {
				out = append(out, c)
			}
		}
	}
	return out
}

// rowText is a row's canonical text: all columns, generated ones too, by name and in the catalogue's order.
func rowText(t *catalog.Table) string {
	cols := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		cols[i] = "t." + tenant.QuoteIdent(c.Name)
	}
	return "ROW(" + strings.Join(cols, ", ") + ")::text"
}

// canonical makes a text hash the same on both sides: by its bytes, and as UTF-8 if the servers' encodings differ.
func canonical(expr string, transcode bool) string {
	return encoded(expr, transcode) + ` COLLATE "C"`
}

func encoded(expr string, transcode bool) string {
	if transcode {
		return "encode(convert_to(" + expr + ", 'UTF8'), 'hex')"
	}
	return expr
}

// hashOf chains the hashes of the identity's columns: each is the seed of the next.
func hashOf(columns []catalog.Column, transcode bool) string {
	h := "0"
	for _, c := range columns {
		col := "t." + tenant.QuoteIdent(c.Name)
		switch c.BaseOID {
		case oidInt2, oidInt4, oidInt8:
			h = "hashint8extended(" + col + "::bigint, " + h + ")"
		case oidUUID:
			h = "uuid_hash_extended(" + col + "::uuid, " + h + ")"
		default:
			h = "hashtextextended(" + canonical(col+"::text", transcode) + ", " + h + ")"
		}
	}
	return "coalesce(" + h + ", 0)" // an identity is never NULL, and if a side is broken so, that must not hide its rows
}

// textOf is a row's key for people, and unambiguous: strings are quoted.
func textOf(columns []catalog.Column) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		value := "t." + tenant.QuoteIdent(c.Name) + "::text"
		switch c.Category {
		case "N", "B", "D", "U": // numbers, booleans, dates, uuid, bytea and such: no text of theirs looks like another column
			value = "coalesce(" + value + ", 'NULL')"
		default:
			value = "quote_nullable(" + value + ")"
		}
		parts[i] = tenant.QuoteLiteral(c.Name+"=") + " || " + value
	}
	return strings.Join(parts, " || ', ' || ")
}

// valuesOf is a row's key as the texts of its columns, from which it can be found again.
func valuesOf(columns []catalog.Column) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = "t." + tenant.QuoteIdent(c.Name) + "::text"
	}
	return "ARRAY[" + strings.Join(parts, ", ") + "]"
}

// misplaced selects from a subquery that gives realms as r the rows whose realm the shard does not own. $1 are the realms
// pinned to it, $2 those pinned elsewhere.
func misplaced(what, from string, p tenant.Placement, shard string) string {
	return misplacedAmong(what, from, p, shard, "$1", "$2")
}

func misplacedAmong(what, from string, p tenant.Placement, shard, here, elsewhere string) string {
	var ranges []string
	for _, r := range p.Ranges {
		if r.Shard == shard {
			ranges = append(ranges, fmt.Sprintf("b BETWEEN %d AND %d", r.From, r.To))
		}
	}
	if len(ranges) == 0 {
		ranges = []string{"false"}
	}
	return fmt.Sprintf(`SELECT %s FROM (SELECT *, (get_byte(digest, 0) * 256 + get_byte(digest, 1)) & %d AS b FROM
			(SELECT *, sha256(convert_to(r, 'UTF8')) AS digest FROM (%s) w LIMIT ALL) x LIMIT ALL) y
		WHERE CASE WHEN r COLLATE "C" = ANY (%s::text[]) THEN true WHEN r COLLATE "C" = ANY (%s::text[]) THEN false ELSE %s END IS NOT TRUE`,
		what, tenant.Buckets-1, from, here, elsewhere, strings.Join(ranges, " OR "))
}

// pins parts the pinned realms into the shard's own and the others'.
func pins(p tenant.Placement, shard string) (here, elsewhere []string) {
	here, elsewhere = []string{}, []string{}
	for realm, s := range p.Pins {
		if s == shard {
			here = append(here, realm)
		} else {
			elsewhere = append(elsewhere, realm)
		}
	}
	return here, elsewhere
}

// ownsAll reports whether every realm belongs to the shard, so that no row can be misplaced there.
func ownsAll(p tenant.Placement, shard string) bool {
	for _, s := range p.Shards() {
		if s != shard {
			return false
		}
	}
	return true
}
