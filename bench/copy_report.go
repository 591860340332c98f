package main

// Report of a copy: a table of its contenders.
func (w *copyWorkload) Report(r *Results) []Section {
	s := Section{
		Title: w.data.Name + ": copy of " + w.data.Title,
		Text: "From the first command until all tables, rows, keys and indexes are there. CPU in seconds; tool is what the contender itself runs, for Rehome with its control database; " +
			"x floor is the ratio to psql | psql of the same round, x best to the best peer's wall time.",
		Head: []string{"contender", ">targets", ">wall s", ">x floor", ">x best peer", ">CPU tool", ">source", ">targets", ">all", ">n"},
	}
	for _, t := range w.turns() {
		inCase, one, name := copyCase(w.data.Name, t.targets), copyCase(w.data.Name, 1), t.copier.Name()
		if len(r.Good(inCase, name)) == 0 {
			continue
		}
		floor := r.Ratio(inCase, name, Wall, one, floorName, Wall)
		best := Spread{}
		if t.targets == 1 {
			best = r.RatioToBest(inCase, name, peersOf(r, inCase), Wall)
		}
		cpu := func(f Figure) string { return r.Spread(inCase, name, f).Middle() }
		wall := r.Spread(inCase, name, Wall)
		s.Rows = append(s.Rows, []string{
			name, digitsInt(t.targets), wall.String(), floor.String(), best.String(),
			cpu(func(s Sample) float64 { return s.CPU.Tool + s.CPU.Control }), cpu(func(s Sample) float64 { return s.CPU.Source }),
			cpu(func(s Sample) float64 { return s.CPU.Targets }), cpu(func(s Sample) float64 { return s.CPU.Sum() }), digitsInt(wall.N),
		})
	}
	if w.limited {
		return []Section{s, limitsSection(r)}
	}
	return []Section{s}
}

// Aims of a copy; they are of dataset A.
func (w *copyWorkload) Aims(r *Results) []Aim {
	if w.data.Name != "A" {
		return nil
	}
	one, three := copyCase("A", 1), copyCase("A", targetsMax)
	perMillion := func(s Sample) float64 { return s.Values[analysedTool] / (float64(w.data.Rows()) / 1e6) }
	return []Aim{
		{What: "copy A to one shard, indexes included", Bound: "≤ 0.85 × the best peer's wall time", Limit: 0.85, Measured: r.RatioToBest(one, rehomeName, peersOf(r, one), Wall)},
		{What: "copy A to 3 shards, CPU of all processes", Bound: "≤ 1.05 × copy A to one shard", Limit: 1.05, Measured: r.Ratio(three, rehomeName, Value(analysedSum), one, rehomeName, Value(analysedSum)), Note: "until analysed"},
		{What: "own CPU in copy A, passing through", Bound: "≤ 0.4 s per million rows", Limit: 0.4, Measured: r.Spread(one, rehomeName, perMillion), Note: "server, command line, pg_dump and pg_restore; until analysed"},
		{What: "own CPU in copy A, routing to 3", Bound: "≤ 1.0 s per million rows", Limit: 1.0, Measured: r.Spread(three, rehomeName, perMillion), Note: "the same"},
	}
}
