package replicator

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPortions: large units and chunks are by themselves, small tables together, but never so many that a worker is without.
func TestPortions(t *testing.T) {
	t.Parallel()
	units := func(sizes ...int64) (out []unit) {
		for _, s := range sizes {
			out = append(out, unit{size: s})
		}
		return out
	}
	many := func(n int, size int64) []unit {
		out := units(smallTable + 1)
		for range n {
			out = append(out, unit{size: size})
		}
		return out
	}
	chunked := append(units(smallTable+1), unit{size: 10, chunk: &chunk{}}, unit{size: 1})
	for _, c := range []struct {
		name    string
		units   []unit
		workers int
		want    []int // sizes of the portions
	}{
		{"none", nil, 2, nil},
		{"a few", units(smallTable+1, 3, 2, 1), 2, []int{1, 1, 1, 1}},
		{"some", many(17, 1), 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 1}},
		{"no more than so many", many(portionUnits*4+1, 1), 1, []int{1, 64, 64, 64, 64, 1}},
		{"no more than so large", many(40, smallTable), 1, []int{1, 10, 10, 10, 10}},
		{"a chunk is no table", chunked, 0, []int{1, 1, 1}},
	} {
		var got []int
		total := 0
		for _, p := range portions(c.units, c.workers) {
			got = append(got, len(p))
			total += len(p)
		}
		if d := cmp.Diff(c.want, got); d != "" || total != len(c.units) {
			t.Errorf("%s: %d of %d units: %s", c.name, total, len(c.units), d)
		}
	}
	bytes := int64(0)
	for _, u := range portions(many(64*4, smallTable), 1)[1] {
		bytes += u.size
	}
	if bytes > portionBytes {
		t.Errorf("a portion of %d bytes", bytes)
	}
}
