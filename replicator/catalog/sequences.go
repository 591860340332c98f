package catalog

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// SequenceStep is what sequences step by when a database lives on more than one shard, as a multiple of their own
// increment: as many shards as a database may have.
const SequenceStep = 64

// SequenceHeadroom is how many of its own increments a sequence is set ahead of the source's last value when there is more
// than one shard. It keeps ids apart that were drawn at the source between reading and freezing it, and leaves the way
// back some room. With one shard the value follows at once: freezing refuses when the source's value has moved on.
const SequenceHeadroom = 1000

// Step is the step for a number of shards: 1 for one shard, else SequenceStep.
func Step(shards int) int {
	if shards > 1 {
		return SequenceStep
	}
	return 1
}

// sequencesPerQuery bounds the length of one statement that reads sequences.
const sequencesPerQuery = 200

func listSequences(ctx context.Context, conn *pgx.Conn, cat *Catalogue, opts tenant.ReplicationOptions) ([]Sequence, error) {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, format_type(s.seqtypid, -1), s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcycle,
		       coalesce(d.refobjid, 0), coalesce(tn.nspname::text, ''), coalesce(tc.relname::text, ''), coalesce(a.attname::text, '')
		FROM pg_sequence s
		JOIN pg_class c ON c.oid = s.seqrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a','i')
		     AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
		LEFT JOIN pg_class tc ON tc.oid = d.refobjid
		LEFT JOIN pg_namespace tn ON tn.oid = tc.relnamespace
		LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		WHERE c.relpersistence <> 't' AND `+userSchema+`
		  AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
		ORDER BY n.nspname, c.relname`, ownSchemas)
	if err != nil {
		return nil, err
	}
	members := cat.index()
	out := []Sequence{}
	var (
		s                   Sequence
		owner               uint32
		schema, table, colu string
	)
	_, err = pgx.ForEachRow(rows, []any{&s.Name.Schema, &s.Name.Name, &s.Type, &s.Increment, &s.Min, &s.Max, &s.Start, &s.Cycle, &owner, &schema, &table, &colu}, func() error {
		s.OwnedBy = ""
		if owner != 0 {
			// A sequence goes with its table, as pg_dump has it.
			if members[owner] == nil {
				return nil
			}
			s.OwnedBy = tenant.TableName{Schema: schema, Name: table}.String() + "." + tenant.QuoteIdent(colu)
		}
		if MatchesAny(opts.Exclude, s.Name) {
			return nil
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// ReadSequences reads the state of every sequence of the catalogue, in its order.
func ReadSequences(ctx context.Context, conn *pgx.Conn, cat *Catalogue) ([]tenant.SequenceValue, error) {
	out := make([]tenant.SequenceValue, len(cat.Sequences))
	for i, s := range cat.Sequences {
		out[i] = tenant.SequenceValue{Name: s.Name, Increment: s.Increment, Min: s.Min, Max: s.Max, Start: s.Start, Cycle: s.Cycle}
	}
	for from := 0; from < len(out); from += sequencesPerQuery {
		part := out[from:min(from+sequencesPerQuery, len(out))]
		if err := readSequenceState(ctx, conn, part); err != nil {
			return nil, fmt.Errorf("read sequences: %w", err)
		}
	}
	return out, nil
}

func readSequenceState(ctx context.Context, conn *pgx.Conn, part []tenant.SequenceValue) error {
	var sql strings.Builder
	for i, s := range part {
		if i > 0 {
			sql.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&sql, "SELECT %d, last_value, is_called FROM %s", i, s.Name.Quoted())
	}
	rows, err := conn.Query(ctx, sql.String(), pgx.QueryExecModeExec)
	if err != nil {
		return err
	}
	var (
		i, last int64
		called  bool
	)
	_, err = pgx.ForEachRow(rows, []any{&i, &last, &called}, func() error {
		part[i].Last, part[i].Called = last, called
		return nil
	})
	return err
}

// SetSequences sets the sequences of one shard so that its values come after the source's and meet no other shard's.
//
// With step 1 a sequence keeps its increment and goes on right after the source's last value. With a greater step, it
// steps by step × its own increment i, from the first multiple of that beyond last + SequenceHeadroom × i, plus
// ordinal × i: shard ordinals thus own disjoint residues, and applications that draw blocks of i ids (hi/lo) get disjoint
// blocks. A sequence that the shard has already carried further is left where it is, so that the call may be repeated.
//
// SequenceSet.Value is the value that the next nextval() returns. A sequence without room left is KindRefused, code
// sequence-exhausted; nothing is changed then.
func SetSequences(ctx context.Context, conn *pgx.Conn, values []tenant.SequenceValue, ordinal, step int) ([]tenant.SequenceSet, error) {
	if step < 1 || ordinal < 0 || (step > 1 && ordinal >= step) {
		return nil, fmt.Errorf("set sequences: shard number %d does not fit step %d", ordinal, step)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("set sequences: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	here := make([]tenant.SequenceValue, len(values))
	copy(here, values)
	for from := 0; from < len(here); from += sequencesPerQuery {
		if err := readSequenceState(ctx, conn, here[from:min(from+sequencesPerQuery, len(here))]); err != nil {
			return nil, fmt.Errorf("read the shard's sequences: %w", err)
		}
	}
	increments, err := sequenceIncrements(ctx, conn, values)
	if err != nil {
		return nil, fmt.Errorf("read the shard's sequences: %w", err)
	}

	out := make([]tenant.SequenceSet, 0, len(values))
	var script strings.Builder // one round trip, nothing to be prepared: writers wait
	for i, v := range values {
		next, increment, err := NextValue(v, ordinal, step)
		if err != nil {
			return nil, err
		}
		if increments[v.Name] == increment {
			if mine, ok := upcoming(here[i], increment); ok && ahead(mine, next, increment) {
				out = append(out, tenant.SequenceSet{Name: v.Name.String(), Value: mine})
				continue
			}
		} else {
			fmt.Fprintf(&script, "ALTER SEQUENCE %s INCREMENT BY %d;\n", v.Name.Quoted(), increment)
		}
		fmt.Fprintf(&script, "SELECT setval(%s::regclass, %d, false);\n", tenant.QuoteLiteral(v.Name.Quoted()), next)
		out = append(out, tenant.SequenceSet{Name: v.Name.String(), Value: next})
	}
	if script.Len() > 0 {
		if _, err := tx.Exec(ctx, script.String(), pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, fmt.Errorf("set sequences: %w", err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, fmt.Errorf("set sequences: %w", err)
	}
	return out, nil
}

func sequenceIncrements(ctx context.Context, conn *pgx.Conn, values []tenant.SequenceValue) (map[tenant.TableName]int64, error) {
	schemas, names := make([]string, len(values)), make([]string, len(values))
	for i, v := range values {
		schemas[i], names[i] = v.Name.Schema, v.Name.Name
	}
	rows, err := conn.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, s.seqincrement
		FROM unnest($1::text[], $2::text[]) w(schema, name)
		JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
		JOIN pg_sequence s ON s.seqrelid = c.oid`, schemas, names)
	if err != nil {
		return nil, err
	}
	out := make(map[tenant.TableName]int64, len(values))
	var name tenant.TableName
	var inc int64
	_, err = pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &inc}, func() error {
		out[name] = inc
		return nil
	})
	return out, err
}

// upcoming is what nextval() would return; false when the sequence has run out.
func upcoming(v tenant.SequenceValue, increment int64) (int64, bool) {
	if !v.Called {
		return v.Last, true
	}
	return add(v.Last, increment)
}

func ahead(a, b, increment int64) bool {
	if increment < 0 {
		return a <= b
	}
	return a >= b
}

// NextValue computes a shard's first value and increment, as SetSequences would set them. No room left: KindRefused, code
// sequence-exhausted.
func NextValue(v tenant.SequenceValue, ordinal, step int) (next, increment int64, err error) {
	exhausted := &tenant.Error{
		Kind: tenant.KindRefused, Code: "sequence-exhausted",
		Message: fmt.Sprintf("sequence %s has no room left beyond %d for shard number %d", v.Name, v.Last, ordinal),
		Hint:    "widen it at the source and the shards: ALTER SEQUENCE … AS bigint, with its column",
	}
	inc := v.Increment
	if inc == 0 {
		inc = 1
	}
	var ok bool
	if step == 1 {
		increment = inc
		next, ok = add(v.Last, inc)
	} else {
		var o1, o2, o3 bool
		increment, o1 = mul(inc, int64(step))
		var head int64
		head, o2 = mul(inc, SequenceHeadroom)
		next, o3 = add(v.Last, head)
		if !o1 || !o2 || !o3 {
			return 0, 0, exhausted
		}
		next, ok = align(next, increment, inc*int64(ordinal))
	}
	if v.Cycle && (!ok || next > v.Max || next < v.Min) {
		// It would wrap anyway: its values are not unique, only spread.
		base := v.Min
		if inc < 0 {
			base = v.Max
		}
		next, ok = add(base, inc*int64(ordinal))
	}
	if !ok || next > v.Max || next < v.Min {
		return 0, 0, exhausted
	}
	return next, increment, nil
}

// align finds the first value strictly beyond from, in the direction of increment, that is offset away from a multiple of it.
func align(from, increment, offset int64) (int64, bool) {
	if increment < 0 {
		if from == -from && from != 0 {
			return 0, false
		}
		n, ok := align(-from, -increment, -offset)
		return -n, ok
	}
	base, ok := add(from, -offset)
	if !ok {
		return 0, false
	}
	q := base / increment
	if base%increment != 0 && base < 0 {
		q-- // towards minus infinity
	}
	m, ok := mul(q+1, increment)
	if !ok {
		return 0, false
	}
	return add(m, offset)
}

func add(a, b int64) (int64, bool) {
	c := a + b
	return c, (c > a) == (b > 0)
}

func mul(a, b int64) (int64, bool) {
	if a == 0 || b == 0 {
		return 0, true
	}
	c := a * b
	return c, c/b == a
}

// FreezeSequences makes the source's sequences stop at the given values, in the transaction that decides: MAXVALUE (for
// descending ones MINVALUE) becomes the last value. It fails, with SQLSTATE 22023, when a sequence has been drawn from
// since values were read: read again then. Until the transaction ends, nextval() waits.
func FreezeSequences(ctx context.Context, tx pgx.Tx, values []tenant.SequenceValue) error {
	if len(values) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, FreezeSQL(values), pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("freeze sequences: %w", err)
	}
	return nil
}

// FreezeSQL is what FreezeSequences runs, as a script for one round trip.
func FreezeSQL(values []tenant.SequenceValue) string {
	var b strings.Builder
	for _, v := range values {
		b.WriteString(freezeSQL(v) + ";\n")
	}
	return b.String()
}

func freezeSQL(v tenant.SequenceValue) string {
	lo, hi, start := v.Min, v.Last, min(v.Start, v.Last)
	if v.Increment < 0 {
		lo, hi, start = v.Last, v.Max, max(v.Start, v.Last)
	}
	// MINVALUE must stay below MAXVALUE, also for a sequence that stands at its bound.
	if lo == hi {
		if v.Increment < 0 {
			hi++
		} else {
			lo--
		}
	}
	return fmt.Sprintf("ALTER SEQUENCE %s MINVALUE %d MAXVALUE %d START WITH %d NO CYCLE", v.Name.Quoted(), lo, hi, start)
}

// ThawSequences takes FreezeSequences back; their values stay.
func ThawSequences(ctx context.Context, conn *pgx.Conn, values []tenant.SequenceValue) error {
	batch := &pgx.Batch{}
	for _, v := range values {
		cycle := "NO CYCLE"
		if v.Cycle {
			cycle = "CYCLE"
		}
		batch.Queue(fmt.Sprintf("ALTER SEQUENCE %s MINVALUE %d MAXVALUE %d START WITH %d %s", v.Name.Quoted(), v.Min, v.Max, v.Start, cycle))
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("thaw sequences: %w", err)
	}
	return nil
}
