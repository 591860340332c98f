package pgoutput

import (
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Kind is the first byte of a message.
type Kind byte

// The kinds of messages of protocols 1 and 2. Each says which fields of Message it sets besides Kind; all others are
// undefined.
const (
	Begin        Kind = 'B' // XID, LSN (of the commit record), Time (of the commit)
	Commit       Kind = 'C' // LSN (of the commit record), EndLSN, Time
	Origin       Kind = 'O' // LSN (of the commit at the origin), Name
	RelationKind Kind = 'R' // XID if streamed, Relation
	TypeKind     Kind = 'Y' // XID if streamed, OID, Namespace, Name
	Insert       Kind = 'I' // XID if streamed, OID, New
	Update       Kind = 'U' // XID if streamed, OID, OldKind, Old, New
	Delete       Kind = 'D' // XID if streamed, OID, OldKind, Old
	Truncate     Kind = 'T' // XID if streamed, OIDs, Flags (TruncateCascade, TruncateRestartIdentity)
	Logical      Kind = 'M' // XID if streamed, Flags (LogicalTransactional), LSN, Prefix, Content
	StreamStart  Kind = 'S' // XID, FirstSegment
	StreamStop   Kind = 'E'
	StreamCommit Kind = 'c' // XID, LSN (of the commit record), EndLSN, Time
	StreamAbort  Kind = 'A' // XID, SubXID; equal when the whole transaction aborted
)

// String names the kind as the manual does.
func (k Kind) String() string {
	switch k {
	case Begin:
		return "Begin"
	case Commit:
		return "Commit"
	case Origin:
		return "Origin"
	case RelationKind:
		return "Relation"
	case TypeKind:
		return "Type"
	case Insert:
		return "Insert"
	case Update:
		return "Update"
	case Delete:
		return "Delete"
	case Truncate:
		return "Truncate"
	case Logical:
		return "Message"
	case StreamStart:
		return "Stream Start"
	case StreamStop:
		return "Stream Stop"
	case StreamCommit:
		return "Stream Commit"
	case StreamAbort:
		return "Stream Abort"
	}
	return "unknown"
}

// Bits of Message.Flags.
const (
	TruncateCascade         = 1 // of Truncate: CASCADE
	TruncateRestartIdentity = 2 // of Truncate: RESTART IDENTITY
	LogicalTransactional    = 1 // of Logical: part of a transaction
)

// Message is any message, by Kind; reuse one for many. The fields that a Kind sets are listed beside it.
type Message struct {
	Kind         Kind
	Streamed     bool // it lay within a streamed block, so XID is set
	Flags        byte
	FirstSegment bool // of StreamStart: the first block of this transaction
	OldKind      OldKind
	XID          uint32
	SubXID       uint32
	OID          uint32
	LSN          tenant.LSN
	EndLSN       tenant.LSN // end of the commit record: what is acknowledged
	Time         time.Time  // UTC
	Old          Tuple
	New          Tuple
	OIDs         []uint32
	Relation     Relation
	Namespace    string
	Name         string
	Prefix       []byte
	Content      []byte
}

// OldKind says what an Update or Delete tells of the row as it was.
type OldKind byte

// The kinds of old rows.
const (
	OldNone OldKind = 0   // nothing: the replica identity did not change (Update only)
	OldKey  OldKind = 'K' // the replica identity's columns; the others are null
	OldFull OldKind = 'O' // the whole row: REPLICA IDENTITY FULL
)

// Tuple holds one value per column of the relation, in the order of its Relation message.
type Tuple []Value

// Value is one column of a row. Data is set for Text and Binary only.
type Value struct {
	Kind ValueKind
	Data []byte
}

// ValueKind says how a value is given.
type ValueKind byte

// The kinds of values.
const (
	Null      ValueKind = 'n'
	Unchanged ValueKind = 'u' // a TOASTed value that the update did not touch, so not sent; not NULL
	Text      ValueKind = 't' // as the type's output function writes it
	Binary    ValueKind = 'b' // as the type's send function writes it
)

// Relation describes a published table, once before its first row and again after it changed.
type Relation struct {
	OID       uint32
	Namespace string // "pg_catalog" is sent as empty and given in full here
	Name      string
	Identity  byte // pg_class.relreplident: d, n, f, i
	Columns   []Column
}

// Column of a Relation.
type Column struct {
	Key     bool // part of the replica identity
	Name    string
	TypeOID uint32
	TypeMod int32 // atttypmod
}

// Clone returns a Relation that shares no slice with a Message that is reused.
func (r Relation) Clone() Relation {
	r.Columns = append([]Column(nil), r.Columns...)
	return r
}
