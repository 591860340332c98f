package catalog

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

// readIdentities fills primary keys and replica identities of tables, branches and leaves.
//
// With publish_via_partition_root the stream announces the root's identity, while old rows are logged with the leaf's:
// both are read, and must agree.
func readIdentities(ctx context.Context, conn *pgx.Conn, cat *Catalogue) error {
	ids := cat.index()
	oids := make([]uint32, 0, len(ids))
	for o := range ids {
		oids = append(oids, o)
	}
	rows, err := conn.Query(ctx, `
		SELECT i.indrelid, c.relname::text, i.indisprimary, i.indisreplident, i.indimmediate, i.indisvalid,
		       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, ord)
		             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
		             WHERE k.ord <= i.indnkeyatts ORDER BY k.ord)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		WHERE i.indrelid = ANY ($1)`, oids)
	if err != nil {
		return err
	}
	tables := make(map[uint32]*Table, len(cat.Tables))
	for i := range cat.Tables {
		tables[cat.Tables[i].OID] = &cat.Tables[i]
	}
	var (
		rel                                 uint32
		index                               string
		primary, replident, immediate, good bool
		cols                                []string
	)
	_, err = pgx.ForEachRow(rows, []any{&rel, &index, &primary, &replident, &immediate, &good, &cols}, func() error {
		if t := tables[rel]; t != nil {
			t.Indexes++
		}
		if t := tables[rel]; t != nil && primary {
			t.PrimaryKey = slices.Clone(cols)
			t.DeferrableKey = !immediate
		}
		for _, id := range ids[rel] {
			// A deferrable primary key is no identity (RelationGetIndexList skips it).
			if (id.Kind == "d" && primary && immediate && good) || (id.Kind == "i" && replident) {
				id.Index, id.Columns = index, slices.Clone(cols)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range cat.Tables {
		t := &cat.Tables[i]
		all := make([]string, len(t.Columns))
		for j, c := range t.Columns {
			all[j] = c.Name
		}
		fill := func(id *Identity) {
			if id.Kind == "f" {
				id.Columns = slices.Clone(all)
			}
			if id.Columns == nil {
				id.Columns = []string{}
			}
		}
		fill(&t.Identity)
		for j := range t.Branches {
			fill(&t.Branches[j].Identity)
		}
		for j := range t.Leaves {
			fill(&t.Leaves[j].Identity)
		}
	}
	return nil
}

// Has reports whether the identity contains a column.
func (id Identity) Has(column string) bool { return slices.Contains(id.Columns, column) }

// None reports whether there is no identity: nothing could name a row to update or delete.
func (id Identity) None() bool { return len(id.Columns) == 0 }

// Covers reports whether everything that other announces is logged by id.
func (id Identity) Covers(other Identity) bool {
	if id.Kind == "f" {
		return true
	}
	if other.Kind == "f" {
		return false
	}
	for _, c := range other.Columns {
		if !id.Has(c) {
			return false
		}
	}
	return true
}

// readNullability notes for each leaf and branch whether its realm key column allows NULL; a partition may be stricter
// than its root.
func readNullability(ctx context.Context, conn *pgx.Conn, cat *Catalogue) error {
	leaves := make(map[uint32]*Leaf)
	var oids []uint32
	var names []string
	for i := range cat.Tables {
		t := &cat.Tables[i]
		if !t.Sharded() {
			continue
		}
		for _, set := range [][]Leaf{t.Branches, t.Leaves} {
			for j := range set {
				leaves[set[j].OID] = &set[j]
				oids = append(oids, set[j].OID)
				names = append(names, t.RealmKey)
			}
		}
	}
	rows, err := conn.Query(ctx, `
		SELECT a.attrelid, NOT (`+notNull+`)
		FROM unnest($1::oid[], $2::text[]) w(rel, col) JOIN pg_attribute a ON a.attrelid = w.rel AND a.attname = w.col
		WHERE a.attnum > 0 AND NOT a.attisdropped`, oids, names)
	if err != nil {
		return err
	}
	var rel uint32
	var nullable bool
	_, err = pgx.ForEachRow(rows, []any{&rel, &nullable}, func() error {
		leaves[rel].Nullable = nullable
		return nil
	})
	return err
}
