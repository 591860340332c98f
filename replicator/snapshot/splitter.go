package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync/atomic"
)

// BufferSize is how many bytes are gathered for a shard before they are handed on: a message for each row costs ten times
// the CPU, here and at the shard.
const BufferSize = 256 << 10

// publishEvery is how many bytes pass between two updates of the live counters, so that they cost nothing per row.
const publishEvery = 64 << 10

// Counters are a copy's live figures, for progress.
type Counters struct {
	Rows  atomic.Int64 // rows read from the source
	Bytes atomic.Int64 // bytes of the source's COPY stream
}

// Splitter takes a COPY stream in chunks of any size and deals its rows to targets.
type Splitter interface {
	Write(p []byte) (int, error)
	// Close checks that the stream ended as it must and hands on what is still buffered.
	Close() error
	// Rows is the number of rows so far.
	Rows() int64
	// PerTarget is the number of rows so far for each target.
	PerTarget() []int64
}

// Config tells a splitter what it reads and where rows go.
type Config struct {
	Table   string // for messages
	Columns int    // fields of each row
	Key     int    // field that holds the realm; -1: every row goes to every target
	KeyType uint32 // OID of the realm key's type, below any domain: int2, int4, int8, uuid, text, varchar, bpchar
	Targets int
	// Route gives the target of a realm's UTF-8 text, which is valid during the call only; always the same one for the same
	// realm. Not needed for one target.
	Route func(realm []byte) int
	// Headroom is how many bytes are left free at the beginning of each buffer, for whoever sends it.
	Headroom int
	// Flush takes a full buffer for a target and gives an empty one (nil: allocate).
	Flush    func(target int, full []byte) (empty []byte, err error)
	Counters *Counters // may be nil
}

// OIDs of the types that a realm key may have (pg_type.dat).
const (
	oidInt8    = 20
	oidInt2    = 21
	oidInt4    = 23
	oidText    = 25
	oidBpchar  = 1042
	oidVarchar = 1043
	oidUUID    = 2950
)

func supportedKey(oid uint32) bool {
	switch oid {
	case oidInt2, oidInt4, oidInt8, oidText, oidBpchar, oidVarchar, oidUUID:
		return true
	}
	return false
}

// everyTarget stands for "no single target": all of them.
const everyTarget = -1

// dealer is what both formats share: routing, buffers and counters.
type dealer struct {
	cfg       Config
	bufs      [][]byte
	full      int    // size of a full buffer, headroom included
	head      []byte // what fills the headroom
	perTarget []int64
	rows      int64
	bytes     int64
	published int64 // bytes at the last update of the counters
	pubRows   int64
	realm     []byte // scratch for the realm's text
	last      []byte // the realm routed last: rows of one realm often follow each other, and hashing is most of the cost
	lastGoes  int    // to this target; -1: none yet
	err       error
}

func newDealer(cfg Config) (dealer, error) {
	if cfg.Targets < 1 || cfg.Flush == nil || cfg.Columns < 0 || cfg.Key >= cfg.Columns {
		return dealer{}, fmt.Errorf("split COPY stream of %s: bad configuration", cfg.Table)
	}
	if cfg.Key >= 0 && cfg.Targets > 1 && (cfg.Route == nil || !supportedKey(cfg.KeyType)) {
		return dealer{}, fmt.Errorf("split COPY stream of %s: type %d cannot be a realm key", cfg.Table, cfg.KeyType)
	}
	return dealer{
		cfg: cfg, bufs: make([][]byte, cfg.Targets), full: cfg.Headroom + BufferSize, head: make([]byte, cfg.Headroom),
		perTarget: make([]int64, cfg.Targets), lastGoes: -1,
	}, nil
}

// Rows is the number of rows so far.
func (d *dealer) Rows() int64 { return d.rows }

// PerTarget is the number of rows so far for each target.
func (d *dealer) PerTarget() []int64 { return d.perTarget }

func (d *dealer) damaged(problem string) error {
	return fmt.Errorf("%w of %s in row %d: %s", ErrDamaged, d.cfg.Table, d.rows+1, problem)
}

func (d *dealer) nullRealm() error {
	return fmt.Errorf("%w: row %d of the copy of table %s", ErrNullRealm, d.rows+1, d.cfg.Table)
}

// target names the target of a realm text. Rows of tables without key, and all rows if there is but one target, go everywhere.
func (d *dealer) target(realm []byte) (int, error) {
	if d.cfg.KeyType == oidBpchar {
		realm = bytes.TrimRight(realm, " ") // as bpchar::text does
	}
	if d.lastGoes >= 0 && bytes.Equal(realm, d.last) {
		return d.lastGoes, nil
	}
	t := d.cfg.Route(realm)
	if t < 0 || t >= d.cfg.Targets {
		return 0, fmt.Errorf("table %s: realm %q has no shard", d.cfg.Table, realm)
	}
	d.last, d.lastGoes = append(d.last[:0], realm...), t
	return t, nil
}

func (d *dealer) routed() bool { return d.cfg.Key >= 0 && d.cfg.Targets > 1 }

// send appends bytes to a target's buffer, or to all.
func (d *dealer) send(target int, p []byte) error {
	if target == everyTarget {
		for t := range d.bufs {
			if err := d.send(t, p); err != nil {
				return err
			}
		}
		return nil
	}
	b := d.bufs[target]
	if len(b)+len(p) < d.full && len(b) > 0 {
		d.bufs[target] = append(b, p...)
		return nil
	}
	if len(b) == 0 {
		b = append(b, d.head...)
	}
	for len(b)+len(p) >= d.full {
		n := d.full - len(b)
		next, err := d.cfg.Flush(target, append(b, p[:n]...))
		if err != nil {
			return err
		}
		p, b = p[n:], next[:0]
		if cap(b) < d.full {
			b = make([]byte, 0, d.full)
		}
		b = append(b, d.head...)
	}
	d.bufs[target] = append(b, p...)
	return nil
}

// counted adds a row that went to target.
func (d *dealer) counted(target int) {
	d.rows++
	if target != everyTarget {
		d.perTarget[target]++
		return
	}
	for t := range d.perTarget {
		d.perTarget[t]++
	}
}

func (d *dealer) publish() {
	if c := d.cfg.Counters; c != nil {
		c.Rows.Add(d.rows - d.pubRows)
		c.Bytes.Add(d.bytes - d.published)
	}
	d.published, d.pubRows = d.bytes, d.rows
}

// flushAll hands on what is still buffered.
func (d *dealer) flushAll() error {
	for t, b := range d.bufs {
		if len(b) <= len(d.head) {
			continue
		}
		if _, err := d.cfg.Flush(t, b); err != nil {
			return err
		}
		d.bufs[t] = nil
	}
	return nil
}

// binaryRealm gives the canonical text of a realm key's binary form, in d.realm or in raw itself.
func (d *dealer) binaryRealm(raw []byte) ([]byte, error) {
	switch d.cfg.KeyType {
	case oidText, oidVarchar, oidBpchar:
		return raw, nil
	case oidInt2:
		if len(raw) == 2 {
			d.realm = strconv.AppendInt(d.realm[:0], int64(int16(binary.BigEndian.Uint16(raw))), 10)
			return d.realm, nil
		}
	case oidInt4:
		if len(raw) == 4 {
			d.realm = strconv.AppendInt(d.realm[:0], int64(int32(binary.BigEndian.Uint32(raw))), 10)
			return d.realm, nil
		}
	case oidInt8:
		if len(raw) == 8 {
			d.realm = strconv.AppendInt(d.realm[:0], int64(binary.BigEndian.Uint64(raw)), 10)
			return d.realm, nil
		}
	case oidUUID:
		if len(raw) == 16 {
			d.realm = appendUUID(d.realm[:0], raw)
			return d.realm, nil
		}
	}
	return nil, d.damaged(fmt.Sprintf("the realm key has %d bytes, which its type %d has not", len(raw), d.cfg.KeyType))
}

func appendUUID(dst, raw []byte) []byte {
	for i, n := range [...]int{4, 2, 2, 2, 6} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, raw[:n])
		raw = raw[n:]
	}
	return dst
}
