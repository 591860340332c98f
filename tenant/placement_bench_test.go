package tenant_test

import (
	"fmt"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// BenchmarkShardOf finds the shard of a realm: what a copy and a stream do with every row. It must not allocate.
func BenchmarkShardOf(b *testing.B) {
	realms := make([][]byte, 1000)
	for i := range realms {
		realms[i] = fmt.Appendf(nil, "realm-%d", i)
	}
	for _, pins := range []int{0, 100} {
		p := tenant.Placement{Epoch: 1, Home: "s0", Pins: map[string]string{}}
		for i := range 3 {
			p.Ranges = append(p.Ranges, tenant.Range{From: i * tenant.Buckets / 3, To: (i+1)*tenant.Buckets/3 - 1, Shard: fmt.Sprintf("s%d", i)})
		}
		for i := range pins {
			p.Pins[fmt.Sprintf("realm-%d", i*10)] = "s2"
		}
		b.Run(fmt.Sprintf("pins=%d", pins), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if p.ShardOfBytes(realms[i%len(realms)]) == "" {
					b.Fatal("a realm without shard")
				}
				i++
			}
		})
	}
}
