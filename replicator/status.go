package replicator

import (
	"sync"
	"time"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/snapshot"
	"github.com/rehomedb/rehome/tenant"
)

// rateWindow is over how long rates are averaged: long enough to be steady, short enough to follow a change.
const rateWindow = 10 * time.Second

// stats are the counters behind replication-progress.
type stats struct {
	mu      sync.Mutex
	tables  []*tableStat
	byOID   map[uint32]*tableStat
	step    string
	blocked string
	slotWAL int64
	head    tenant.LSN // the source's write position, when it was last asked
	alarm   string
	samples []sample
	twice   sample // rows and bytes that were copied again
}

type sample struct {
	at          time.Time
	rows, bytes int64
}

// tableStat counts one table's copy.
type tableStat struct {
	mu         sync.Mutex
	name       string
	state      string
	rowsTotal  int64 // an estimate until done
	bytesTotal int64
	rows       int64 // of finished leaves
	bytes      int64
	units      int // transactions that bring it: leaves or chunks
	unitsLeft  int
	chunked    bool // the units are parts of about one size
	live       map[*snapshot.Counters]bool
}

func (s *stats) reset(cat *catalog.Catalogue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables, s.byOID = nil, map[uint32]*tableStat{}
	for i := range cat.Tables {
		t := &cat.Tables[i]
		ts := &tableStat{name: t.Name.String(), state: "waiting", rowsTotal: max(t.Rows, 0), bytesTotal: t.Bytes, units: len(t.Leaves), unitsLeft: len(t.Leaves), live: map[*snapshot.Counters]bool{}}
		if len(t.Leaves) == 0 {
			ts.state = "done"
		}
		s.tables = append(s.tables, ts)
		s.byOID[t.OID] = ts
	}
}

// follow adds and drops tables as the source does while it streams: those that came up need no copy.
func (s *stats) follow(cat *catalog.Catalogue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.byOID
	s.tables, s.byOID = nil, map[uint32]*tableStat{}
	for i := range cat.Tables {
		t := &cat.Tables[i]
		ts := was[t.OID]
		if ts == nil {
			ts = &tableStat{state: "done", live: map[*snapshot.Counters]bool{}}
		}
		ts.mu.Lock()
		ts.name = t.Name.String()
		ts.mu.Unlock()
		s.tables = append(s.tables, ts)
		s.byOID[t.OID] = ts
	}
}

func (s *stats) table(t *catalog.Table) *tableStat {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byOID[t.OID]
}

func (s *stats) setStep(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step = step
}

func (s *stats) setBlocked(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked = who
}

func (s *stats) again(rows, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twice = sample{rows: rows, bytes: bytes}
}

func (t *tableStat) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = "copying"
}

// restart begins a table, or goes on with it: of its units some may be done, with what they brought.
func (t *tableStat) restart(units, left int, chunked bool, rows, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chunked = chunked
	if t.state == "done" {
		t.state = "copying"
	}
	t.rows, t.bytes, t.units, t.unitsLeft = rows, bytes, units, left
}

// count adds live counters; undo takes them away again when the copy failed.
func (t *tableStat) count(c *snapshot.Counters) (undo func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[c] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.live, c)
	}
}

// finishUnit puts the exact figures of a leaf or chunk in the place of its live ones.
func (t *tableStat) finishUnit(c *snapshot.Counters, rows, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, c)
	t.rows += rows
	t.bytes += bytes
	t.unitsLeft--
	if t.unitsLeft == 0 {
		t.done()
	}
}

// finish notes a table that was copied before.
func (t *tableStat) finish(rows, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows, t.bytes, t.unitsLeft = rows, bytes, 0
	t.done()
}

func (t *tableStat) done() {
	t.state = "done"
	t.rowsTotal, t.bytesTotal = t.rows, t.bytes
}

// progress gives a consistent line: never more done than total, since the totals are estimates until the table is done.
func (t *tableStat) progress() tenant.TableProgress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := tenant.TableProgress{Table: t.name, State: t.state, RowsDone: t.rows, BytesDone: t.bytes, RowsTotal: t.rowsTotal, BytesTotal: t.bytesTotal}
	if done := t.units - t.unitsLeft; t.chunked && done > 0 && t.unitsLeft > 0 {
		// Chunks are of about one size, so that those which are done say what the stream's size will be; until then the
		// size of the table at the source has to do, dead rows included.
		p.RowsTotal, p.BytesTotal = t.rows/int64(done)*int64(t.units), t.bytes/int64(done)*int64(t.units)
	}
	for c := range t.live {
		p.RowsDone += c.Rows.Load()
		p.BytesDone += c.Bytes.Load()
	}
	p.RowsTotal = max(p.RowsTotal, p.RowsDone)
	p.BytesTotal = max(p.BytesTotal, p.BytesDone)
	return p
}

// Progress is what the replication shows just now.
func (e *Engine) Progress() tenant.Progress {
	e.mu.Lock()
	p := tenant.Progress{Replication: e.cfg.Replication, Phase: e.state.Phase, Reason: e.state.Reason, Remedy: e.state.Remedy, At: time.Now().UTC(), ETASeconds: -1}
	st := e.stream
	e.mu.Unlock()

	care := e.throttle.care()
	p.Care, p.Throttled = &care, care.Throttled

	s := &e.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Step, p.Blocked, p.SlotWAL, p.SourceLSN = s.step, s.blocked, s.slotWAL, s.head
	p.RowsAgain, p.BytesAgain = s.twice.rows, s.twice.bytes
	if s.alarm != "" {
		p.Reason = s.alarm
	}
	for _, t := range s.tables {
		tp := t.progress()
		p.Tables = append(p.Tables, tp)
		p.RowsDone += tp.RowsDone
		p.RowsTotal += tp.RowsTotal
		p.BytesDone += tp.BytesDone
		p.BytesTotal += tp.BytesTotal
	}
	switch {
	case len(s.tables) == 0:
	case p.BytesTotal == 0:
		p.Percent = 100
	default:
		p.Percent = min(100, 100*float64(p.BytesDone)/float64(p.BytesTotal))
	}
	rows, bytes := p.RowsDone, p.BytesDone
	if st != nil {
		st.fill(&p)
		rows, bytes = p.AppliedRows, 0
	}
	p.RowsPerSec, p.BytesPerSec = s.rate(rows, bytes)
	if left := p.BytesTotal - p.BytesDone; p.Phase == tenant.Copying && p.BytesPerSec > 0 {
		p.ETASeconds = float64(left) / p.BytesPerSec
	}
	return p
}

// rate averages over the window; a counter that went back, as after a restart, begins anew.
func (s *stats) rate(rows, bytes int64) (rowsPerSec, bytesPerSec float64) {
	now := time.Now()
	if n := len(s.samples); n > 0 && (rows < s.samples[n-1].rows || bytes < s.samples[n-1].bytes) {
		s.samples = s.samples[:0]
	}
	s.samples = append(s.samples, sample{now, rows, bytes})
	for len(s.samples) > 2 && now.Sub(s.samples[0].at) > rateWindow {
		s.samples = s.samples[1:]
	}
	first := s.samples[0]
	d := now.Sub(first.at).Seconds()
	if d < 0.2 {
		return 0, 0
	}
	return float64(rows-first.rows) / d, float64(bytes-first.bytes) / d
}

// fill adds what the stream knows.
func (s *stream) fill(p *tenant.Progress) {
	s.mu.Lock()
	p.SourceLSN = max(p.SourceLSN, s.head)
	received := s.received
	s.mu.Unlock()
	p.SpooledBytes, p.AheadTxns = s.spools.kept.Load(), s.e.aheadTxns.Load()
	slowest := received
	var oldest time.Time
	for _, l := range s.lanes {
		pos := l.position()
		at := l.oldest()
		if !at.IsZero() {
			if oldest.IsZero() || at.Before(oldest) {
				oldest = at
			}
			slowest = min(slowest, pos.LSN)
		}
		txns, rows := l.counts()
		p.AppliedTxns += txns
		p.AppliedRows += rows
		p.Shards = append(p.Shards, pos)
	}
	// A lane without work stands where the reader is, though it records that only now and then.
	if slowest > 0 && p.SourceLSN > slowest {
		p.LagBytes = int64(p.SourceLSN - slowest)
	}
	if !oldest.IsZero() {
		p.LagMillis = max(0, float64(time.Since(oldest).Microseconds())/1000)
	}
}
