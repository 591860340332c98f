package snapshot

import (
	"bytes"
	"fmt"
)

// Text splits a stream in text format with its default options: rows end with a newline, fields are parted by tabs, a
// backslash escapes, \N is NULL (PostgreSQL manual, COPY, "Text Format"). COPY TO writes newlines and tabs of values
// escaped, so a raw one always is what it seems.
type Text struct {
	dealer

	inRow  bool // a row has begun and is not whole yet
	field  int
	known  bool
	target int
	held   []byte
	key    []byte // raw bytes of the realm key's field
	line   []byte // up to the first three bytes of the row, to know the end marker \. by
}

// NewText makes a splitter for one stream. The realm key's type matters for blanks only.
func NewText(cfg Config) (*Text, error) {
	d, err := newDealer(cfg)
	if err != nil {
		return nil, err
	}
	return &Text{dealer: d}, nil
}

// Write takes the next bytes of the stream.
func (s *Text) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n := len(p)
	s.bytes += int64(n)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		switch {
		case !s.inRow && end >= 0:
			s.err = s.wholeRow(p[:end+1])
		case end >= 0:
			if s.err = s.part(p[:end]); s.err == nil {
				s.err = s.endRow()
			}
		default:
			end = len(p) - 1
			s.err = s.part(p)
		}
		if s.err != nil {
			return 0, s.err
		}
		p = p[end+1:]
	}
	if s.bytes-s.published >= publishEvery {
		s.publish()
	}
	return n, nil
}

// Close checks that the stream ended with a whole row and hands on what is buffered. That it ended where it should is
// for the caller to check by the source's row count: the format has no trailer.
func (s *Text) Close() error {
	if s.err != nil {
		return s.err
	}
	s.publish()
	if s.inRow {
		s.err = s.damaged("it ended within a row")
		return s.err
	}
	s.err = s.flushAll()
	return s.err
}

// wholeRow takes one row with its newline.
func (s *Text) wholeRow(row []byte) error {
	line := row[:len(row)-1]
	if err := s.checkFields(bytes.Count(line, []byte{'\t'}), len(line)); err != nil {
		return err
	}
	if string(line) == `\.` {
		return s.damaged("it holds an end marker")
	}
	target := everyTarget
	if s.cfg.Key >= 0 {
		raw := line
		for range s.cfg.Key {
			raw = raw[bytes.IndexByte(raw, '\t')+1:]
		}
		if end := bytes.IndexByte(raw, '\t'); end >= 0 {
			raw = raw[:end]
		}
		var err error
		if target, err = s.targetOf(raw); err != nil {
			return err
		}
	}
	if err := s.send(target, row); err != nil {
		return err
	}
	s.counted(target)
	return nil
}

// checkFields compares a row's tabs with the columns; a table without columns gives empty rows.
func (s *Text) checkFields(tabs, size int) error {
	if s.cfg.Columns == 0 {
		if size > 0 {
			return s.damaged("it has fields, but the table has no columns")
		}
		return nil
	}
	if tabs+1 != s.cfg.Columns {
		return s.damaged(fmt.Sprintf("it has %d fields instead of %d", tabs+1, s.cfg.Columns))
	}
	return nil
}

// part takes bytes of a row that is not whole in one chunk; without its newline.
func (s *Text) part(p []byte) error {
	if !s.inRow {
		s.inRow, s.field, s.key, s.held, s.line = true, 0, s.key[:0], s.held[:0], s.line[:0]
		s.known, s.target = !s.routed(), everyTarget
	}
	s.line = append(s.line, p[:min(len(p), 3-len(s.line))]...)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\t')
		field := p
		if end >= 0 {
			field = p[:end]
		}
		if s.field == s.cfg.Key {
			s.key = append(s.key, field...)
		}
		if err := s.pass(field); err != nil {
			return err
		}
		if end < 0 {
			return nil
		}
		if err := s.endKey(); err != nil {
			return err
		}
		if err := s.pass(p[end : end+1]); err != nil {
			return err
		}
		s.field++
		p = p[end+1:]
	}
	return nil
}

func (s *Text) endRow() error {
	if err := s.checkFields(s.field, len(s.line)); err != nil {
		return err
	}
	if string(s.line) == `\.` {
		return s.damaged("it holds an end marker")
	}
	if err := s.endKey(); err != nil {
		return err
	}
	if err := s.send(s.target, []byte{'\n'}); err != nil {
		return err
	}
	s.inRow = false
	s.counted(s.target)
	return nil
}

// endKey routes the row if the field that ended is the realm key.
func (s *Text) endKey() error {
	if s.field != s.cfg.Key {
		return nil
	}
	target, err := s.targetOf(s.key)
	if err != nil || s.known {
		return err
	}
	s.target, s.known = target, true
	err = s.send(target, s.held)
	if cap(s.held) > maxHeld {
		s.held = nil
	}
	return err
}

func (s *Text) pass(b []byte) error {
	if s.known {
		return s.send(s.target, b)
	}
	s.held = append(s.held, b...)
	return nil
}

// targetOf names the target of a row by the raw bytes of its realm key's field.
func (s *Text) targetOf(raw []byte) (int, error) {
	if string(raw) == `\N` {
		return 0, s.nullRealm()
	}
	if !s.routed() {
		return everyTarget, nil
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return s.dealer.target(raw)
	}
	realm, ok := unescape(s.realm[:0], raw)
	if s.realm = realm; !ok {
		return 0, s.damaged("the realm key ends within an escape")
	}
	return s.dealer.target(realm)
}

// unescape appends the value of a field to dst.
func unescape(dst, raw []byte) ([]byte, bool) {
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '\\' {
			dst = append(dst, c)
			continue
		}
		if i++; i == len(raw) {
			return dst, false
		}
		switch c = raw[i]; c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'v':
			c = '\v'
		}
		dst = append(dst, c)
	}
	return dst, true
}
