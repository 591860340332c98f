package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// rowAt is a row on one side.
type rowAt struct{ shard, key string }

// nameColumns finds out which columns differ in the rows that the drill-down found different. It reads hashes of columns,
// in one more scan of each side that has such a row; that is the price of a fault only.
func nameColumns(ctx context.Context, st statements, t *catalog.Table, f *findings, source *side, shards []*side) error {
	found := map[rowAt][]string{}
	for _, s := range append([]*side{source}, shards...) {
		var hashes []int64
		for at, h := range f.different {
			if (s.name == "" || at.shard == s.name) && !slices.Contains(hashes, h) {
				hashes = append(hashes, h)
			}
		}
		if len(hashes) == 0 {
			continue
		}
		if err := s.columnHashes(ctx, st.columns, hashes, found); err != nil {
			return err
		}
	}
	for i := range f.v.Differences {
		d := &f.v.Differences[i]
		if d.Kind != Different {
			continue
		}
		a, b := found[rowAt{"", d.Key}], found[rowAt{d.Shard, d.Key}]
		if len(a) != len(t.Columns) || len(b) != len(t.Columns) {
			continue // several rows of that key, on a side whose key is broken
		}
		d.Columns = nil
		for k, c := range t.Columns {
			if a[k] != b[k] {
				d.Columns = append(d.Columns, c.Name)
			}
		}
	}
	clear(f.different)
	return nil
}

func (s *side) columnHashes(ctx context.Context, sql string, hashes []int64, into map[rowAt][]string) error {
	rows, err := s.conn.Query(ctx, sql, hashes)
	if err != nil {
		return fmt.Errorf("%s: name the columns that differ: %w", s, err)
	}
	var key string
	var values []string
	_, err = pgx.ForEachRow(rows, []any{&key, &values}, func() error {
		at := rowAt{s.name, key}
		if _, twice := into[at]; twice {
			into[at] = nil
			return nil
		}
		into[at] = slices.Clone(values)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: name the columns that differ: %w", s, err)
	}
	return nil
}

// columnHashesOf is an array of the columns' hashes. A column is hashed as a row of its own, which every type can be
// printed in, and which tells NULL from empty.
func columnHashesOf(t *catalog.Table, transcode bool) string {
	list := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		list[i] = "hashtextextended(" + canonical("ROW(t."+tenant.QuoteIdent(c.Name)+")::text", transcode) + ", 1)::text"
	}
	return "ARRAY[" + strings.Join(list, ", ") + "]::text[]"
}
