package main

import (
	"bytes"
	"context"
	"math"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sampled(rows ...Sample) *Results { return &Results{Samples: rows} }

func TestRatiosAreOfTheSameRound(t *testing.T) {
	t.Parallel()
	r := sampled(
		Sample{Case: "c", Contender: "us", Round: 1, Seconds: 10}, Sample{Case: "c", Contender: "p", Round: 1, Seconds: 20}, Sample{Case: "c", Contender: "q", Round: 1, Seconds: 40},
		Sample{Case: "c", Contender: "us", Round: 2, Seconds: 90}, Sample{Case: "c", Contender: "p", Round: 2, Seconds: 100}, Sample{Case: "c", Contender: "q", Round: 2, Seconds: 60},
		Sample{Case: "c", Contender: "us", Round: 3, Seconds: 5}, // nobody to compare with
		Sample{Case: "c", Contender: "p", Round: 3, Seconds: 1, Failed: "lost a row"},
	)
	if got, want := r.Ratio("c", "us", Wall, "c", "p", Wall), (Spread{N: 2, Median: 0.7, Min: 0.5, Max: 0.9}); !near(got, want) {
		t.Errorf("ratio %+v, want %+v", got, want)
	}
	if got, want := r.RatioToBest("c", "us", []string{"p", "q"}, Wall), (Spread{N: 2, Median: 1, Min: 0.5, Max: 1.5}); !near(got, want) {
		t.Errorf("ratio to the best %+v, want %+v", got, want)
	}
	if got := r.Spread("c", "p", Wall); got.N != 2 {
		t.Errorf("a failed turn counts: %+v", got)
	}
}

func near(a, b Spread) bool {
	return a.N == b.N && math.Abs(a.Median-b.Median)+math.Abs(a.Min-b.Min)+math.Abs(a.Max-b.Max) < 1e-9
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   []float64
		want Spread
		text string
	}{
		{nil, Spread{}, "–"},
		{[]float64{2}, Spread{1, 2, 2, 2}, "2.00"},
		{[]float64{30, 10, 20}, Spread{3, 20, 10, 30}, "20.0 (10.0–30.0)"},
		{[]float64{1, 1200}, Spread{2, 600.5, 1, 1200}, "600 (1.00–1,200)"},
	} {
		got := SpreadOf(c.in)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Error(diff)
		}
		if got.String() != c.text {
			t.Errorf("%v: %s, want %s", c.in, got, c.text)
		}
	}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	one := func(v float64) Spread { return SpreadOf([]float64{v}) }
	five := func(v float64) Spread { return SpreadOf([]float64{v, v, v, v, v}) }
	for _, c := range []struct {
		aim  Aim
		want string
	}{
		{Aim{Limit: 0.85}, "not measured"},
		{Aim{Limit: 0.85, Measured: one(0.85)}, "met (n = 1)"},
		{Aim{Limit: 0.85, Measured: SpreadOf([]float64{1, 1, 1, 1})}, "**not met** (n = 4)"},
		{Aim{Limit: 0.85, Measured: five(0.86)}, "**not met**"},
		{Aim{Limit: 2, AtLeast: true, Measured: five(2)}, "met"},
		{Aim{Limit: 2, AtLeast: true, Measured: five(1.99)}, "**not met**"},
		// Rounds on both sides of the bound: luck decides.
		{Aim{Limit: 1.05, Measured: SpreadOf([]float64{0.79, 1, 1.04, 1.1, 1.24})}, "met, within the noise"},
		{Aim{Limit: 2, AtLeast: true, Measured: SpreadOf([]float64{1.34, 1.6, 1.7, 1.9, 2.26})}, "**not met**, within the noise"},
		{Aim{Limit: 2, AtLeast: true, Measured: SpreadOf([]float64{1, 3})}, "met (n = 2), within the noise"},
		{Aim{Limit: 2, Measured: SpreadOf([]float64{1, 1, 1, 1, 2})}, "met"},
	} {
		if got := c.aim.Verdict(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.aim, got, c.want)
		}
	}
}

func TestRotateBeginsEachRoundWithAnother(t *testing.T) {
	t.Parallel()
	list := []string{"a", "b", "c"}
	for round, want := range map[int][]string{1: {"a", "b", "c"}, 2: {"b", "c", "a"}, 3: {"c", "a", "b"}, 4: {"a", "b", "c"}} {
		if diff := cmp.Diff(want, Rotate(list, round)); diff != "" {
			t.Errorf("round %d: %s", round, diff)
		}
	}
}

// TestPeersRestOnlyWhenTheyAreFarBehindInEachRound: one bad round is no reason.
func TestPeersRestOnlyWhenTheyAreFarBehindInEachRound(t *testing.T) {
	t.Parallel()
	b := &Bench{Options: Options{PeerLimit: 1.3}, began: time.Now(), out: &bytes.Buffer{}, Results: sampled(
		Sample{Case: "c", Contender: "best", Round: 1, Seconds: 10}, Sample{Case: "c", Contender: "best", Round: 2, Seconds: 10},
		Sample{Case: "c", Contender: "once", Round: 1, Seconds: 20}, Sample{Case: "c", Contender: "once", Round: 2, Seconds: 11},
		Sample{Case: "c", Contender: "slow", Round: 1, Seconds: 14}, Sample{Case: "c", Contender: "slow", Round: 2, Seconds: 15},
		Sample{Case: "c", Contender: "new", Round: 2, Seconds: 50},
	)}
	b.Rest("c", []string{"best", "once", "slow", "new"})
	for name, want := range map[string]bool{"best": false, "once": false, "slow": true, "new": false} {
		if got := b.Resting("c", name); got != want {
			t.Errorf("%s rests: %t", name, got)
		}
	}
}

// TestTreeCPUCountsChildrenThatEnded: what a server's backends used must not vanish with them.
func TestTreeCPUCountsChildrenThatEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The shell waits for a child that computes and ends; then it waits for us.
	cmd := exec.CommandContext(ctx, "bash", "-c", `bash -c 'for ((i = 0; i < 300000; i++)); do :; done'; echo done; read`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	used, err := TreeCPU(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if used < 0.05 {
		t.Errorf("%.2f s are counted, but the child that ended used more", used)
	}
	_ = in.Close()
	_ = cmd.Wait()
	if _, err := TreeCPU(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has CPU time")
	}
}
