package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"sync"
	"time"
)

// Ledger remembers every write from before it is first sent. It is safe for use by several goroutines.
type Ledger struct {
	baseline Baseline

	mu      sync.Mutex
	entries map[string]*entry
	order   []*entry // as sent
	gaps    map[string]*Gap
	counts  Counts
}

type outcome int

const (
	unknown      outcome = iota // sent, and no answer that says how it ended
	acknowledged                // the client was told that it is done
	refused                     // the client was told that it is not, and did not send it again
)

type entry struct {
	op      Op
	bodySum string // SHA-256 of a document's body; the body itself is not kept
	outcome outcome
	side    string // who acknowledged it
}

// Counts of writes. Sent = Acknowledged + Refused + Unknown.
type Counts struct {
	Sent         int64            `json:"sent"`
	Acknowledged int64            `json:"acknowledged"`
	Refused      int64            `json:"refused"`
	Unknown      int64            `json:"unknown"`
	BySide       map[string]int64 `json:"by_side"` // acknowledged, by who answered: "source", "shards"
	ByKind       map[Kind]int64   `json:"by_kind"` // acknowledged
}

// Gap is the longest time between two acknowledged writes.
type Gap struct {
	Longest time.Duration `json:"longest_ns"`
	At      time.Time     `json:"at"` // when it ended
	last    time.Time
}

// Millis is the gap in milliseconds.
func (g Gap) Millis() float64 { return float64(g.Longest) / float64(time.Millisecond) }

// The groups that gaps are measured for.
const (
	GapAll    = "all"
	GapHTTP   = "http"
	GapDirect = "direct"
)

// NewLedger begins with what was there before the first write.
func NewLedger(baseline Baseline) *Ledger {
	return &Ledger{
		baseline: baseline, entries: map[string]*entry{}, gaps: map[string]*Gap{},
		counts: Counts{BySide: map[string]int64{}, ByKind: map[Kind]int64{}},
	}
}

// Baseline is what was there before the first write.
func (l *Ledger) Baseline() Baseline { return l.baseline }

// Sent records a write before it is sent for the first time.
func (l *Ledger) Sent(op Op) {
	e := &entry{op: op}
	if op.Document != nil {
		d := *op.Document
		e.bodySum = sum(d.Body)
		d.Body, d.Attachment = "", nil
		e.op.Document = &d
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[op.ID] = e
	l.order = append(l.order, e)
	l.counts.Sent++
	l.counts.Unknown++
}

// Acknowledged records that a client was told that its write is done; group is GapHTTP or GapDirect, side who said so.
func (l *Ledger) Acknowledged(id, group, side string) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[id]
	if e == nil || e.outcome != unknown {
		return
	}
	e.outcome, e.side = acknowledged, side
	l.counts.Unknown--
	l.counts.Acknowledged++
	l.counts.BySide[side]++
	l.counts.ByKind[e.op.Kind]++
	for _, g := range []string{GapAll, group} {
		gap := l.gaps[g]
		if gap == nil {
			gap = &Gap{last: now}
			l.gaps[g] = gap
		}
		if d := now.Sub(gap.last); d > gap.Longest {
			gap.Longest, gap.At = d, now
		}
		gap.last = now
	}
}

// Refused records that a client was told that its write is not done, and gave it up.
func (l *Ledger) Refused(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entries[id]; e != nil && e.outcome == unknown {
		e.outcome = refused
		l.counts.Unknown--
		l.counts.Refused++
	}
}

// Counts is a copy of the counts so far.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts
	c.BySide, c.ByKind = maps.Clone(c.BySide), maps.Clone(c.ByKind)
	return c
}

// AcknowledgedBy is the ids of the writes that a side has acknowledged so far; "": either.
func (l *Ledger) AcknowledgedBy(side string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for _, e := range l.order {
		if e.outcome == acknowledged && (side == "" || e.side == side) {
			ids = append(ids, e.op.ID)
		}
	}
	return ids
}

// LongestGap is the longest time between two acknowledged writes of a group since the last ResetGaps.
func (l *Ledger) LongestGap(group string) Gap {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.gaps[group]; g != nil {
		return *g
	}
	return Gap{}
}

// ResetGaps begins measuring anew, for example just before a cutover.
func (l *Ledger) ResetGaps() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.gaps {
		g.Longest, g.At = 0, time.Time{}
	}
}

// snapshot is what was sent, in order, and how it ended.
func (l *Ledger) snapshot() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]entry, len(l.order))
	for i, e := range l.order {
		out[i] = *e
	}
	return out
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
