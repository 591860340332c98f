package catdiff

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Snapshot is a catalogue as sorted lines, each led by its section: "trigger public.items {…}".
type Snapshot []string

// SequenceValues is the section of what sequences stand at.
const SequenceValues = "sequence-value"

// Take reads the catalogue of a database, and what the server keeps that concerns it, in one snapshot. The session must
// see everything: a superuser's.
func Take(ctx context.Context, conn *pgx.Conn) (Snapshot, error) {
	var out Snapshot
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Names are written with their schemas that way.
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = pg_catalog`); err != nil {
			return err
		}
		for _, s := range sections() {
			rows, err := tx.Query(ctx, `SELECT line::text FROM (`+s.sql+`) AS section(line)`)
			if err != nil {
				return fmt.Errorf("section %s: %w", s.name, err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return fmt.Errorf("section %s: %w", s.name, err)
			}
			for _, l := range lines {
				out = append(out, s.name+" "+l)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the catalogue: %w", err)
	}
	slices.Sort(out)
	return out, nil
}

// Without leaves sections out.
func (s Snapshot) Without(names ...string) Snapshot {
	return slices.DeleteFunc(slices.Clone(s), func(l string) bool {
		name, _, _ := strings.Cut(l, " ")
		return slices.Contains(names, name)
	})
}

// Minus is what s has and other has not, each as often as it has it more.
func (s Snapshot) Minus(other Snapshot) Snapshot {
	count := map[string]int{}
	for _, l := range other {
		count[l]++
	}
	var out Snapshot
	for _, l := range s {
		if count[l] > 0 {
			count[l]--
			continue
		}
		out = append(out, l)
	}
	return out
}

// Diff is what differs: lines that went, led by "-", and lines that came, led by "+". Empty: nothing.
func Diff(before, after Snapshot) string {
	var b strings.Builder
	for _, l := range before.Minus(after) {
		b.WriteString("- " + l + "\n")
	}
	for _, l := range after.Minus(before) {
		b.WriteString("+ " + l + "\n")
	}
	return b.String()
}
