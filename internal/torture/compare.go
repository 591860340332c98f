package torture

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// maxComplaints bounds how much is said about what is wrong.
const maxComplaints = 30

// Sides names both sides of a comparison.
type Sides struct {
	Source tenant.DSN
	Shards map[string]tenant.DSN // by the names that the placement uses
	Ranges []tenant.Range        // which shard owns which buckets
}

// Found is what a comparison counted.
type Found struct {
	Tables   int
	Rows     int64 // at the source
	Acked    int
	Unknown  int // transactions whose outcome no client learnt
	Resolved int // of them, those that the source has
}

// Compare reads every row of every table of both sides and looks each acknowledged transaction up. Nothing may write
// meanwhile. Its error names what differs.
func Compare(ctx context.Context, s Sides, tries []Try, money int64) (Found, error) {
	var f Found
	var bad complaints
	src, err := pgx.Connect(ctx, s.Source.Reveal())
	if err != nil {
		return f, fmt.Errorf("compare: source: %w", err)
	}
	defer func() { _ = src.Close(ctx) }()
	shards := map[string]*pgx.Conn{}
	for name, dsn := range s.Shards {
		if shards[name], err = pgx.Connect(ctx, dsn.Reveal()); err != nil {
			return f, fmt.Errorf("compare: shard %s: %w", name, err)
		}
		defer func() { _ = shards[name].Close(ctx) }()
	}
	tables, err := tablesOf(ctx, src)
	if err != nil {
		return f, err
	}
	for _, t := range tables {
		n, err := s.table(ctx, t, src, shards, &bad)
		if err != nil {
			return f, err
		}
		f.Tables++
		f.Rows += n
	}
	var sum int64
	for name, c := range shards {
		var n int64
		if err := c.QueryRow(ctx, `SELECT coalesce(sum(balance), 0)::bigint FROM public.accounts`).Scan(&n); err != nil {
			return f, fmt.Errorf("compare: shard %s: %w", name, err)
		}
		sum += n
	}
	if sum != money {
		bad.add("the balances on the shards sum up to %d instead of %d", sum, money)
	}
	if err := journal(ctx, src, shards, tries, &f, &bad); err != nil {
		return f, err
	}
	return f, bad.err()
}

// table is a table as both sides must have it.
type table struct {
	name    string
	columns string // as one row value
	realm   bool
}

func tablesOf(ctx context.Context, src *pgx.Conn) ([]table, error) {
	rows, err := src.Query(ctx, `SELECT c.relname, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), bool_or(a.attname = $1)
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition GROUP BY c.relname ORDER BY c.relname`, RealmKey)
	if err != nil {
		return nil, fmt.Errorf("compare: list the tables: %w", err)
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (t table, err error) {
		return t, r.Scan(&t.name, &t.columns, &t.realm)
	})
}

// content counts the rows of each text, and gives a readable beginning of it.
type content struct {
	count map[[32]byte]int
	text  map[[32]byte]string
	rows  int64
}

func (t table) read(ctx context.Context, c *pgx.Conn, each func(realm string)) (*content, error) {
	realm := `''`
	if t.realm {
		realm = RealmKey + `::text`
	}
	rows, err := c.Query(ctx, `SELECT `+realm+`, ROW(`+t.columns+`)::text FROM public.`+tenant.QuoteIdent(t.name))
	if err != nil {
		return nil, err
	}
	out := &content{count: map[[32]byte]int{}, text: map[[32]byte]string{}}
	var r, text string
	_, err = pgx.ForEachRow(rows, []any{&r, &text}, func() error {
		sum := sha256.Sum256([]byte(text))
		out.count[sum]++
		out.text[sum] = text[:min(len(text), 80)]
		out.rows++
		if each != nil && t.realm {
			each(r)
		}
		return nil
	})
	return out, err
}

func (s Sides) table(ctx context.Context, t table, src *pgx.Conn, shards map[string]*pgx.Conn, bad *complaints) (int64, error) {
	want, err := t.read(ctx, src, nil)
	if err != nil {
		return 0, fmt.Errorf("compare: read %s at the source: %w", t.name, err)
	}
	union := &content{count: map[[32]byte]int{}, text: map[[32]byte]string{}}
	for _, name := range slices.Sorted(maps.Keys(shards)) {
		astray := map[string]int{}
		got, err := t.read(ctx, shards[name], func(realm string) {
			if s.owner(realm) != name {
				astray[realm]++
			}
		})
		if err != nil {
			bad.add("%s on %s cannot be read: %v", t.name, name, err)
			continue
		}
		for realm, n := range astray {
			bad.add("%s: %d rows of realm %s are on %s, which does not own it", t.name, n, realm, name)
		}
		if !t.realm {
			diff(t.name+" on "+name, want, got, bad)
			continue
		}
		for k, n := range got.count {
			union.count[k] += n
			union.text[k] = got.text[k]
		}
	}
	if t.realm {
		diff(t.name, want, union, bad)
	}
	return want.rows, nil
}

func diff(what string, want, got *content, bad *complaints) {
	for k, n := range want.count {
		if got.count[k] != n {
			bad.add("%s: %d times instead of %d: %s", what, got.count[k], n, want.text[k])
		}
	}
	for k, n := range got.count {
		if want.count[k] == 0 {
			bad.add("%s: %d times, but not at the source: %s", what, n, got.text[k])
		}
	}
}

// owner is our own reading of the contract about buckets.
func (s Sides) owner(realm string) string {
	sum := sha256.Sum256([]byte(realm))
	b := (int(sum[0])<<8 | int(sum[1])) & 16383
	for _, r := range s.Ranges {
		if r.From <= b && b <= r.To {
			return r.Shard
		}
	}
	return ""
}

func journalIDs(ctx context.Context, c *pgx.Conn, into map[int64]int) error {
	rows, err := c.Query(ctx, `SELECT id FROM public.journal`)
	if err != nil {
		return err
	}
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error { into[id]++; return nil })
	return err
}

// journal looks up what became of every transaction.
func journal(ctx context.Context, src *pgx.Conn, shards map[string]*pgx.Conn, tries []Try, f *Found, bad *complaints) error {
	there, here := map[int64]int{}, map[int64]int{}
	if err := journalIDs(ctx, src, there); err != nil {
		return fmt.Errorf("compare: read the journal at the source: %w", err)
	}
	for name, c := range shards {
		if err := journalIDs(ctx, c, here); err != nil {
			return fmt.Errorf("compare: read the journal at shard %s: %w", name, err)
		}
	}
	known := map[int64]bool{}
	for _, t := range tries {
		known[t.ID] = true
		want := 0
		switch t.Outcome {
		case Acked:
			f.Acked++
			want = 1
		case Unknown:
			f.Unknown++
			if want = there[t.ID]; want > 0 {
				f.Resolved++
			}
		case Failed:
		}
		if there[t.ID] != want {
			bad.add("transaction %d (%s) is %d times at the source itself instead of %d", t.ID, t.Op, there[t.ID], want)
		}
		if here[t.ID] != want {
			bad.add("transaction %d (%s of %s) is %d times on the shards instead of %d", t.ID, t.Op, t.Realm, here[t.ID], want)
		}
	}
	for id := range here {
		if !known[id] {
			bad.add("transaction %d is on a shard, and nobody tried it", id)
		}
	}
	return nil
}

// complaints gather what is wrong, the first of it in words.
type complaints struct {
	text []string
	more int
}

func (c *complaints) add(format string, args ...any) {
	if len(c.text) == maxComplaints {
		c.more++
		return
	}
	c.text = append(c.text, fmt.Sprintf(format, args...))
}

func (c *complaints) err() error {
	if len(c.text) == 0 {
		return nil
	}
	if c.more > 0 {
		c.text = append(c.text, fmt.Sprintf("and %d more", c.more))
	}
	return errors.New("both sides differ:\n  " + strings.Join(c.text, "\n  "))
}
