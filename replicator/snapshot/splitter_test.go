package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// dealt is what a splitter, or its naive twin, made of a stream.
type dealt struct {
	out       [][]byte
	rows      int64
	perTarget []int64
	realms    []string
}

// routed remembers the realms in their order; runs of one realm may be asked for once.
func (d *dealt) routed(realm string) {
	if n := len(d.realms); n == 0 || d.realms[n-1] != realm {
		d.realms = append(d.realms, realm)
	}
}

// config makes a Config whose Flush gathers into d and whose Route hashes and remembers.
func (d *dealt) config(columns, key, targets int, keyType uint32) Config {
	d.out = make([][]byte, targets)
	return Config{
		Table: "public.t", Columns: columns, Key: key, KeyType: keyType, Targets: targets,
		Flush: func(t int, full []byte) ([]byte, error) {
			d.out[t] = append(d.out[t], full...)
			return full[:0], nil
		},
		Route: func(realm []byte) int {
			d.routed(string(realm))
			return tenant.BucketBytes(realm) % targets
		},
	}
}

// feed writes a stream in chunks whose sizes come from seed.
func feed(s Splitter, stream []byte, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	for len(stream) > 0 {
		n := len(stream)
		if seed != 0 {
			n = min(n, 1+rng.IntN(1+rng.IntN(40)))
		}
		if _, err := s.Write(stream[:n]); err != nil {
			return err
		}
		stream = stream[n:]
	}
	return s.Close()
}

const plainHeader = binarySignature + "\x00\x00\x00\x00\x00\x00\x00\x00"

// naiveBinary is the splitter as one would write it with the whole stream at hand.
func naiveBinary(stream []byte, columns, key, targets int, keyType uint32) (dealt, bool) {
	d := dealt{out: make([][]byte, targets), perTarget: make([]int64, targets)}
	for t := range targets {
		d.out[t] = []byte(plainHeader)
	}
	if !bytes.HasPrefix(stream, []byte(binarySignature)) || len(stream) < binaryHeader {
		return d, false
	}
	flags := binary.BigEndian.Uint32(stream[11:])
	ext := int(int32(binary.BigEndian.Uint32(stream[15:])))
	stream = stream[binaryHeader:]
	if flags>>16 != 0 || ext < 0 || ext > len(stream) {
		return d, false
	}
	stream = stream[ext:]
	for {
		if len(stream) < 2 {
			return d, false
		}
		count := int(int16(binary.BigEndian.Uint16(stream)))
		if count == -1 {
			for t := range targets {
				d.out[t] = append(d.out[t], 0xff, 0xff)
			}
			return d, len(stream) == 2
		}
		if count != columns {
			return d, false
		}
		pos := 2
		var realm []byte
		for f := range count {
			if len(stream) < pos+4 {
				return d, false
			}
			size := int(int32(binary.BigEndian.Uint32(stream[pos:])))
			pos += 4
			if size == -1 && f != key {
				continue
			}
			if size < 0 || len(stream) < pos+size {
				return d, false
			}
			if f == key {
				realm = stream[pos : pos+size]
			}
			pos += size
		}
		if key < 0 || targets == 1 {
			for t := range targets {
				d.out[t] = append(d.out[t], stream[:pos]...)
				d.perTarget[t]++
			}
		} else {
			text, ok := naiveRealm(realm, keyType)
			if !ok {
				return d, false
			}
			t := tenant.Bucket(text) % targets
			d.routed(text)
			d.out[t] = append(d.out[t], stream[:pos]...)
			d.perTarget[t]++
		}
		d.rows++
		stream = stream[pos:]
	}
}

func naiveRealm(raw []byte, keyType uint32) (string, bool) {
	switch {
	case keyType == oidInt2 && len(raw) == 2:
		return fmt.Sprint(int16(binary.BigEndian.Uint16(raw))), true
	case keyType == oidInt4 && len(raw) == 4:
		return fmt.Sprint(int32(binary.BigEndian.Uint32(raw))), true
	case keyType == oidInt8 && len(raw) == 8:
		return fmt.Sprint(int64(binary.BigEndian.Uint64(raw))), true
	case keyType == oidUUID && len(raw) == 16:
		return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:]), true
	case keyType == oidText || keyType == oidVarchar:
		return string(raw), true
	case keyType == oidBpchar:
		return strings.TrimRight(string(raw), " "), true
	}
	return "", false
}

func naiveText(stream []byte, columns, key, targets int, keyType uint32) (dealt, bool) {
	d := dealt{out: make([][]byte, targets), perTarget: make([]int64, targets)}
	for len(stream) > 0 {
		line, rest, whole := bytes.Cut(stream, []byte("\n"))
		fields := strings.Split(string(line), "\t")
		if columns == 0 && len(line) == 0 {
			fields = nil
		}
		if !whole || len(fields) != columns || string(line) == `\.` || (key >= 0 && fields[key] == `\N`) {
			return d, false
		}
		row := append(bytes.Clone(line), '\n')
		if key < 0 || targets == 1 {
			for t := range targets {
				d.out[t] = append(d.out[t], row...)
				d.perTarget[t]++
			}
		} else {
			text := strings.NewReplacer(`\\`, `\`, `\b`, "\b", `\f`, "\f", `\n`, "\n", `\r`, "\r", `\t`, "\t", `\v`, "\v", `\`, "").Replace(fields[key])
			if slashes := len(fields[key]) - len(strings.TrimRight(fields[key], `\`)); slashes%2 == 1 {
				return d, false
			}
			if keyType == oidBpchar {
				text = strings.TrimRight(text, " ")
			}
			t := tenant.Bucket(text) % targets
			d.routed(text)
			d.out[t] = append(d.out[t], row...)
			d.perTarget[t]++
		}
		d.rows++
		stream = rest
	}
	return d, true
}

func compare(t *testing.T, got, want dealt) {
	t.Helper()
	if got.rows != want.rows || fmt.Sprint(got.perTarget) != fmt.Sprint(want.perTarget) || fmt.Sprintf("%q", got.realms) != fmt.Sprintf("%q", want.realms) {
		t.Fatalf("rows %d %v %q, want %d %v %q", got.rows, got.perTarget, got.realms, want.rows, want.perTarget, want.realms)
	}
	for i := range want.out {
		if !bytes.Equal(got.out[i], want.out[i]) {
			t.Fatalf("target %d got\n%q, want\n%q", i, got.out[i], want.out[i])
		}
	}
}

func splitBoth(t *testing.T, stream []byte, seed uint64, text bool, columns, key, targets int, keyType uint32) {
	t.Helper()
	var got dealt
	var want dealt
	var ok bool
	var s Splitter
	var err error
	if text {
		s, err = newSplitter(NewText(got.config(columns, key, targets, keyType)))
		want, ok = naiveText(stream, columns, key, targets, keyType)
	} else {
		s, err = newSplitter(NewBinary(got.config(columns, key, targets, keyType)))
		want, ok = naiveBinary(stream, columns, key, targets, keyType)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = feed(s, stream, seed)
	if (err == nil) != ok {
		t.Fatalf("error %v, but the twin says ok=%v", err, ok)
	}
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNullRealm) {
			t.Fatalf("an error of another kind: %v", err)
		}
		return
	}
	got.rows, got.perTarget = s.Rows(), s.PerTarget()
	compare(t, got, want)
}

var keyTypes = []uint32{oidInt4, oidInt8, oidInt2, oidUUID, oidText, oidVarchar, oidBpchar}

// binaryStream makes a stream of rows that fit.
func binaryStream(rng *rand.Rand, rows, columns, key int, keyType uint32) []byte {
	b := []byte(plainHeader)
	for range rows {
		b = binary.BigEndian.AppendUint16(b, uint16(columns))
		for f := range columns {
			size := rng.IntN(30)
			if f == key {
				switch keyType {
				case oidInt2:
					size = 2
				case oidInt4:
					size = 4
				case oidInt8:
					size = 8
				case oidUUID:
					size = 16
				}
			} else if rng.IntN(5) == 0 {
				b = binary.BigEndian.AppendUint32(b, ^uint32(0))
				continue
			}
			b = binary.BigEndian.AppendUint32(b, uint32(size))
			for range size {
				b = append(b, " aZ\x00\xff"[rng.IntN(5)])
			}
		}
	}
	return append(b, 0xff, 0xff)
}

func TestBinaryAgainstTwin(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range uint64(600) {
		columns := rng.IntN(5)
		key := rng.IntN(columns+1) - 1
		keyType := keyTypes[rng.IntN(len(keyTypes))]
		stream := binaryStream(rng, rng.IntN(20), columns, key, keyType)
		targets := 1 + rng.IntN(4)
		splitBoth(t, stream, i%7, false, columns, key, targets, keyType)
		splitBoth(t, stream[:rng.IntN(len(stream))], i%7, false, columns, key, targets, keyType) // cut anywhere: an error
	}
}

func TestTextAgainstTwin(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	parts := []string{"a", "b ", `\t`, `\\`, `\n`, "", "é", `\N`, `\.`, "x"}
	for i := range uint64(600) {
		columns := rng.IntN(4)
		key := rng.IntN(columns+1) - 1
		var b []byte
		for range rng.IntN(12) {
			for f := range columns {
				if f > 0 {
					b = append(b, '\t')
				}
				for range rng.IntN(3) {
					b = append(b, parts[rng.IntN(len(parts))]...)
				}
			}
			b = append(b, '\n')
		}
		targets := 1 + rng.IntN(4)
		splitBoth(t, b, i%7, true, columns, key, targets, oidBpchar)
		splitBoth(t, b[:rng.IntN(len(b)+1)], i%7, true, columns, key, targets, oidText)
	}
}

func FuzzBinary(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range 8 {
		keyType := keyTypes[i%len(keyTypes)]
		f.Add(binaryStream(rng, i, i%4, i%4-1, keyType), uint64(i), byte(i%4), byte(i%4-1), byte(1+i%3), byte(i))
	}
	f.Add([]byte(binarySignature+"\x00\x00\x00\x01\x00\x00\x00\x03abc\xff\xff"), uint64(3), byte(1), byte(0), byte(2), byte(4))
	f.Add([]byte(binarySignature+"\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff"), uint64(0), byte(1), byte(0), byte(2), byte(4))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, columns, key, targets, keyType byte) {
		c := int(columns % 6)
		k := int(key)%(c+1) - 1
		splitBoth(t, stream, seed, false, c, k, 1+int(targets%4), keyTypes[int(keyType)%len(keyTypes)])
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("1\ta\n2\t\\N\n"), uint64(2), byte(2), byte(1), byte(3), byte(4))
	f.Add([]byte("\n\n"), uint64(0), byte(0), byte(0), byte(2), byte(4))
	f.Add([]byte("a\\tb \\\\\t\\.\n\\.\n"), uint64(1), byte(2), byte(0), byte(2), byte(6))
	f.Add([]byte("a"), uint64(1), byte(1), byte(0), byte(2), byte(6))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, columns, key, targets, keyType byte) {
		c := int(columns % 6)
		k := int(key)%(c+1) - 1
		splitBoth(t, stream, seed, true, c, k, 1+int(targets%4), keyTypes[int(keyType)%len(keyTypes)])
	})
}

// TestBuffersStaySmall passes rows that are much larger than a buffer.
func TestBuffersStaySmall(t *testing.T) {
	t.Parallel()
	largest := 0
	var d dealt
	cfg := d.config(2, 0, 2, oidInt4)
	inner := cfg.Flush
	cfg.Flush = func(t int, full []byte) ([]byte, error) {
		largest = max(largest, len(full), cap(full))
		return inner(t, full)
	}
	s, err := NewBinary(cfg)
	if err != nil {
		t.Fatal(err)
	}
	value := bytes.Repeat([]byte("x"), 3*BufferSize+7)
	stream := []byte(plainHeader)
	for i := range uint32(5) {
		stream = append(stream, 0, 2, 0, 0, 0, 4)
		stream = binary.BigEndian.AppendUint32(stream, i)
		stream = binary.BigEndian.AppendUint32(stream, uint32(len(value)))
		stream = append(stream, value...)
	}
	if err := feed(s, append(stream, 0xff, 0xff), 0); err != nil {
		t.Fatal(err)
	}
	if largest > 2*BufferSize {
		t.Errorf("a buffer of %d bytes", largest)
	}
	if n := len(d.out[0]) + len(d.out[1]); n != 2*(binaryHeader+2)+5*(10+4+len(value)) {
		t.Errorf("%d bytes came out", n)
	}
}

func TestCountersAreExactAtTheEnd(t *testing.T) {
	t.Parallel()
	var d dealt
	var c Counters
	cfg := d.config(3, 1, 3, oidText)
	cfg.Counters = &c
	s, err := NewBinary(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stream := binaryStream(rand.New(rand.NewPCG(7, 8)), 5000, 3, 1, oidText)
	if err := feed(s, stream, 5); err != nil {
		t.Fatal(err)
	}
	if c.Rows.Load() != 5000 || c.Bytes.Load() != int64(len(stream)) {
		t.Errorf("%d rows, %d bytes of %d", c.Rows.Load(), c.Bytes.Load(), len(stream))
	}
}
