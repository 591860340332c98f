package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStamp(t *testing.T) {
	t.Parallel()
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	sent := []ping{{4, at(0)}, {5, at(10)}, {6, at(20)}, {7, at(30)}, {8, at(40)}}
	for _, c := range []struct {
		name string
		seen []look
		want latencies // in milliseconds
		err  string
	}{
		{"each by itself", []look{{4, at(1)}, {5, at(12)}, {6, at(23)}, {7, at(34)}, {8, at(45)}}, latencies{1, 2, 3, 4, 5}, ""},
		// What a target that hangs owes is that of every ping meanwhile, not of the first one alone.
		{"a target that hangs", []look{{4, at(1)}, {7, at(35)}, {8, at(41)}}, latencies{1, 25, 15, 5, 1}, ""},
		{"seen before the answer", []look{{5, at(2)}, {8, at(50)}}, latencies{2, 0, 30, 20, 10}, ""},
		{"two that are never seen", []look{{6, at(90)}}, nil, "2 of 5 pings were never seen"},
		{"none is seen", nil, nil, "5 of 5 pings were never seen"},
	} {
		got, err := stamp(sent, c.seen)
		said := ""
		if err != nil {
			said = err.Error()
		}
		for i := range c.want {
			c.want[i] *= time.Millisecond
		}
		if diff := cmp.Diff(c.want, got); diff != "" || said != c.err {
			t.Errorf("%s: error %q, want %q; latencies (-want +got):\n%s", c.name, said, c.err, diff)
		}
	}
}

// TestLoadThatIsTooLittle: a latency beside a load that is far from what was asked for is none.
func TestLoadThatIsTooLittle(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rate float64
		over time.Duration
		good bool
	}{{1003, latencySeconds * time.Second, true}, {810, latencySeconds * time.Second, true}, {790, latencySeconds * time.Second, false}, {790, time.Second / 2, true}} {
		if err := loadEnough(c.rate, c.over); (err == nil) != c.good {
			t.Errorf("%g a second over %s: %v", c.rate, c.over, err)
		}
	}
}

// TestLatencyAimSaysTheLoad: who got clearly less than the load that the aim speaks of is named there.
func TestLatencyAimSaysTheLoad(t *testing.T) {
	t.Parallel()
	for want, rate := range map[string]float64{"": 990, "load of " + rehomeShards(1) + ": 900 txn/s": 900} {
		r := &Results{}
		r.Add(Sample{Case: latencyCase, Contender: nativeName, Round: 1, Values: map[string]float64{loadReached: 1000}})
		r.Add(Sample{Case: latencyCase, Contender: rehomeShards(1), Round: 1, Values: map[string]float64{loadReached: rate}})
		if got := (&latencyWorkload{}).Aims(r)[0].Note; got != want {
			t.Errorf("beside %g a second: %q, want %q", rate, got, want)
		}
	}
}
