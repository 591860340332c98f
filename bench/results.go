package main

import (
	"cmp"
	"slices"
	"time"
)

// Sample is one contender's figure of one round.
type Sample struct {
	Case      string             `json:"case"`
	Contender string             `json:"contender"`
	Round     int                `json:"round"`
	Seconds   float64            `json:"seconds"` // wall time to the finish line
	CPU       CPU                `json:"cpu"`
	Values    map[string]float64 `json:"values,omitempty"`
	Failed    string             `json:"failed,omitempty"` // why there is no figure
	At        time.Time          `json:"at"`
}

// Results are all samples of a run, and what else the report needs.
type Results struct {
	Samples  []Sample
	Missing  []Absence
	Resting  []Absence
	Commands []Commands
	Datasets []DatasetFacts
}

// Absence is a contender that did not run, or not any more.
type Absence struct{ Case, Contender, Why string }

// Commands are what a contender ran in a case, in its first round.
type Commands struct {
	Case, Contender string
	Lines           []string
}

// DatasetFacts describe what was copied.
type DatasetFacts struct {
	Name, Title string
	Rows        int64
	Bytes       int64 // heap, TOAST and indexes at the source
	LoadSeconds float64
}

// Add takes a sample.
func (r *Results) Add(s Sample) { r.Samples = append(r.Samples, s) }

// Good are the samples of a contender in a case that have a figure, by round.
func (r *Results) Good(inCase, contender string) map[int]Sample {
	good := map[int]Sample{}
	for _, s := range r.Samples {
		if s.Case == inCase && s.Contender == contender && s.Failed == "" {
			good[s.Round] = s
		}
	}
	return good
}

// Failures are the reasons why rounds have no figure.
func (r *Results) Failures(inCase, contender string) []string {
	var why []string
	for _, s := range r.Samples {
		if s.Case == inCase && s.Contender == contender && s.Failed != "" {
			why = append(why, s.Failed)
		}
	}
	return why
}

// Contenders are those that ran in a case, in the order of their first turn in the first round they had.
func (r *Results) Contenders(inCase string) []string {
	var names []string
	for _, s := range r.Samples {
		if s.Case == inCase && !slices.Contains(names, s.Contender) {
			names = append(names, s.Contender)
		}
	}
	return names
}

// Figure takes one figure of a sample.
type Figure func(Sample) float64

// Wall is the figure of the clock.
func Wall(s Sample) float64 { return s.Seconds }

// Value is a further figure by name.
func Value(name string) Figure { return func(s Sample) float64 { return s.Values[name] } }

// Spread of one figure over the rounds.
func (r *Results) Spread(inCase, contender string, f Figure) Spread {
	var v []float64
	for _, s := range r.Good(inCase, contender) {
		v = append(v, f(s))
	}
	return SpreadOf(v)
}

// Ratio of one contender's figure to another's, in the same round each; rounds that one of them lacks do not count.
func (r *Results) Ratio(caseA, a string, fa Figure, caseB, b string, fb Figure) Spread {
	var v []float64
	other := r.Good(caseB, b)
	for round, s := range r.Good(caseA, a) {
		if o, ok := other[round]; ok && fb(o) > 0 {
			v = append(v, fa(s)/fb(o))
		}
	}
	return SpreadOf(v)
}

// RatioToBest is a contender's figure over the least of the others' in the same round.
func (r *Results) RatioToBest(inCase, contender string, others []string, f Figure) Spread {
	var v []float64
	for round, s := range r.Good(inCase, contender) {
		best := 0.0
		for _, o := range others {
			if p, ok := r.Good(inCase, o)[round]; ok && (best == 0 || f(p) < best) {
				best = f(p)
			}
		}
		if best > 0 {
			v = append(v, f(s)/best)
		}
	}
	return SpreadOf(v)
}

// Spread is the middle and the ends of a figure over N rounds. The zero value has none.
type Spread struct {
	N                int
	Median, Min, Max float64
}

// SpreadOf makes a Spread; the median of an even number is the mean of the middle two.
func SpreadOf(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	v = slices.Clone(v)
	slices.SortFunc(v, cmp.Compare[float64])
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return Spread{N: len(v), Median: mid, Min: v[0], Max: v[len(v)-1]}
}
