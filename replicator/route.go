package replicator

import (
	"bytes"
	"context"
	"fmt"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// router names the lane of a row. It is immutable.
type router struct {
	placement tenant.Placement
	index     map[string]int // shard -> lane
}

func newRouter(p tenant.Placement, shards []Shard) (*router, error) {
	r := &router{placement: p, index: make(map[string]int, len(shards))}
	for i, s := range shards {
		r.index[s.Name] = i
	}
	for _, s := range p.Shards() {
		if _, ok := r.index[s]; !ok {
			return nil, fmt.Errorf("the placement names shard %s, which the replication does not know", s)
		}
	}
	return r, nil
}

func (r *router) lane(realm []byte) int { return r.index[r.placement.ShardOfBytes(realm)] }

// dispatch sends the changes of a row to the lanes that own it.
func (s *stream) dispatch(ctx context.Context, rel *relation, m *pgoutput.Message) error {
	var o op
	var row, old pgoutput.Tuple
	switch m.Kind {
	case pgoutput.Insert:
		o, row = opInsert, m.New
	case pgoutput.Update:
		o, row = opUpdate, m.New
		if m.OldKind != pgoutput.OldNone {
			old = m.Old
		}
	default:
		o, old = opDelete, m.Old
	}
	if n := max(len(row), len(old)); n != len(rel.columns) {
		return fmt.Errorf("stream: a row of %s has %d values for %d columns", rel.name, n, len(rel.columns))
	}
	anew := o == opUpdate && rel.regenerated(old, row)
	if rel.realm < 0 || len(s.lanes) == 1 {
		for i := range s.lanes {
			if anew {
				if err := s.move(ctx, i, i, rel, row, old); err != nil {
					return err
				}
			} else if err := s.add(ctx, i, change{op: o, rel: rel, row: row, old: old}); err != nil {
				return err
			}
		}
		return nil
	}
	to, from := -1, -1
	var err error
	if rel.blind && row == nil {
		return s.deleteAnywhere(ctx, rel, old)
	}
	if old != nil && !rel.blind {
		if from, err = s.laneOf(rel, old, m); err != nil {
			return err
		}
	}
	if row != nil {
		if row[rel.realm].Kind == pgoutput.Unchanged && old != nil {
			row[rel.realm] = old[rel.realm]
		}
		if to, err = s.laneOf(rel, row, m); err != nil {
			return err
		}
	}
	if rel.blind && old != nil {
		from = to // the key changed, the realm never does
	}
	switch {
	case row == nil:
		return s.add(ctx, from, change{op: opDelete, rel: rel, old: old})
	case o == opInsert || from < 0 || (from == to && !anew):
		return s.add(ctx, to, change{op: o, rel: rel, row: row, old: old})
	}
	return s.move(ctx, from, to, rel, row, old)
}

// deleteAnywhere has every shard look for a row whose realm is not known. No other shard can have a row with its key: the
// key is unique at the source.
func (s *stream) deleteAnywhere(ctx context.Context, rel *relation, old pgoutput.Tuple) error {
	for i := range s.lanes {
		if err := s.add(ctx, i, change{op: opDelete, rel: rel, old: old, anywhere: true}); err != nil {
			return err
		}
	}
	return nil
}

// regenerated reports whether an UPDATE … SET id = DEFAULT gave a GENERATED ALWAYS identity another value. No UPDATE can
// set such a value at a shard, an INSERT can.
func (r *relation) regenerated(old, row pgoutput.Tuple) bool {
	for i := range old {
		if r.columns[i].IdentityKind == "a" && old[i].Kind == pgoutput.Text && row[i].Kind == pgoutput.Text && !bytes.Equal(old[i].Data, row[i].Data) {
			return true
		}
	}
	return false
}

// move deletes a row at one shard and inserts it at another, or at the same. Values that the source did not send are
// carried from the one to the other.
func (s *stream) move(ctx context.Context, from, to int, rel *relation, row, old pgoutput.Tuple) error {
	for i := range row {
		if row[i].Kind == pgoutput.Unchanged && (rel.full || rel.isKey(i)) {
			row[i] = old[i]
		}
	}
	k := s.newCarry(from, to, row)
	gives, needs := change{op: opDelete, rel: rel, old: old, gives: k}, change{op: opInsert, rel: rel, row: row, needs: k}
	if err := s.carriesMended(from, to, &gives, &needs); err != nil {
		return err
	}
	if err := s.add(ctx, from, gives); err != nil {
		return err
	}
	return s.add(ctx, to, needs)
}

func (s *stream) laneOf(rel *relation, row pgoutput.Tuple, m *pgoutput.Message) (int, error) {
	v := row[rel.realm]
	if v.Kind != pgoutput.Text {
		c := change{rel: rel, row: row}
		return 0, stop("row-without-realm",
			"give the row a realm at the source, or declare the table with --reference; then start again",
			"a row of %s (%s) has no value in its realm key %s", rel.name, rel.keyText(&c), rel.columns[rel.realm].Name)
	}
	realm := v.Data
	if rel.bpchar {
		realm = bytes.TrimRight(realm, " ")
	}
	return s.router.lane(realm), nil
}

// add gives a change to a lane, unless the lane's shard has the transaction already.
func (s *stream) add(ctx context.Context, i int, c change) error {
	if s.skip[i] {
		return nil
	}
	if done, err := s.hasMended(i, &c); done || err != nil {
		return err
	}
	if c.op == opTruncate || c.op == opDDL {
		s.stopAhead("another transaction truncates or changes the schema") // which takes locks that it must not wait for
	}
	return s.lanes[i].in.add(ctx, c)
}
