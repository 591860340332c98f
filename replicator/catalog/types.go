// Package catalog describes the source of a replication: its tables with their columns, replica identities, realm keys
// and leaves, its sequences and its identity as a server. It also plans and makes the replica identities that routing
// by realm needs (--fix-identity), each with the statement that takes it back.
//
// A Catalogue is read once, before the slot is made, and is then immutable: copy, stream, route and verify all work from
// the same description. What changes afterwards is noticed by comparing against it (filenodes, Relation messages).
package catalog

import "github.com/rehomedb/rehome/tenant"

// Server identifies a Postgres server and what matters of its settings.
type Server struct {
	SystemIdentifier string `json:"system_identifier"`
	Timeline         int    `json:"timeline"`
	Version          int    `json:"version"` // server_version_num
	Database         string `json:"database"`
	Encoding         string `json:"encoding"`
	Collate          string `json:"collate"`
	CType            string `json:"ctype"`
}

// Catalogue is what is published: tables in the order largest first, and sequences.
type Catalogue struct {
	Server    Server     `json:"server"`
	Tables    []Table    `json:"tables"`
	Sequences []Sequence `json:"sequences"`
}

// Table is a published table: an ordinary table, or the root of a partition tree.
type Table struct {
	OID         uint32           `json:"oid"`
	Name        tenant.TableName `json:"name"`
	Partitioned bool             `json:"partitioned,omitempty"`
	Leaves      []Leaf           `json:"leaves"`             // what holds rows: the table itself, or its leaf partitions
	Branches    []Leaf           `json:"branches,omitempty"` // partitioned tables between root and leaves, top down
	Children    bool             `json:"children,omitempty"` // has inheritance children, which are tables of their own
	Columns     []Column         `json:"columns"`
	Identity    Identity         `json:"identity"`
	PrimaryKey  []string         `json:"primary_key,omitempty"`
	Indexes     int              `json:"indexes,omitempty"` // how many it has, the key's included
	// DeferrableKey: the primary key is deferrable and therefore no replica identity.
	DeferrableKey bool   `json:"deferrable_key,omitempty"`
	RealmKey      string `json:"realm_key,omitempty"` // empty: a reference table
	// RealmFixed: the owner asserts that no row changes its realm, so that the replica identity may lack the realm key.
	RealmFixed bool  `json:"realm_fixed,omitempty"`
	Rows       int64 `json:"rows"`  // the planner's estimate
	Bytes      int64 `json:"bytes"` // heap and TOAST of all leaves
}

// Sharded reports whether each row lives on one shard only.
func (t *Table) Sharded() bool { return t.RealmKey != "" }

// Copied lists the columns that are copied and streamed: all but stored generated ones.
func (t *Table) Copied() []Column {
	out := make([]Column, 0, len(t.Columns))
	for _, c := range t.Columns {
		if !c.Generated {
			out = append(out, c)
		}
	}
	return out
}

// Leaf is a relation with storage of its own, or (in Table.Branches) a partitioned table between root and leaves.
type Leaf struct {
	OID      uint32           `json:"oid"`
	Name     tenant.TableName `json:"name"`
	Filenode uint32           `json:"filenode"` // pg_relation_filenode; another one later: the rows were rewritten
	Bytes    int64            `json:"bytes"`
	Rows     int64            `json:"rows"`
	Identity Identity         `json:"identity"`         // what is logged of old rows; the root's is what the stream announces
	Parent   uint32           `json:"parent,omitempty"` // in a partition tree: OID of the table above
	Unlogged bool             `json:"unlogged,omitempty"`
	Nullable bool             `json:"nullable,omitempty"` // its realm key column allows NULL
}

// Column of a table, in attnum order, dropped ones left out.
type Column struct {
	Name         string `json:"name"`
	Num          int16  `json:"num"`
	TypeOID      uint32 `json:"type_oid"`
	Type         string `json:"type"`                // format_type(atttypid, -1), schema-qualified where needed: for casts
	TypeMod      string `json:"type_mod"`            // format_type(atttypid, atttypmod): as declared
	Mod          int32  `json:"mod"`                 // atttypmod; -1: none
	BaseOID      uint32 `json:"base_oid"`            // of a domain: the type below it, else TypeOID
	BaseType     string `json:"base_type,omitempty"` // of a domain: the type below it, as Type is written
	Category     string `json:"category"`            // pg_type.typcategory of the base type
	NotNull      bool   `json:"not_null"`
	Generated    bool   `json:"generated,omitempty"`     // stored generated: never copied
	IdentityKind string `json:"identity_kind,omitempty"` // "a" always, "d" by default
	EqualOp      string `json:"equal_op,omitempty"`      // the operator of equality where it is not one of pg_catalog, as OPERATOR(schema.=)
	Binary       bool   `json:"binary"`                  // has send and receive, and its binary form means the same on another server (no reg* types)
}

// Equal is the condition that a column, as SQL names it, equals a value, whatever the search path. A domain is compared as
// the type below it, since a domain over an enumeration has no operators of its own; the value's type is named, since a
// parameter beside a composite would be taken for an anonymous record.
func (c Column) Equal(column, value string) string {
	op := c.EqualOp
	if op == "" {
		op = "="
	}
	if c.BaseType == "" {
		return column + " " + op + " " + value + "::" + c.Type
	}
	return column + "::" + c.BaseType + " " + op + " " + value + "::" + c.BaseType
}

// Identity is a table's replica identity.
type Identity struct {
	Kind    string   `json:"kind"`            // d default (primary key), i index, f full, n nothing
	Index   string   `json:"index,omitempty"` // of kind i, or the primary key's for d
	Columns []string `json:"columns"`         // identity columns; for f all columns
}

// Sequence of the source, serial and identity ones included.
type Sequence struct {
	Name      tenant.TableName `json:"name"`
	Type      string           `json:"type"` // bigint, integer, smallint
	Increment int64            `json:"increment"`
	Min       int64            `json:"min"`
	Max       int64            `json:"max"`
	Start     int64            `json:"start"`
	Cycle     bool             `json:"cycle"`
	OwnedBy   string           `json:"owned_by,omitempty"` // schema.table.column
}

// Table finds a table by OID.
func (c *Catalogue) Table(oid uint32) *Table {
	for i := range c.Tables {
		if c.Tables[i].OID == oid {
			return &c.Tables[i]
		}
	}
	return nil
}
