package replicator

import (
	"fmt"
	"testing"
	"time"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// benchRouter spreads all buckets evenly over n shards.
func benchRouter(b *testing.B, n int) *router {
	b.Helper()
	p := tenant.Placement{Epoch: 1, Home: "s0"}
	var shards []Shard
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		p.Ranges = append(p.Ranges, tenant.Range{From: i * tenant.Buckets / n, To: (i+1)*tenant.Buckets/n - 1, Shard: name})
		shards = append(shards, Shard{Name: name, Ordinal: i})
	}
	r, err := newRouter(p, shards)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// BenchmarkRoute routes decoded rows of small transactions (an insert, an update without an old row, a delete) to the inboxes of their
// lanes, which copies them, and hands the groups on to nobody: all that happens between the decoder and a lane's statements.
func BenchmarkRoute(b *testing.B) {
	const txns = 1000 // of three changes; all of them fit into one group
	messages := make([]pgoutput.Message, 0, 3*txns)
	for i := range txns {
		row := pgoutput.Tuple{text(fmt.Sprintf("realm-%d", i*7919%txns)), text(fmt.Sprint(i)), text("what a row is about")}
		key := pgoutput.Tuple{row[0], row[1], {Kind: pgoutput.Null}}
		messages = append(messages, pgoutput.Message{Kind: pgoutput.Insert, New: row}, pgoutput.Message{Kind: pgoutput.Update, New: row},
			pgoutput.Message{Kind: pgoutput.Delete, OldKind: pgoutput.OldKey, Old: key})
	}
	rel := testRelation(1)
	rel.keys, rel.realm = []int{0, 1}, 0
	for _, shards := range []int{1, 3, 16} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			s := &stream{router: benchRouter(b, shards), skip: make([]bool, shards)}
			for range shards {
				s.lanes = append(s.lanes, &lane{in: newInbox()})
			}
			b.ReportAllocs()
			at := tenant.LSN(0)
			for b.Loop() {
				for i := range messages {
					if i%3 == 0 {
						at += 100
						for _, l := range s.lanes {
							l.in.begin(at, time.Time{})
						}
					}
					if err := s.dispatch(b.Context(), rel, &messages[i]); err != nil {
						b.Fatal(err)
					}
					if i%3 == 2 {
						for _, l := range s.lanes {
							l.in.commit(at+8, "")
						}
					}
				}
				arrived := 0
				for _, l := range s.lanes {
					g, _, err := l.in.take(b.Context(), time.Second)
					if err != nil || g == nil {
						b.Fatal(g, err)
					}
					arrived += len(g.changes)
					l.in.done(g)
				}
				if arrived != len(messages) {
					b.Fatalf("%d of %d changes arrived", arrived, len(messages))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(messages)), "ns/change")
		})
	}
}

// BenchmarkRouterLane names the lane of a row's realm, which is its hash: the least part of BenchmarkRoute.
func BenchmarkRouterLane(b *testing.B) {
	r := benchRouter(b, 3)
	realms := make([][]byte, 1000)
	for i := range realms {
		realms[i] = fmt.Appendf(nil, "realm-%d", i)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if r.lane(realms[i%len(realms)]) > 2 {
			b.Fatal("a lane that is not there")
		}
		i++
	}
}
