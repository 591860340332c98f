package main

import (
	"fmt"
	"strings"
)

// Report of a copy: a table of its contenders, and what only Rehome has figures of.
func (w *copyWorkload) Report(r *Results) []Section {
	sections := []Section{w.contenders(r), w.beyond(r)}
	if w.limited {
		sections = append(sections, limitsSection(r))
	}
	return sections
}

// millions of rows of the dataset.
func (w *copyWorkload) millions() float64 { return float64(w.data.Rows()) / 1e6 }

func (w *copyWorkload) contenders(r *Results) Section {
	s := Section{
		Title: w.data.Name + ": copy of " + w.data.Title,
		Text: "From the first command until all tables, rows, keys and indexes are there. CPU in seconds: tool is what the contender itself runs, for Rehome with its control database; " +
			"own CPU is that of the tool without the control database, per million rows. x floor is the ratio to psql | psql of the same round, x best peer to the best peer's wall time.",
		Head: []string{"contender", ">targets", ">wall s", ">x floor", ">x best peer", ">CPU tool", ">CPU source", ">CPU targets", ">CPU all", ">own CPU s/M rows", ">n"},
	}
	one := copyCase(w.data.Name, 1)
	for _, t := range w.turns() {
		inCase, name := copyCase(w.data.Name, t.targets), t.copier.Name()
		wall := r.Spread(inCase, name, Wall)
		if wall.N == 0 {
			continue
		}
		best := "–"
		if t.targets == 1 {
			best = r.RatioToBest(inCase, name, peersOf(r, inCase), Wall).String()
		}
		cpu := func(f Figure) string { return r.Spread(inCase, name, f).Middle() }
		s.Rows = append(s.Rows, []string{
			name, fmt.Sprint(t.targets), wall.String(), r.Ratio(inCase, name, Wall, one, floorName, Wall).String(), best,
			cpu(func(s Sample) float64 { return s.CPU.Tool + s.CPU.Control }), cpu(func(s Sample) float64 { return s.CPU.Source }),
			cpu(func(s Sample) float64 { return s.CPU.Targets }), cpu(func(s Sample) float64 { return s.CPU.Sum() }),
			cpu(func(s Sample) float64 { return s.CPU.Tool / w.millions() }), fmt.Sprint(wall.N),
		})
	}
	return s
}

// beyond is what Rehome does after the finish line, and what it needs.
func (w *copyWorkload) beyond(r *Results) Section {
	s := Section{
		Title: w.data.Name + ": Rehome beyond the finish line",
		Text:  "Wall seconds until it has analysed too, and until its stream has caught up; CPU seconds until it has analysed: of all processes, of its own programs (server, command line, pg_dump, pg_restore), and of the server alone.",
		Head:  []string{"targets", ">analysed s", ">in sync s", ">CPU all", ">CPU own", ">own CPU s/M rows", ">CPU server", ">server's peak RSS MiB", ">n"},
	}
	for _, t := range w.turns() {
		inCase, name := copyCase(w.data.Name, t.targets), t.copier.Name()
		analysed := r.Spread(inCase, name, Value(analysedSeconds))
		if name != rehomeName || analysed.N == 0 {
			continue
		}
		middle := func(value string) string { return r.Spread(inCase, name, Value(value)).Middle() }
		s.Rows = append(s.Rows, []string{
			fmt.Sprint(t.targets), analysed.String(), r.Spread(inCase, name, Value(inSyncSeconds)).String(), middle(analysedSum), middle(analysedTool),
			r.Spread(inCase, name, func(s Sample) float64 { return s.Values[analysedTool] / w.millions() }).Middle(), middle(serverCPU), middle(peakRSS), fmt.Sprint(analysed.N),
		})
	}
	return s
}

// bestPeers says which peer was the best one in how many rounds.
func bestPeers(r *Results, inCase string) string {
	count, peers := map[string]int{}, peersOf(r, inCase)
	for round := range r.Good(inCase, rehomeName) {
		best, seconds := "", 0.0
		for _, p := range peers {
			if s, ok := r.Good(inCase, p)[round]; ok && (best == "" || s.Seconds < seconds) {
				best, seconds = p, s.Seconds
			}
		}
		if best != "" {
			count[best]++
		}
	}
	var parts []string
	for _, p := range sortedKeys(count) {
		parts = append(parts, fmt.Sprintf("%s (%d×)", p, count[p]))
	}
	if len(parts) == 0 {
		return ""
	}
	return "best peer of a round: " + strings.Join(parts, ", ")
}

// Aims of a copy; they are of dataset A.
func (w *copyWorkload) Aims(r *Results) []Aim {
	if w.data.Name != "A" {
		return nil
	}
	one, three := copyCase("A", 1), copyCase("A", targetsMax)
	perMillion := func(s Sample) float64 { return s.Values[analysedTool] / w.millions() }
	return []Aim{
		{What: "copy A to one shard, indexes included", Bound: "≤ 0.85 × the best peer's wall time", Limit: 0.85, Measured: r.RatioToBest(one, rehomeName, peersOf(r, one), Wall), Note: bestPeers(r, one)},
		{What: "copy A to 3 shards, CPU of all processes", Bound: "≤ 1.05 × copy A to one shard", Limit: 1.05, Measured: r.Ratio(three, rehomeName, Value(analysedSum), one, rehomeName, Value(analysedSum)), Note: "until analysed"},
		{What: "own CPU in copy A, passing through", Bound: "≤ 0.4 s per million rows", Limit: 0.4, Measured: r.Spread(one, rehomeName, perMillion), Unit: " s", Note: "server, command line, pg_dump and pg_restore; until analysed"},
		{What: "own CPU in copy A, routing to 3", Bound: "≤ 1.0 s per million rows", Limit: 1.0, Measured: r.Spread(three, rehomeName, perMillion), Unit: " s", Note: "the same"},
	}
}
