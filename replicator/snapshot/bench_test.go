package snapshot

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// discard is a Config whose buffers go nowhere.
func discard(columns, key, targets int, keyType uint32) Config {
	spare := make([][]byte, targets)
	return Config{
		Table: "public.t", Columns: columns, Key: key, KeyType: keyType, Targets: targets,
		Flush: func(t int, full []byte) ([]byte, error) {
			next := spare[t]
			spare[t] = full
			return next, nil
		},
		Route: func(realm []byte) int { return tenant.BucketBytes(realm) % targets },
	}
}

// benchmarkSplit writes a row at a time, as pgx does.
func benchmarkSplit(b *testing.B, s Splitter, header, row []byte) {
	b.Helper()
	if _, err := s.Write(header); err != nil {
		b.Fatal(err)
	}
	for range 20000 { // allocates the buffers
		if _, err := s.Write(row); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(row)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(row); err != nil {
			b.Fatal(err)
		}
	}
}

func pgbenchRow() []byte {
	row := []byte{0, 4}
	for i := range uint32(3) {
		row = append(row, 0, 0, 0, 4)
		row = binary.BigEndian.AppendUint32(row, i)
	}
	row = append(row, 0, 0, 0, 84)
	return append(row, strings.Repeat(" ", 84)...)
}

func BenchmarkBinary(b *testing.B) {
	for _, bb := range []struct {
		name    string
		key     int
		targets int
	}{{"one target", 0, 1}, {"three targets", 0, 3}, {"three targets, last key", 2, 3}, {"reference, three targets", -1, 3}} {
		b.Run(bb.name, func(b *testing.B) {
			s, err := NewBinary(discard(4, bb.key, bb.targets, oidInt4))
			if err != nil {
				b.Fatal(err)
			}
			benchmarkSplit(b, s, []byte(plainHeader), pgbenchRow())
		})
	}
}

func BenchmarkText(b *testing.B) {
	s, err := NewText(discard(4, 0, 3, oidInt4))
	if err != nil {
		b.Fatal(err)
	}
	benchmarkSplit(b, s, nil, []byte("17\t1\t0\t"+strings.Repeat(" ", 84)+"\n"))
}

func TestNoAllocationsPerRow(t *testing.T) {
	s, err := NewBinary(discard(4, 0, 3, oidInt4))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte(plainHeader)); err != nil {
		t.Fatal(err)
	}
	row := pgbenchRow()
	write := func() {
		for range 20000 {
			if _, err := s.Write(row); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	if n := testing.AllocsPerRun(2, write); n > 0 {
		t.Errorf("%v allocations for 20000 rows", n)
	}
}

// BenchmarkCopyLeaf copies 200,000 rows as pgbench_accounts has them, from one real server to itself. What it reports is
// the source's stream, which three targets share.
func BenchmarkCopyLeaf(b *testing.B) {
	const table = `CREATE TABLE t (aid int PRIMARY KEY, bid int NOT NULL, abalance int, filler char(84))`
	for _, targets := range []int{1, 3} {
		b.Run(fmt.Sprintf("targets=%d", targets), func(b *testing.B) {
			p := newBench(b, targets, table)
			run(b, p.admin, `INSERT INTO t SELECT g, g / 2000, 0, '' FROM generate_series(1, 200000) g`)
			for _, conn := range p.targets {
				run(b, conn, `ALTER TABLE t DROP CONSTRAINT t_pkey`)
			}
			for b.Loop() {
				res := p.copyAndCommit(p.spec("t", "bid", true))
				b.SetBytes(res.Bytes)
			}
		})
	}
}
