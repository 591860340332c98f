package snapshot

import (
	"encoding/binary"
	"fmt"
)

// binarySignature begins every stream in binary format (PostgreSQL manual, COPY, "Binary Format").
const binarySignature = "PGCOPY\n\xff\r\n\x00"

const (
	binaryHeader = len(binarySignature) + 4 + 4 // signature, flags, length of the header's extension
	criticalBits = 0xffff0000                   // a reader that does not know one of these flags must give up
	oidsFlag     = 1 << 16                      // rows carry OIDs: not since Postgres 12
	maxHeld      = 1 << 20                      // what is kept of a buffer that held a large row back
)

// binaryState is what the next bytes of the stream are.
type binaryState int

const (
	inHeader    binaryState = iota
	inExtension             // the header's, which nobody uses
	inCount                 // a row's field count, or the trailer
	inLength                // a field's length
	inField                 // a field's bytes
	inNothing               // the trailer was seen
)

// Binary splits a stream in binary format. Rows are passed on as they are; whole rows in one chunk, which is what
// Postgres sends, are walked once and appended once.
type Binary struct {
	dealer

	state  binaryState
	fixed  [binaryHeader]byte // of a header, count or length that is not whole yet
	have   int
	left   int // bytes left of extension or field
	field  int
	target int
	known  bool   // the row's target is known
	held   []byte // the row's bytes until then
	key    []byte
}

// NewBinary makes a splitter for one stream.
func NewBinary(cfg Config) (*Binary, error) {
	d, err := newDealer(cfg)
	if err != nil {
		return nil, err
	}
	return &Binary{dealer: d}, nil
}

// Write takes the next bytes of the stream.
func (s *Binary) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n := len(p)
	s.bytes += int64(n)
	for len(p) > 0 {
		var used int
		if s.state == inCount && s.have == 0 {
			if used, s.err = s.wholeRows(p); s.err != nil {
				return 0, s.err
			}
			if p = p[used:]; len(p) == 0 {
				break
			}
		}
		if used, s.err = s.step(p); s.err != nil {
			return 0, s.err
		}
		p = p[used:]
	}
	if s.bytes-s.published >= publishEvery {
		s.publish()
	}
	return n, nil
}

// Close checks that the trailer was seen, sends one to each target and hands on what is buffered.
func (s *Binary) Close() error {
	if s.err != nil {
		return s.err
	}
	s.publish()
	if s.state != inNothing {
		s.err = s.damaged("it ended without its trailer")
		return s.err
	}
	if s.err = s.send(everyTarget, []byte{0xff, 0xff}); s.err == nil {
		s.err = s.flushAll()
	}
	return s.err
}

// wholeRows takes as many whole rows as p begins with and returns their size.
func (s *Binary) wholeRows(p []byte) (int, error) {
	columns, key := s.cfg.Columns, s.cfg.Key
	start := 0
	for {
		pos := start
		if len(p)-pos < 2 {
			return start, nil
		}
		count := int(int16(binary.BigEndian.Uint16(p[pos:])))
		if count == -1 {
			return start, nil
		}
		if count != columns {
			return start, s.wrongCount(count)
		}
		pos += 2
		keyAt, keyEnd := 0, 0
		for f := range columns {
			if len(p)-pos < 4 {
				return start, nil
			}
			size := int(int32(binary.BigEndian.Uint32(p[pos:])))
			pos += 4
			if size < 0 {
				if err := s.badLength(size, f); err != nil {
					return start, err
				}
				continue
			}
			if size > len(p)-pos {
				return start, nil
			}
			if f == key {
				keyAt, keyEnd = pos, pos+size
			}
			pos += size
		}
		target, err := s.targetOf(p[keyAt:keyEnd])
		if err != nil {
			return start, err
		}
		if err := s.send(target, p[start:pos]); err != nil {
			return start, err
		}
		s.counted(target)
		start = pos
	}
}

func (s *Binary) targetOf(rawKey []byte) (int, error) {
	if !s.routed() {
		return everyTarget, nil
	}
	realm, err := s.binaryRealm(rawKey)
	if err != nil {
		return 0, err
	}
	return s.dealer.target(realm)
}

func (s *Binary) wrongCount(count int) error {
	return s.damaged(fmt.Sprintf("it has %d fields instead of %d", count, s.cfg.Columns))
}

// badLength judges a negative length: -1 is NULL, which a realm must not be.
func (s *Binary) badLength(size, field int) error {
	if size != -1 {
		return s.damaged(fmt.Sprintf("field %d has length %d", field+1, size))
	}
	if field == s.cfg.Key {
		return s.nullRealm()
	}
	return nil
}

// step takes bytes of a row, or of the header, that is not whole in p.
func (s *Binary) step(p []byte) (int, error) {
	switch s.state {
	case inHeader:
		b, n := s.gather(p, binaryHeader)
		if b == nil {
			return n, nil
		}
		return n, s.header(b)
	case inExtension:
		n := min(s.left, len(p))
		if s.left -= n; s.left == 0 {
			s.state = inCount
		}
		return n, nil
	case inCount:
		b, n := s.gather(p, 2)
		if b == nil {
			return n, nil
		}
		return n, s.beginRow(b)
	case inLength:
		b, n := s.gather(p, 4)
		if b == nil {
			return n, nil
		}
		return n, s.beginField(b)
	case inField:
		n := min(s.left, len(p))
		if s.field == s.cfg.Key {
			s.key = append(s.key, p[:n]...)
		}
		if err := s.pass(p[:n]); err != nil {
			return n, err
		}
		if s.left -= n; s.left > 0 {
			return n, nil
		}
		return n, s.endField()
	}
	return 0, s.damaged("bytes follow its trailer")
}

// gather collects size bytes over chunks; nil until they are there.
func (s *Binary) gather(p []byte, size int) ([]byte, int) {
	n := copy(s.fixed[s.have:size], p)
	if s.have += n; s.have < size {
		return nil, n
	}
	s.have = 0
	return s.fixed[:size], n
}

func (s *Binary) header(b []byte) error {
	if string(b[:len(binarySignature)]) != binarySignature {
		return s.damaged("it does not begin as the binary format does")
	}
	flags := binary.BigEndian.Uint32(b[len(binarySignature):])
	if flags&oidsFlag != 0 {
		return s.damaged("its rows carry OIDs, which no supported Postgres has")
	}
	if flags&criticalBits != 0 {
		return s.damaged(fmt.Sprintf("its header has unknown critical flags %#x", flags))
	}
	size := int32(binary.BigEndian.Uint32(b[len(binarySignature)+4:]))
	if size < 0 {
		return s.damaged("its header has a negative length")
	}
	s.state, s.left = inCount, int(size)
	if size > 0 {
		s.state = inExtension
	}
	return s.send(everyTarget, []byte(binarySignature+"\x00\x00\x00\x00\x00\x00\x00\x00"))
}

func (s *Binary) beginRow(b []byte) error {
	count := int(int16(binary.BigEndian.Uint16(b)))
	if count == -1 {
		s.state = inNothing
		return nil
	}
	if count != s.cfg.Columns {
		return s.wrongCount(count)
	}
	s.field, s.key, s.held = -1, s.key[:0], s.held[:0]
	s.known, s.target = !s.routed(), everyTarget
	if err := s.pass(b); err != nil {
		return err
	}
	return s.endField()
}

func (s *Binary) beginField(b []byte) error {
	size := int(int32(binary.BigEndian.Uint32(b)))
	if size < 0 {
		if err := s.badLength(size, s.field); err != nil {
			return err
		}
	}
	if err := s.pass(b); err != nil {
		return err
	}
	if size <= 0 {
		return s.endField()
	}
	s.state, s.left = inField, size
	return nil
}

// endField goes on to the next field, or ends the row.
func (s *Binary) endField() error {
	if s.field == s.cfg.Key && s.field >= 0 && !s.known {
		target, err := s.targetOf(s.key)
		if err != nil {
			return err
		}
		s.target, s.known = target, true
		if err := s.send(target, s.held); err != nil {
			return err
		}
		if cap(s.held) > maxHeld {
			s.held = nil
		}
	}
	if s.field++; s.field < s.cfg.Columns {
		s.state = inLength
		return nil
	}
	s.state = inCount
	s.counted(s.target)
	return nil
}

// pass sends bytes of the row to its target, or holds them until that is known.
func (s *Binary) pass(b []byte) error {
	if s.known {
		return s.send(s.target, b)
	}
	s.held = append(s.held, b...)
	return nil
}
