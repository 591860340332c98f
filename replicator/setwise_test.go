package replicator

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// model is a table as a map from key to row, with a unique second column if asked for.
type model map[string]string

func text(s string) pgoutput.Value { return pgoutput.Value{Kind: pgoutput.Text, Data: []byte(s)} }

func testRelation(oid uint32) *relation {
	cols := []catalog.Column{{Name: "k", Type: "text", Category: "S"}, {Name: "a", Type: "text", Category: "S"}, {Name: "b", Type: "text", Category: "S"}}
	return &relation{table: &catalog.Table{OID: oid}, columns: cols, keys: []int{0}, sorts: []int{0}, arrays: arraysFit(cols), realm: -1}
}

// applyTo changes the model as a single statement of this change would; an unchanged value stays.
func (c *change) applyTo(t *rapid.T, m model) {
	at := fmt.Sprint(c.rel.table.OID, "/")
	switch c.op {
	case opInsert:
		k := at + string(c.row[0].Data)
		if _, there := m[k]; there {
			t.Fatalf("insert of %s, which is there", k)
		}
		m[k] = string(c.row[1].Data) + "|" + string(c.row[2].Data)
	case opUpdate:
		from := c.row
		if c.old != nil {
			from = c.old
		}
		k := at + string(from[0].Data)
		was, there := m[k]
		if !there {
			t.Fatalf("update of %s, which is not there", k)
		}
		b := string(c.row[2].Data)
		if c.row[2].Kind == pgoutput.Unchanged {
			for i := range was {
				if was[i] == '|' {
					b = was[i+1:]
				}
			}
		}
		delete(m, k)
		m[at+string(c.row[0].Data)] = string(c.row[1].Data) + "|" + b
	case opDelete:
		k := at + string(c.old[0].Data)
		if _, there := m[k]; !there {
			t.Fatalf("delete of %s, which is not there", k)
		}
		delete(m, k)
	case opTruncate:
		for _, r := range c.truncate.rels {
			for k := range m {
				if k[:len(fmt.Sprint(r.table.OID))+1] == fmt.Sprint(r.table.OID, "/") {
					delete(m, k)
				}
			}
		}
	}
}

// TestRunsDoWhatTheChangesDo: for any history that a source could have, the runs leave the same rows as the changes one
// by one, no run names a row twice, and a run that is one statement needs no order within.
func TestRunsDoWhatTheChangesDo(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rels := []*relation{testRelation(1), testRelation(2)}
		naive := model{}
		var cs []change
		fresh := 0
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			rel := rels[rapid.IntRange(0, 1).Draw(t, "table")]
			key := fmt.Sprintf("k%d", rapid.IntRange(0, 5).Draw(t, "key"))
			fresh++
			v, w := text(fmt.Sprintf("v%d", fresh)), text(fmt.Sprintf("w%d", fresh))
			_, there := naive[fmt.Sprint(rel.table.OID, "/", key)]
			var c change
			switch kind := rapid.IntRange(0, 12).Draw(t, "kind"); {
			case kind == 0:
				c = change{op: opTruncate, rel: rel, truncate: &truncation{rels: rels[:1+rapid.IntRange(0, 1).Draw(t, "both")]}}
			case !there:
				c = change{op: opInsert, rel: rel, row: pgoutput.Tuple{text(key), v, w}}
			case kind < 3:
				c = change{op: opDelete, rel: rel, old: pgoutput.Tuple{text(key), {Kind: pgoutput.Null}, {Kind: pgoutput.Null}}}
			case kind < 5:
				to := fmt.Sprintf("n%d", fresh) // a key change
				c = change{op: opUpdate, rel: rel, row: pgoutput.Tuple{text(to), v, w}, old: pgoutput.Tuple{text(key), {Kind: pgoutput.Null}, {Kind: pgoutput.Null}}}
			case kind < 8:
				c = change{op: opUpdate, rel: rel, row: pgoutput.Tuple{text(key), v, {Kind: pgoutput.Unchanged}}}
			default:
				c = change{op: opUpdate, rel: rel, row: pgoutput.Tuple{text(key), v, w}}
			}
			c.applyTo(t, naive)
			cs = append(cs, c)
		}
		got := model{}
		for _, run := range planRuns(cs) {
			if run.op == 0 || run.op == opTruncate {
				if len(run.rows) != 1 {
					t.Fatalf("a run of %d changes that have to stand alone", len(run.rows))
				}
				run.rows[0].applyTo(t, got)
				continue
			}
			seen := map[string]bool{}
			for i := range run.rows { // backwards: the order within a statement is not ours
				c := run.rows[len(run.rows)-1-i]
				row := c.row
				if c.op == opDelete {
					row = c.old
				}
				if seen[run.rel.key(row)] {
					t.Fatalf("a run names %s twice", run.rel.key(row))
				}
				seen[run.rel.key(row)] = true
				c.applyTo(t, got)
			}
		}
		if !maps.Equal(naive, got) {
			t.Fatalf("in order %v, as runs %v", naive, got)
		}
	})
}

func BenchmarkPlanRuns(b *testing.B) {
	rels := []*relation{testRelation(1), testRelation(2), testRelation(3)}
	var cs []change
	for i := range 3000 {
		cs = append(cs, change{op: opUpdate, rel: rels[i%3], row: pgoutput.Tuple{text(fmt.Sprintf("k%d", i%(10*(1+i%3)))), text("v"), text("w")}})
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range planRuns(cs) {
			_ = r.setStatement()
		}
	}
}
