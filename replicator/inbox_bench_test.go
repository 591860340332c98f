package replicator

import (
	"fmt"
	"testing"
	"time"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// BenchmarkGroups takes small transactions through an inbox and makes the statements of their groups, as a lane does.
func BenchmarkGroups(b *testing.B) {
	const perGroup = 2000 // transactions of an update and an insert
	rels := []*relation{testRelation(1), testRelation(2)}
	rows := make([]pgoutput.Tuple, perGroup)
	for i := range rows {
		rows[i] = pgoutput.Tuple{text(fmt.Sprintf("key-%d", i*7919%perGroup)), text("a value"), text(`an "other" value`)}
	}
	in := newInbox()
	var plan runPlanner
	b.ReportAllocs()
	at := tenant.LSN(0)
	for b.Loop() {
		for _, row := range rows {
			at += 100
			in.begin(at, time.Time{})
			for _, c := range []change{{op: opUpdate, rel: rels[0], row: row}, {op: opInsert, rel: rels[1], row: row}} {
				if err := in.add(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
			in.commit(at+8, "")
		}
		g, _, err := in.take(b.Context(), time.Second)
		if err != nil || g == nil || len(g.changes) != 2*perGroup {
			b.Fatal(g, err)
		}
		for _, run := range plan.plan(g.changes) {
			plan.sort(run)
			_ = plan.setStatement(run)
		}
		in.done(g)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*perGroup), "ns/change")
}

// BenchmarkPlanRunsAgain is BenchmarkPlanRuns in the memory of the group before.
func BenchmarkPlanRunsAgain(b *testing.B) {
	rels := []*relation{testRelation(1), testRelation(2), testRelation(3)}
	var cs []change
	for i := range 3000 {
		cs = append(cs, change{op: opUpdate, rel: rels[i%3], row: pgoutput.Tuple{text(fmt.Sprintf("k%d", i%(10*(1+i%3)))), text("v"), text("w")}})
	}
	var plan runPlanner
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range plan.plan(cs) {
			_ = plan.setStatement(r)
		}
	}
}
