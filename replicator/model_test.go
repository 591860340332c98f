package replicator

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// modelShard is a shard that enforces what Postgres enforces for a replica: primary keys and immediate unique
// constraints, row by row. A deferrable constraint is not enforced.
type modelShard struct {
	pos    tenant.LSN
	tables [historyTables][]pgoutput.Tuple
	kept   map[string][][]byte // rehome.carry
}

func (m *modelShard) clone() *modelShard {
	out := &modelShard{pos: m.pos, kept: map[string][][]byte{}}
	for t := range m.tables {
		out.tables[t] = slices.Clone(m.tables[t]) // rows are never changed in place
	}
	maps.Copy(out.kept, m.kept)
	return out
}

var (
	errUnique = errors.New("23505: duplicate key")
	errCount  = errors.New("another number of rows was hit than was named")
)

func same(a, b pgoutput.Value) bool { return a.Kind == b.Kind && bytes.Equal(a.Data, b.Data) }

// table says which of the tables a change is of.
func (c *change) modelTable() int { return int(c.rel.table.OID) - 1 }

// check refuses a row that another one, not counting row at, stands in the way of.
func (m *modelShard) check(t, at int, row pgoutput.Tuple) error {
	if t == wholeTable {
		return nil
	}
	for i, r := range m.tables[t] {
		if i == at {
			continue
		}
		if same(r[1], row[1]) && (t == refTable || t == blindTable || same(r[0], row[0])) {
			return errUnique
		}
		if t != deferredTable && row[2].Kind == pgoutput.Text && same(r[2], row[2]) {
			return errUnique
		}
	}
	return nil
}

// find is the row that a key names, or an equal one where the identity is the whole row; -1: none.
func (m *modelShard) find(rel *relation, t int, key pgoutput.Tuple) int {
	return slices.IndexFunc(m.tables[t], func(r pgoutput.Tuple) bool {
		for i := range r {
			if (rel.full || rel.isKey(i)) && !same(r[i], key[i]) {
				return false
			}
		}
		return true
	})
}

func (m *modelShard) insert(t int, row pgoutput.Tuple) error {
	if err := m.check(t, -1, row); err != nil {
		return err
	}
	for i := range row {
		if row[i].Kind == pgoutput.Unchanged {
			return fmt.Errorf("column %d has no value", i)
		}
	}
	m.tables[t] = append(slices.Clip(m.tables[t]), slices.Clone(row))
	return nil
}

func (m *modelShard) update(t, at int, row pgoutput.Tuple, mask string) error {
	now := slices.Clone(m.tables[t][at])
	for i := range mask {
		if mask[i] == '1' {
			now[i] = row[i]
		}
	}
	if err := m.check(t, at, now); err != nil {
		return err
	}
	m.tables[t] = slices.Clone(m.tables[t])
	m.tables[t][at] = now
	return nil
}

func (m *modelShard) remove(t, at int) pgoutput.Tuple {
	row := m.tables[t][at]
	m.tables[t] = slices.Delete(slices.Clone(m.tables[t]), at, at+1)
	return row
}

// one is a statement for one change.
func (m *modelShard) one(c *change) error {
	if c.op == opTruncate {
		for _, r := range c.truncate.rels {
			m.tables[r.table.OID-1] = nil
		}
		return nil
	}
	t := c.modelTable()
	if c.op == opInsert {
		return m.insert(t, c.row)
	}
	key := c.old
	if key == nil {
		key = c.row
	}
	at := m.find(c.rel, t, key)
	switch {
	case at < 0 && c.anywhere:
		return nil
	case at < 0:
		return errCount
	case c.op == opUpdate:
		return m.update(t, at, c.row, c.mask())
	}
	m.remove(t, at)
	return nil
}

// set is a statement over arrays. The order in which it comes to its rows is the server's.
func (m *modelShard) set(d Dice, r *changeRun) error {
	order := make([]int, len(r.rows))
	for i := range order {
		j := d.IntN(i + 1)
		order[i] = order[j]
		order[j] = i
	}
	if r.op == opInsert { // as the array has them
		slices.Sort(order)
	}
	t := int(r.rel.table.OID) - 1
	hit := 0
	done := map[string]bool{}
	for _, i := range order {
		c := r.rows[i]
		if r.op == opInsert {
			if err := m.insert(t, c.row); err != nil {
				return err
			}
			hit++
			continue
		}
		key := c.row
		if r.op == opDelete {
			key = c.old
		}
		at := m.find(r.rel, t, key)
		if at < 0 || done[r.rel.key(key)] {
			continue // a statement changes a row once
		}
		done[r.rel.key(key)] = true
		hit++
		if r.op == opDelete {
			m.remove(t, at)
		} else if err := m.update(t, at, c.row, r.mask); err != nil {
			return err
		}
	}
	if hit != len(r.rows) && !r.rows[0].anywhere {
		return errCount
	}
	return nil
}

// state lists what a shard has, in an order of its own.
func (m *modelShard) state() []string {
	out := []string{}
	for t, rows := range m.tables {
		for _, r := range rows {
			out = append(out, HistoryRow{string(r[0].Data), string(r[1].Data), string(r[2].Data), string(r[3].Data), string(r[4].Data)}.state(t))
		}
	}
	slices.Sort(out)
	return out
}
