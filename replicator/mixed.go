package replicator

import (
	"context"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// Between the least and the greatest watermark of a table whose chunks were copied under several snapshots, a change
// belongs to some of its chunks only: a chunk has what was committed before its snapshot. A row that moves from one chunk
// to another may therefore be a deletion here, an insertion there, or nothing at all.

// marked tells a relation how its table was copied. Beyond the greatest watermark that matters no more, whatever became of
// the key by then.
func (r *relation) marked(c copied, commit tenant.LSN) error {
	r.skip, r.marks, r.chunk = c.watermark, nil, -1
	if !c.marks.mixedAt(commit) {
		return nil
	}
	for i, col := range r.columns {
		if col.Name == c.marks.key {
			r.chunk = i
		}
	}
	if r.chunk < 0 {
		return stop("chunk-key-gone", "cancel the replication and start it again",
			"column %s of table %s is gone or has another name, but its copy was made in parts by it, and the stream has not brought them to one position yet", c.marks.key, r.name)
	}
	r.marks = c.marks
	return nil
}

// has reports whether the copy of a row's chunk has what this transaction did.
func (s *stream) has(rel *relation, row pgoutput.Tuple) (bool, error) {
	v := row[rel.chunk]
	if v.Kind != pgoutput.Text {
		return false, stop("row-without-key", "report this", "the source sent a row of %s without its key column %s", rel.name, rel.marks.key)
	}
	k, err := parseKey(rel.marks.base, v.Data)
	if err != nil {
		return false, stop("bad-message", "report this", "table %s: %v", rel.name, err)
	}
	return s.commit < rel.marks.of(k), nil
}

// dispatchMixed sends on what is not in the copies of the chunks of the old and of the new row.
func (s *stream) dispatchMixed(ctx context.Context, rel *relation, m *pgoutput.Message) error {
	// The decoder leaves in a message what its kind does not have.
	hasOld, hasNew := m.Kind != pgoutput.Insert && m.OldKind != pgoutput.OldNone, m.Kind != pgoutput.Delete
	if (hasOld && len(m.Old) != len(rel.columns)) || (hasNew && len(m.New) != len(rel.columns)) {
		return s.dispatch(ctx, rel, m) // which says what is wrong
	}
	one := *m
	switch {
	case m.Kind == pgoutput.Insert, m.Kind == pgoutput.Update && m.OldKind == pgoutput.OldNone:
		// Without an old row the key is as it was.
		if done, err := s.has(rel, m.New); done || err != nil {
			return err
		}
		return s.dispatch(ctx, rel, m)
	case m.Kind == pgoutput.Delete:
		if done, err := s.has(rel, m.Old); done || err != nil {
			return err
		}
		return s.dispatch(ctx, rel, m)
	}
	left, err := s.has(rel, m.Old)
	if err != nil {
		return err
	}
	entered, err := s.has(rel, m.New)
	if err != nil {
		return err
	}
	switch {
	case left && entered:
		return nil
	case entered:
		// The row is in the copy of its new chunk; from the old one it must still go.
		one.Kind, one.New = pgoutput.Delete, nil
		return s.dispatch(ctx, rel, &one)
	case left:
		// The copy of the old chunk was made without the row; the new chunk must still get it, whole.
		one.Kind, one.Old, one.OldKind = pgoutput.Insert, nil, pgoutput.OldNone
		if err := completed(rel, m); err != nil {
			return err
		}
		return s.dispatch(ctx, rel, &one)
	}
	return s.dispatch(ctx, rel, m)
}

// completed fills the values that the source did not send again from the old row, which has them under FULL only.
func completed(rel *relation, m *pgoutput.Message) error {
	for i := range m.New {
		if m.New[i].Kind != pgoutput.Unchanged {
			continue
		}
		if !rel.full || m.Old[i].Kind == pgoutput.Unchanged {
			c := change{rel: rel, row: m.New, old: m.Old}
			return stop("unchanged-toast-across-chunks", "cancel the replication and start it again; REPLICA IDENTITY FULL on this table at the source would avoid it",
				"a row of %s (%s) changed its key while the interrupted copy stood still, and the source did not send the large value of column %s that did not change",
				rel.name, rel.keyText(&c), rel.columns[i].Name)
		}
		m.New[i] = m.Old[i]
	}
	return nil
}

// truncatedPart makes of a TRUNCATE the deletion of those rows whose chunks were copied before it.
func (r *relation) truncatedPart(commit tenant.LSN) string {
	if !r.marks.mixedAt(commit) {
		return ""
	}
	return r.marks.whereBefore(commit)
}
