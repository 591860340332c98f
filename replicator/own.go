package replicator

import (
	"strings"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// A transaction of a lane begins with its row of rehome.progress (pipelineRun.advance). Where the rows that a lane writes
// are streamed in the other direction, that row is published too, and whatever follows it in its transaction is known to
// have come from here: it is never sent back. The key of the row says whose it is; a lane of another replication, which
// may well write to the same database, is a writer like any other.

// ownKey says whether a row of rehome.progress is the other direction's.
func (e *Engine) ownKey(replication string) bool {
	if b := e.cfg.back; b != nil {
		return replication == b.replication
	}
	return strings.HasPrefix(replication, e.cfg.Replication+backKeySeparator)
}

// leads takes note of the first change of a transaction, and reports whether the change is to be left out: it belongs to a
// transaction of our own, or is a row of rehome.progress otherwise (what is pruned there).
func (s *stream) leads(rel *relation, m *pgoutput.Message) (ours bool) {
	first := !s.seen
	s.seen = true
	if s.own {
		return true
	}
	if rel.special != progressTable {
		return false
	}
	if first && m.Kind == pgoutput.Insert && s.e.ownKey(rel.value(m.New, "replication")) {
		s.own = true
	}
	return true
}

// value is a column's text in a row; "" if it is not there.
func (r *relation) value(row pgoutput.Tuple, column string) string {
	for i, c := range r.columns {
		if c.Name == column && i < len(row) && row[i].Kind == pgoutput.Text {
			return string(row[i].Data)
		}
	}
	return ""
}

// onlyOurs reports whether what was read since a position are transactions of the other direction. A lane that has nothing
// else to record takes its time: each of its records is a transaction that the other direction reads, and would record.
func (s *stream) onlyOurs(since tenant.LSN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ours > since && s.others <= since
}
