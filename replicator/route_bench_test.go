package replicator

import (
	"fmt"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// BenchmarkRouterLane names the lane of a row's realm.
func BenchmarkRouterLane(b *testing.B) {
	p := tenant.Placement{Epoch: 1, Home: "s0"}
	var shards []Shard
	for i := range 3 {
		name := fmt.Sprintf("s%d", i)
		p.Ranges = append(p.Ranges, tenant.Range{From: i * tenant.Buckets / 3, To: (i+1)*tenant.Buckets/3 - 1, Shard: name})
		shards = append(shards, Shard{Name: name, Ordinal: i})
	}
	r, err := newRouter(p, shards)
	if err != nil {
		b.Fatal(err)
	}
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
