package pgoutput

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Error is a message that could not be decoded.
type Error struct {
	Kind    Kind
	Offset  int // of the first byte that could not be used, from the start of the message
	Problem string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Kind == 0 {
		return "decode pgoutput message: " + e.Problem
	}
	return fmt.Sprintf("decode pgoutput message %s (%q) at byte %d: %s", e.Kind, rune(e.Kind), e.Offset, e.Problem)
}

// Decoder decodes the messages of one stream in their order. The zero value is ready at the start of a stream.
type Decoder struct {
	streaming bool
}

// Decode reads one message of the stream into m, whose slices it reuses. See the package comment for what stays valid
// how long. After an error the stream cannot be continued.
func (d *Decoder) Decode(buf []byte, m *Message) error {
	if err := Parse(buf, d.streaming, m); err != nil {
		return err
	}
	switch m.Kind {
	case StreamStart:
		if d.streaming {
			return &Error{Kind: m.Kind, Problem: "a streamed block begins within another"}
		}
		d.streaming = true
	case StreamStop:
		if !d.streaming {
			return &Error{Kind: m.Kind, Problem: "no streamed block was begun"}
		}
		d.streaming = false
	case Begin, Commit, StreamCommit, StreamAbort:
		if d.streaming {
			return &Error{Kind: m.Kind, Problem: "it cannot lie within a streamed block"}
		}
	}
	return nil
}

// Streaming reports whether the next message lies within a streamed block.
func (d *Decoder) Streaming() bool { return d.streaming }

// Peek reads what decides where a message goes without decoding the rest: its kind and, within a streamed block, the
// transaction or sub-transaction that it belongs to (else 0).
func Peek(buf []byte, streamed bool) (Kind, uint32, error) {
	if len(buf) == 0 {
		return 0, 0, &Error{Problem: "empty"}
	}
	k := Kind(buf[0])
	if !streamed || !k.carriesXID() {
		return k, 0, nil
	}
	if len(buf) < 5 {
		return k, 0, &Error{Kind: k, Offset: 1, Problem: "cut short"}
	}
	return k, binary.BigEndian.Uint32(buf[1:]), nil
}

// carriesXID reports whether a message of this kind names its transaction within a streamed block.
func (k Kind) carriesXID() bool {
	switch k {
	case RelationKind, TypeKind, Insert, Update, Delete, Truncate, Logical:
		return true
	}
	return false
}

// Parse decodes one message of which the caller knows whether it lay within a streamed block, as one read back from a
// spill file.
func Parse(buf []byte, streamed bool, m *Message) error {
	if len(buf) == 0 {
		return &Error{Problem: "empty"}
	}
	r := reader{buf: buf, pos: 1}
	m.Kind = Kind(buf[0])
	m.Streamed = streamed && m.Kind.carriesXID()
	m.XID = 0
	if m.Streamed {
		m.XID = r.uint32()
	}
	switch m.Kind {
	case Insert:
		m.OID = r.uint32()
		r.expect('N')
		m.New = r.tuple(m.New)
	case Update:
		m.OID = r.uint32()
		m.OldKind, m.Old = OldNone, m.Old[:0]
		tag := r.byte()
		if tag == byte(OldKey) || tag == byte(OldFull) {
			m.OldKind = OldKind(tag)
			m.Old = r.tuple(m.Old)
			tag = r.byte()
		}
		if tag != 'N' {
			r.failBack("the new row is missing")
		}
		m.New = r.tuple(m.New)
	case Delete:
		m.OID = r.uint32()
		m.OldKind = OldKind(r.byte())
		if m.OldKind != OldKey && m.OldKind != OldFull {
			r.failBack("the old row is missing")
		}
		m.Old = r.tuple(m.Old)
	case Begin:
		m.LSN = r.lsn()
		m.Time = r.time()
		m.XID = r.uint32()
	case Commit:
		m.Flags = r.byte()
		m.LSN, m.EndLSN, m.Time = r.lsn(), r.lsn(), r.time()
	case Origin:
		m.LSN = r.lsn()
		m.Name = string(r.cstring())
	case RelationKind:
		r.relation(&m.Relation)
		m.OID = m.Relation.OID
	case TypeKind:
		m.OID = r.uint32()
		m.Namespace = namespace(r.cstring())
		m.Name = string(r.cstring())
	case Truncate:
		n := r.uint32()
		m.Flags = r.byte()
		m.OIDs = m.OIDs[:0]
		if uint64(n)*4 > uint64(r.left()) {
			r.fail("cut short")
			break
		}
		m.OIDs = slices.Grow(m.OIDs, int(n))
		for range n {
			m.OIDs = append(m.OIDs, r.uint32())
		}
	case Logical:
		m.Flags = r.byte()
		m.LSN = r.lsn()
		m.Prefix = r.cstring()
		m.Content = r.bytes(r.uint32())
	case StreamStart:
		m.XID = r.uint32()
		m.FirstSegment = r.byte() == 1
	case StreamStop:
	case StreamCommit:
		m.XID = r.uint32()
		m.Flags = r.byte()
		m.LSN, m.EndLSN, m.Time = r.lsn(), r.lsn(), r.time()
	case StreamAbort:
		m.XID, m.SubXID = r.uint32(), r.uint32()
	default:
		return &Error{Kind: m.Kind, Problem: fmt.Sprintf("protocols 1 and 2 have no message of type 0x%02x", buf[0])}
	}
	if r.problem == "" && r.pos != len(buf) {
		r.fail("bytes are left over")
	}
	if r.problem != "" {
		return &Error{Kind: m.Kind, Offset: r.at, Problem: r.problem}
	}
	return nil
}

// reader walks a message. After the first problem it stands still and gives zeroes, so that the caller asks once.
type reader struct {
	buf     []byte
	pos     int
	at      int
	problem string
}

func (r *reader) left() int { return len(r.buf) - r.pos }

func (r *reader) fail(problem string) {
	if r.problem == "" {
		r.problem, r.at = problem, r.pos
	}
	r.pos = len(r.buf)
}

// failBack blames the byte just read.
func (r *reader) failBack(problem string) {
	if r.problem == "" {
		r.pos--
	}
	r.fail(problem)
}

func (r *reader) byte() byte {
	if r.left() < 1 {
		r.fail("cut short")
		return 0
	}
	b := r.buf[r.pos]
	r.pos++
	return b
}

func (r *reader) expect(tag byte) {
	if r.byte() != tag {
		r.failBack("the new row is missing")
	}
}

func (r *reader) uint16() uint16 {
	if r.left() < 2 {
		r.fail("cut short")
		return 0
	}
	v := binary.BigEndian.Uint16(r.buf[r.pos:])
	r.pos += 2
	return v
}

func (r *reader) uint32() uint32 {
	if r.left() < 4 {
		r.fail("cut short")
		return 0
	}
	v := binary.BigEndian.Uint32(r.buf[r.pos:])
	r.pos += 4
	return v
}

func (r *reader) uint64() uint64 {
	if r.left() < 8 {
		r.fail("cut short")
		return 0
	}
	v := binary.BigEndian.Uint64(r.buf[r.pos:])
	r.pos += 8
	return v
}

func (r *reader) lsn() tenant.LSN { return tenant.LSN(r.uint64()) }

// postgresEpoch is 2000-01-01 00:00:00 UTC in microseconds of Unix time.
const postgresEpoch = 946_684_800_000_000

func (r *reader) time() time.Time {
	v := int64(r.uint64())
	if v > math.MaxInt64-postgresEpoch {
		r.fail("the time is out of range")
		return time.Time{}
	}
	return Clock(v)
}

// Clock is the time of a server's timestamp: microseconds since 2000.
func Clock(micros int64) time.Time { return time.UnixMicro(postgresEpoch + micros).UTC() }

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(r.left()) {
		r.fail("cut short")
		return nil
	}
	b := r.buf[r.pos : r.pos+int(n) : r.pos+int(n)]
	r.pos += int(n)
	return b
}

func (r *reader) cstring() []byte {
	i := bytes.IndexByte(r.buf[r.pos:], 0)
	if i < 0 {
		r.fail("a name has no end")
		return nil
	}
	b := r.buf[r.pos : r.pos+i : r.pos+i]
	r.pos += i + 1
	return b
}

func (r *reader) tuple(t Tuple) Tuple {
	n := int(r.uint16())
	if n > r.left() {
		r.fail("cut short")
	}
	if r.problem != "" {
		return t[:0]
	}
	t = slices.Grow(t[:0], n)[:n]
	buf, pos := r.buf, r.pos
	for i := range t {
		if pos >= len(buf) {
			r.pos = pos
			r.fail("cut short")
			return t[:0]
		}
		kind := ValueKind(buf[pos])
		pos++
		switch kind {
		case Null, Unchanged:
			t[i] = Value{Kind: kind}
		case Text, Binary:
			if len(buf)-pos < 4 {
				r.pos = pos
				r.fail("cut short")
				return t[:0]
			}
			size := binary.BigEndian.Uint32(buf[pos:])
			pos += 4
			if uint64(size) > uint64(len(buf)-pos) {
				r.pos = pos
				r.fail("cut short")
				return t[:0]
			}
			end := pos + int(size)
			t[i] = Value{Kind: kind, Data: buf[pos:end:end]}
			pos = end
		default:
			r.pos = pos - 1
			r.fail("a value of unknown kind")
			return t[:0]
		}
	}
	r.pos = pos
	return t
}

// minColumn is the least that a column of a Relation message takes: flags, an empty name, type and modifier.
const minColumn = 1 + 1 + 4 + 4

func (r *reader) relation(rel *Relation) {
	rel.OID = r.uint32()
	rel.Namespace = namespace(r.cstring())
	rel.Name = string(r.cstring())
	rel.Identity = r.byte()
	n := int(r.uint16())
	rel.Columns = rel.Columns[:0]
	if n*minColumn > r.left() {
		r.fail("cut short")
		return
	}
	rel.Columns = slices.Grow(rel.Columns, n)
	for range n {
		rel.Columns = append(rel.Columns, Column{
			Key:     r.byte()&1 != 0,
			Name:    string(r.cstring()),
			TypeOID: r.uint32(),
			TypeMod: int32(r.uint32()),
		})
	}
}

func namespace(b []byte) string {
	if len(b) == 0 {
		return "pg_catalog"
	}
	return string(b)
}
