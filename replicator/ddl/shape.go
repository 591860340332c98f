package ddl

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Shape is the source's schema at one position, as far as it is followed, by the source's OIDs.
type Shape struct {
	Tables    map[uint32]*Table    `json:"tables"` // with partitions
	Enums     map[uint32]*Enum     `json:"enums"`
	Sequences map[uint32]*Sequence `json:"sequences"`
}

// Table is a table or partition. Published, Empty and Failed are those of when it was recorded.
type Table struct {
	OID         uint32       `json:"oid"`
	Schema      string       `json:"schema"`
	Name        string       `json:"name"`
	Kind        string       `json:"kind"`        // r, p
	Persistence string       `json:"persistence"` // p, u
	Partition   bool         `json:"partition"`
	Root        uint32       `json:"root"` // itself when it is no partition
	Parents     []uint32     `json:"parents"`
	Key         string       `json:"key"`   // of a partitioned table: RANGE (at)
	Bound       string       `json:"bound"` // of a partition: FOR VALUES …
	ReplIdent   string       `json:"replident"`
	Published   []string     `json:"published"`
	Empty       bool         `json:"empty"`  // known to have no rows
	Failed      string       `json:"failed"` // why it could not be published
	Columns     []Column     `json:"columns"`
	Constraints []Constraint `json:"constraints"`
	Indexes     []Index      `json:"indexes"`
}

// Column of a table; Num tells a column that was renamed from another one.
type Column struct {
	Num       int16   `json:"num"`
	Name      string  `json:"name"`
	TypeOID   uint32  `json:"type_oid"`
	Type      string  `json:"type"`
	TypeMod   string  `json:"type_mod"`
	Mod       int32   `json:"mod"`
	Base      uint32  `json:"base"`
	BaseType  string  `json:"base_type"` // of a domain: the type below it
	Category  string  `json:"category"`
	Generated string  `json:"generated"` // "", s stored, v virtual
	Identity  string  `json:"identity"`  // "", a always, d by default
	NotNull   bool    `json:"not_null"`
	Default   string  `json:"default"` // or what it is generated from
	Inherited bool    `json:"inherited"`
	Missing   *string `json:"missing"` // what rows have that are older than the column; nil: NULL, or no such rows
	Collation string  `json:"collation"`
	Equal     string  `json:"equal"`
}

// Constraint of a table, without those that partitions and children have from their parents.
type Constraint struct {
	OID        uint32   `json:"oid"`
	Name       string   `json:"name"`
	Type       string   `json:"type"` // p, u, x, f, c
	Def        string   `json:"def"`
	Validated  bool     `json:"validated"`
	Deferrable bool     `json:"deferrable"`
	Deferred   bool     `json:"deferred"`
	Points     uint32   `json:"points"` // of a foreign key: the table
	Columns    []string `json:"columns"`
}

// Index of a table. Own is false for one that backs a constraint.
type Index struct {
	OID       uint32   `json:"oid"`
	Name      string   `json:"name"`
	Def       string   `json:"def"`
	Unique    bool     `json:"unique"`
	Valid     bool     `json:"valid"`
	Own       bool     `json:"own"`
	Identity  bool     `json:"identity"`
	Primary   bool     `json:"primary"`
	Immediate bool     `json:"immediate"`
	Parent    uint32   `json:"parent"` // the index of the partitioned table that it is part of
	Columns   []string `json:"columns"`
}

// Enum is an enum type.
type Enum struct {
	OID    uint32  `json:"oid"`
	Schema string  `json:"schema"`
	Name   string  `json:"name"`
	Labels []Label `json:"labels"` // in their order
}

// Label of an enum; its OID stays when it is renamed.
type Label struct {
	OID   uint32 `json:"oid"`
	Label string `json:"label"`
}

// Sequence of the source.
type Sequence struct {
	OID       uint32 `json:"oid"`
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Type      string `json:"type"`
	Increment int64  `json:"increment"`
	Min       int64  `json:"min"`
	Max       int64  `json:"max"`
	Start     int64  `json:"start"`
	Cache     int64  `json:"cache"`
	Cycle     bool   `json:"cycle"`
	Owner     uint32 `json:"owner"`    // table, 0: free
	Column    int16  `json:"column"`   // of the owner
	Internal  bool   `json:"internal"` // of an identity column
}

// Row is what the event triggers recorded of one command.
type Row struct {
	Tables    []*Table          `json:"tables"`
	Enums     []*Enum           `json:"enums"`
	Sequences []*Sequence       `json:"sequences"`
	Dropped   []Dropped         `json:"dropped"`
	Others    []Other           `json:"others"`
	Plain     bool              `json:"plain"` // no USING was in the command
	Settings  map[string]string `json:"settings"`
}

// Dropped is an object that a command dropped.
type Dropped struct {
	Class    string `json:"class"`
	OID      uint32 `json:"oid"`
	Type     string `json:"type"`
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	Identity string `json:"identity"`
	Original bool   `json:"original"`
}

// Other is a command on an object that is not carried.
type Other struct {
	Tag  string `json:"tag"`
	Type string `json:"type"`
	Name string `json:"name"`
}

// TableName is the table's name.
func (t *Table) TableName() tenant.TableName {
	return tenant.TableName{Schema: t.Schema, Name: t.Name}
}

func (t *Table) quoted() string { return t.TableName().Quoted() }

func (t *Table) column(num int16) *Column {
	for i := range t.Columns {
		if t.Columns[i].Num == num {
			return &t.Columns[i]
		}
	}
	return nil
}

func (t *Table) named(name string) *Column {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return &t.Columns[i]
		}
	}
	return nil
}

func (s *Sequence) quoted() string {
	return tenant.TableName{Schema: s.Schema, Name: s.Name}.Quoted()
}

func (e *Enum) quoted() string {
	return tenant.TableName{Schema: e.Schema, Name: e.Name}.Quoted()
}

// Describe reads the shape of what the catalogue lists, as conn sees it. The functions of SourceChange must be there.
func Describe(ctx context.Context, conn *pgx.Conn, cat *catalog.Catalogue) (*Shape, error) {
	s := &Shape{Tables: map[uint32]*Table{}, Enums: map[uint32]*Enum{}, Sequences: map[uint32]*Sequence{}}
	var oids []uint32
	for i := range cat.Tables {
		t := &cat.Tables[i]
		oids = append(oids, t.OID)
		for _, l := range slices.Concat(t.Branches, t.Leaves) {
			if l.OID != t.OID {
				oids = append(oids, l.OID)
			}
		}
	}
	const schemas = ` n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')`
	// OFFSET 0 keeps the function, which costs most of this, from being called twice for each table.
	err := each(ctx, conn, `SELECT d::text FROM (SELECT rehome.ddl_table(o) AS d FROM unnest($1::oid[]) o OFFSET 0) t WHERE d IS NOT NULL`, func(t *Table) { s.Tables[t.OID] = t }, oids)
	if err == nil {
		err = each(ctx, conn, `SELECT rehome.ddl_enum(t.oid)::text FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype = 'e' AND`+schemas, func(e *Enum) { s.Enums[e.OID] = e })
	}
	if err == nil {
		known := map[tenant.TableName]bool{}
		for _, q := range cat.Sequences {
			known[q.Name] = true
		}
		err = each(ctx, conn, `SELECT rehome.ddl_sequence(c.oid)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND`+schemas, func(q *Sequence) {
			if known[tenant.TableName{Schema: q.Schema, Name: q.Name}] {
				s.Sequences[q.OID] = q
			}
		})
	}
	if err != nil {
		return nil, fmt.Errorf("describe the source's schema: %w", err)
	}
	return s, nil
}

func each[T any](ctx context.Context, conn *pgx.Conn, sql string, f func(*T), args ...any) error {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	var raw []byte
	_, err = pgx.ForEachRow(rows, []any{&raw}, func() error {
		v := new(T)
		if err := json.Unmarshal(raw, v); err != nil {
			return err
		}
		f(v)
		return nil
	})
	return err
}

// clone copies the maps; what they point to is never changed.
func (s *Shape) clone() *Shape {
	out := &Shape{Tables: make(map[uint32]*Table, len(s.Tables)), Enums: make(map[uint32]*Enum, len(s.Enums)), Sequences: make(map[uint32]*Sequence, len(s.Sequences))}
	maps.Copy(out.Tables, s.Tables)
	maps.Copy(out.Enums, s.Enums)
	maps.Copy(out.Sequences, s.Sequences)
	return out
}
