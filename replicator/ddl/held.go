package ddl

import (
	"slices"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// Keys and indexes that wait at a shard until the stream is far enough are those of when its copy began. The source may
// have changed or dropped them since: the shape of the shard's position tells.

// Held is a key, constraint or index as a shape has it.
type Held struct {
	OID uint32 // the constraint's or index's
	// Is tells two states of it apart: its names, its definition, and, in a partition tree, those of all its parts.
	Is string
	// SQL makes it, with its parts; "": it is a part, and comes along with the whole.
	SQL string
}

// Objects are the keys, constraints and indexes of a shape by the names of pg_dump's items: "KIND schema.tag".
func (s *Shape) Objects() map[string]Held {
	h := holder{shape: s, parts: map[uint32][]place{}, index: map[uint32]place{}}
	for _, t := range s.Tables {
		for i := range t.Indexes {
			x := &t.Indexes[i]
			h.index[x.OID] = place{t, x}
			if x.Parent != 0 {
				h.parts[x.Parent] = append(h.parts[x.Parent], place{t, x})
			}
		}
	}
	out := map[string]Held{}
	for _, t := range s.Tables {
		backed := map[string]bool{}
		for i := range t.Constraints {
			k := &t.Constraints[i]
			backed[k.Name] = true
			kind := "CONSTRAINT"
			switch k.Type {
			case "f":
				kind = "FK CONSTRAINT"
			case "c":
				kind = "CHECK CONSTRAINT"
			}
			is := k.Def
			for j := range t.Indexes {
				if x := &t.Indexes[j]; !x.Own && x.Name == k.Name {
					is = h.is(place{t, x}, 0) + " " + is
				}
			}
			out[kind+" "+t.Schema+"."+t.Name+" "+k.Name] = Held{
				OID: k.OID, Is: t.quoted() + " " + tenant.QuoteIdent(k.Name) + " " + is,
				SQL: "ALTER TABLE " + t.quoted() + " ADD CONSTRAINT " + tenant.QuoteIdent(k.Name) + " " + k.Def,
			}
		}
		for i := range t.Indexes {
			x := &t.Indexes[i]
			_, part := h.index[x.Parent]
			if x.Parent != 0 && !part {
				continue // dropped with the whole
			}
			one := Held{OID: x.OID, Is: h.is(h.root(place{t, x}, 0), 0)}
			if part {
				out["INDEX ATTACH "+t.Schema+"."+x.Name] = one // made along with its parent
			} else {
				one.SQL = indexDefinition(t, x)
			}
			if x.Own {
				out["INDEX "+t.Schema+"."+x.Name] = one
			} else if !backed[x.Name] {
				out["CONSTRAINT "+t.Schema+"."+t.Name+" "+x.Name] = one
			}
		}
	}
	return out
}

// place is an index with its table.
type place struct {
	table *Table
	index *Index
}

type holder struct {
	shape *Shape
	parts map[uint32][]place // by the index of the partitioned table
	index map[uint32]place
}

const deepest = 64 // deeper than any partition tree, in case of a cycle of stale states

// root is the index of the whole partition tree.
func (h *holder) root(p place, level int) place {
	if up, ok := h.index[p.index.Parent]; ok && p.index.Parent != 0 && level < deepest {
		return h.root(up, level+1)
	}
	return p
}

// is describes an index with all its parts.
func (h *holder) is(p place, level int) string {
	lines := []string{}
	if level < deepest {
		for _, c := range h.parts[p.index.OID] {
			lines = append(lines, h.is(c, level+1))
		}
	}
	slices.Sort(lines)
	return strings.Join(append([]string{p.table.quoted() + " " + p.index.Def + " " + strconv.Itoa(len(lines))}, lines...), "\n")
}
