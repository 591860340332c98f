package pgoutput

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// msg builds a message from bytes, numbers of the wire's widths, and strings (with their end).
func msg(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case byte:
			b = append(b, v)
		case rune:
			b = append(b, byte(v))
		case uint16:
			b = binary.BigEndian.AppendUint16(b, v)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case string:
			b = append(append(b, v...), 0)
		case []byte:
			b = append(b, v...)
		default:
			panic("unknown part of a message")
		}
	}
	return b
}

func field(kind rune, data string) []byte {
	return msg(kind, uint32(len(data)), []byte(data))
}

// tuple builds TupleData from fields.
func tuple(fields ...[]byte) []byte {
	b := msg(uint16(len(fields)))
	for _, f := range fields {
		b = append(b, f...)
	}
	return b
}

var (
	aTime     = time.Date(2026, 2, 3, 4, 5, 6, 789000, time.UTC)
	aTimeWire = uint64(aTime.UnixMicro() - postgresEpoch)
)

var samples = []struct {
	name     string
	buf      []byte
	streamed bool
	want     Message
}{
	{
		"begin", msg('B', uint64(0x16B374D848), aTimeWire, uint32(7)), false,
		Message{Kind: Begin, LSN: 0x16B374D848, Time: aTime, XID: 7},
	},
	{
		"begin before 2000", msg('B', uint64(1), ^uint64(0), uint32(7)), false,
		Message{Kind: Begin, LSN: 1, Time: time.Date(1999, 12, 31, 23, 59, 59, 999999000, time.UTC), XID: 7},
	},
	{
		"commit", msg('C', byte(0), uint64(5), uint64(6), aTimeWire), false,
		Message{Kind: Commit, LSN: 5, EndLSN: 6, Time: aTime},
	},
	{"origin", msg('O', uint64(5), "node"), false, Message{Kind: Origin, LSN: 5, Name: "node"}},
	{
		"relation", msg('R', uint32(16384), "public", "t", 'd', uint16(2), byte(1), "id", uint32(23), ^uint32(0), byte(0), "näme", uint32(1043), uint32(24)), false,
		Message{Kind: RelationKind, OID: 16384, Relation: Relation{OID: 16384, Namespace: "public", Name: "t", Identity: 'd', Columns: []Column{
			{Key: true, Name: "id", TypeOID: 23, TypeMod: -1}, {Name: "näme", TypeOID: 1043, TypeMod: 24},
		}}},
	},
	{
		"relation of pg_catalog in a stream", msg('R', uint32(9), uint32(1), "", "t", 'f', uint16(0)), true,
		Message{Kind: RelationKind, Streamed: true, XID: 9, OID: 1, Relation: Relation{OID: 1, Namespace: "pg_catalog", Name: "t", Identity: 'f'}},
	},
	{"type", msg('Y', uint32(99), "public", "mood"), false, Message{Kind: TypeKind, OID: 99, Namespace: "public", Name: "mood"}},
	{
		"insert", msg('I', uint32(1), 'N', tuple(field('t', "a"), []byte{'n'}, field('b', "\x00\x01"), field('t', ""))), false,
		Message{Kind: Insert, OID: 1, New: Tuple{{Text, []byte("a")}, {Kind: Null}, {Binary, []byte{0, 1}}, {Text, []byte{}}}},
	},
	{
		"insert in a stream", msg('I', uint32(8), uint32(1), 'N', tuple(field('t', "a"))), true,
		Message{Kind: Insert, Streamed: true, XID: 8, OID: 1, New: Tuple{{Text, []byte("a")}}},
	},
	{"insert without columns", msg('I', uint32(1), 'N', tuple()), false, Message{Kind: Insert, OID: 1}},
	{
		"update", msg('U', uint32(1), 'N', tuple(field('t', "a"), []byte{'u'})), false,
		Message{Kind: Update, OID: 1, New: Tuple{{Text, []byte("a")}, {Kind: Unchanged}}},
	},
	{
		"update of a key", msg('U', uint32(1), 'K', tuple(field('t', "a"), []byte{'n'}), 'N', tuple(field('t', "b"), []byte{'u'})), false,
		Message{Kind: Update, OID: 1, OldKind: OldKey, Old: Tuple{{Text, []byte("a")}, {Kind: Null}}, New: Tuple{{Text, []byte("b")}, {Kind: Unchanged}}},
	},
	{
		"update of a full row in a stream", msg('U', uint32(3), uint32(1), 'O', tuple(field('t', "a")), 'N', tuple(field('t', "b"))), true,
		Message{Kind: Update, Streamed: true, XID: 3, OID: 1, OldKind: OldFull, Old: Tuple{{Text, []byte("a")}}, New: Tuple{{Text, []byte("b")}}},
	},
	{
		"delete by key", msg('D', uint32(1), 'K', tuple(field('t', "a"))), false,
		Message{Kind: Delete, OID: 1, OldKind: OldKey, Old: Tuple{{Text, []byte("a")}}},
	},
	{
		"delete of a full row", msg('D', uint32(1), 'O', tuple(field('t', "a"))), false,
		Message{Kind: Delete, OID: 1, OldKind: OldFull, Old: Tuple{{Text, []byte("a")}}},
	},
	{
		"truncate", msg('T', uint32(2), byte(3), uint32(10), uint32(11)), false,
		Message{Kind: Truncate, Flags: TruncateCascade | TruncateRestartIdentity, OIDs: []uint32{10, 11}},
	},
	{
		"truncate in a stream", msg('T', uint32(4), uint32(1), byte(0), uint32(10)), true,
		Message{Kind: Truncate, Streamed: true, XID: 4, OIDs: []uint32{10}},
	},
	{
		"message", msg('M', byte(1), uint64(77), "prefix", uint32(3), []byte("abc")), false,
		Message{Kind: Logical, Flags: LogicalTransactional, LSN: 77, Prefix: []byte("prefix"), Content: []byte("abc")},
	},
	{"stream start", msg('S', uint32(5), byte(1)), false, Message{Kind: StreamStart, XID: 5, FirstSegment: true}},
	{"stream stop", msg('E'), true, Message{Kind: StreamStop}},
	{
		"stream commit", msg('c', uint32(5), byte(0), uint64(1), uint64(2), aTimeWire), false,
		Message{Kind: StreamCommit, XID: 5, LSN: 1, EndLSN: 2, Time: aTime},
	},
	{"stream abort", msg('A', uint32(5), uint32(6)), false, Message{Kind: StreamAbort, XID: 5, SubXID: 6}},
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got Message
			if err := Parse(tt.buf, tt.streamed, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDamaged cuts every sample at every byte, and adds one: each is an error that names the message and an offset in it.
func TestDamaged(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, name string, buf []byte, streamed bool) {
		t.Helper()
		var m Message
		err := Parse(buf, streamed, &m)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s of %d bytes: got error %v", name, len(buf), err)
			return
		}
		if len(buf) > 0 && e.Kind != Kind(buf[0]) || e.Offset > len(buf) || e.Error() == "" {
			t.Errorf("%s of %d bytes: %#v", name, len(buf), e)
		}
	}
	for _, tt := range samples {
		for n := range len(tt.buf) {
			check(t, tt.name, tt.buf[:n:n], tt.streamed)
		}
		check(t, tt.name, append(slices.Clip(tt.buf), 0), tt.streamed)
	}
	check(t, "unknown", []byte("b"), false)
	check(t, "a time out of range", msg('B', uint64(1), uint64(1<<63-1), uint32(1)), false)
	check(t, "a tag that is none", msg('I', uint32(1), 'X', tuple()), false)
	check(t, "a value that is none", msg('I', uint32(1), 'N', tuple([]byte{'x'})), false)
	check(t, "a huge truncate", msg('T', ^uint32(0), byte(0)), false)
	check(t, "a huge value", msg('I', uint32(1), 'N', uint16(1), 't', ^uint32(0)), false)
}

// TestDecoderRemembersBlocks follows a stream with a large transaction in two blocks.
func TestDecoderRemembersBlocks(t *testing.T) {
	t.Parallel()
	var d Decoder
	var m Message
	next := func(buf []byte) Message {
		t.Helper()
		if err := d.Decode(buf, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	insert := msg('I', uint32(1), 'N', tuple(field('t', "a")))
	streamedInsert := msg('I', uint32(500), uint32(1), 'N', tuple(field('t', "a")))
	if m := next(insert); m.Streamed || m.XID != 0 {
		t.Errorf("outside a block: %+v", m)
	}
	next(msg('S', uint32(500), byte(1)))
	if m := next(streamedInsert); !m.Streamed || m.XID != 500 || m.OID != 1 {
		t.Errorf("within a block: %+v", m)
	}
	if kind, xid, err := Peek(streamedInsert, d.Streaming()); kind != Insert || xid != 500 || err != nil {
		t.Errorf("Peek: %v %d %v", kind, xid, err)
	}
	if err := d.Decode(msg('S', uint32(501), byte(1)), &m); err == nil {
		t.Error("a block within a block was taken")
	}
	next(msg('E'))
	if m := next(insert); m.Streamed || m.XID != 0 {
		t.Errorf("after a block: %+v", m)
	}
	next(msg('c', uint32(500), byte(0), uint64(1), uint64(2), uint64(3)))
	if err := d.Decode(msg('E'), &m); err == nil {
		t.Error("the end of no block was taken")
	}
}

func TestRelationClone(t *testing.T) {
	t.Parallel()
	var m Message
	if err := Parse(samples[4].buf, false, &m); err != nil {
		t.Fatal(err)
	}
	kept := m.Relation.Clone()
	m.Relation.Columns[0].Name = "other"
	if kept.Columns[0].Name != "id" {
		t.Errorf("the clone shares columns: %+v", kept)
	}
}

// FuzzParse wants an error or a message whose parts lie within the input, and the same again from a used Message.
func FuzzParse(f *testing.F) {
	for _, tt := range samples {
		f.Add(tt.buf, tt.streamed)
	}
	used := Message{New: make(Tuple, 3, 9), Old: make(Tuple, 1), OIDs: make([]uint32, 5)}
	f.Fuzz(func(t *testing.T, buf []byte, streamed bool) {
		var fresh Message
		err := Parse(buf, streamed, &fresh)
		again := used
		if err2 := Parse(buf, streamed, &again); (err == nil) != (err2 == nil) {
			t.Fatalf("fresh: %v, used: %v", err, err2)
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Offset > len(buf) {
				t.Fatalf("%#v", err)
			}
			return
		}
		size := len(fresh.Prefix) + len(fresh.Content)
		for _, v := range append(append(Tuple(nil), fresh.Old...), fresh.New...) {
			size += len(v.Data)
		}
		if size > len(buf) {
			t.Fatalf("%d bytes of values from %d bytes", size, len(buf))
		}
		if fresh.Kind == Insert {
			if diff := cmp.Diff(fresh.New, again.New, cmpopts.EquateEmpty()); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func benchmarkParse(b *testing.B, buf []byte) {
	b.Helper()
	var m Message
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Parse(buf, false, &m); err != nil {
			b.Fatal(err)
		}
	}
}

var benchRow = tuple(field('b', "\x00\x00\x00\x01"), field('b', "\x00\x00\x00\x01"), field('b', "\x00\x00\x00\x00"), field('b', "                                        "), []byte{'n'})

func BenchmarkInsert(b *testing.B) { benchmarkParse(b, msg('I', uint32(1), 'N', benchRow)) }
func BenchmarkUpdateFull(b *testing.B) {
	benchmarkParse(b, msg('U', uint32(1), 'O', benchRow, 'N', benchRow))
}
func BenchmarkDelete(b *testing.B) { benchmarkParse(b, msg('D', uint32(1), 'K', benchRow)) }
func BenchmarkCommit(b *testing.B) {
	benchmarkParse(b, msg('C', byte(0), uint64(5), uint64(6), aTimeWire))
}

// TestNoAllocations keeps the promise of the package comment.
func TestNoAllocations(t *testing.T) {
	var m Message
	var d Decoder
	for _, tt := range samples {
		switch Kind(tt.buf[0]) {
		case RelationKind, TypeKind, Origin, StreamStart, StreamStop:
			continue
		}
		if tt.streamed {
			continue
		}
		if n := testing.AllocsPerRun(100, func() {
			if err := d.Decode(tt.buf, &m); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}
