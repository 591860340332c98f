package shard

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/rehomedb/rehome/tenant"
)

func TestSpread(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		weights := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 10), rapid.IntRange(1, math.MaxInt32)), 1, 60).Draw(rt, "weights")
		shards := make([]Weighted, len(weights))
		total := 0.0
		for i, w := range weights {
			shards[i] = Weighted{Name: fmt.Sprintf("s%d", i), Weight: w}
			total += float64(w)
		}
		p, err := Spread(shards)
		if err != nil {
			rt.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			rt.Fatal(err)
		}
		if p.Epoch != 1 || len(p.Ranges) != len(shards) {
			rt.Fatalf("%+v", p)
		}
		tiny := 0
		for _, w := range weights {
			if float64(w)*tenant.Buckets/total < 1 {
				tiny++
			}
		}
		for i, r := range p.Ranges {
			n := float64(r.To - r.From + 1)
			want := float64(weights[i]) * tenant.Buckets / total
			if n < 1 || math.Abs(n-want) > 1+float64(tiny) {
				rt.Fatalf("shard %d has %v buckets, its share is %v", i, n, want)
			}
		}
	})
}

func TestSpreadRefuses(t *testing.T) {
	for _, shards := range [][]Weighted{nil, {{"a", 0}}, {{"a", 1}, {"b", -1}}, make([]Weighted, tenant.Buckets+1)} {
		if _, err := Spread(shards); err == nil {
			t.Errorf("%d shards accepted", len(shards))
		}
	}
}
