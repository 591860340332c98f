package shard

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/rehomedb/rehome/tenant"
)

// Weighted is a shard and its share.
type Weighted struct {
	Name   string
	Weight int
}

// Spread makes placement epoch 1: each shard gets one contiguous range of buckets in the given order, its length in
// proportion to its weight, and at least one bucket. Reference tables are at home on the heaviest shard, the first of
// several. Weights must be above 0.
func Spread(shards []Weighted) (tenant.Placement, error) {
	if len(shards) == 0 || len(shards) > tenant.Buckets {
		return tenant.Placement{}, fmt.Errorf("spread %d buckets over %d shards", tenant.Buckets, len(shards))
	}
	var total int64
	home := shards[0]
	for _, s := range shards {
		if s.Weight <= 0 {
			return tenant.Placement{}, fmt.Errorf("spread over shard %s of weight %d", s.Name, s.Weight)
		}
		total += int64(s.Weight)
		if s.Weight > home.Weight {
			home = s
		}
	}
	counts := proportional(shards, total)
	p := tenant.Placement{Epoch: 1, Home: home.Name}
	from := 0
	for i, s := range shards {
		p.Ranges = append(p.Ranges, tenant.Range{From: from, To: from + counts[i] - 1, Shard: s.Name})
		from += counts[i]
	}
	if err := p.Validate(); err != nil {
		return tenant.Placement{}, err
	}
	return p, nil
}

// proportional shares the buckets by largest remainder; who would get none takes one of the largest share.
func proportional(shards []Weighted, total int64) []int {
	counts := make([]int, len(shards))
	order := make([]int, len(shards))
	remainder := make([]int64, len(shards))
	left := tenant.Buckets
	for i, s := range shards {
		share := int64(s.Weight) * tenant.Buckets
		counts[i], remainder[i], order[i] = int(share/total), share%total, i
		left -= counts[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(remainder[b], remainder[a]) })
	for _, i := range order[:left] {
		counts[i]++
	}
	for i := range counts {
		if counts[i] == 0 {
			counts[slices.Index(counts, slices.Max(counts))]--
			counts[i] = 1
		}
	}
	return counts
}
