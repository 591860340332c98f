package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Aim is a bound that the samples are held against.
type Aim struct {
	What     string
	Bound    string // "≤ 0.85 × best peer"
	Limit    float64
	AtLeast  bool // else at most
	Measured Spread
	Unit     string
	Note     string
}

// enoughRounds is how many rounds a verdict needs to stand without a remark; it is what `make bench` runs by default.
const enoughRounds = 5

// withinNoise is added to a verdict whose rounds lie on both sides of the bound.
const withinNoise = ", within the noise"

// Verdict is met, not met, or not measured; by the median. One of few rounds says of how many: it may be luck; and so it may be where
// rounds lie on both sides of the bound.
func (a Aim) Verdict() string {
	if a.Measured.N == 0 {
		return "not measured"
	}
	few := ""
	if a.Measured.N < enoughRounds {
		few = fmt.Sprintf(" (n = %d)", a.Measured.N)
	}
	if a.Measured.Min < a.Limit && a.Limit < a.Measured.Max {
		few += withinNoise
	}
	if a.AtLeast && a.Measured.Median >= a.Limit || !a.AtLeast && a.Measured.Median <= a.Limit {
		return "met" + few
	}
	return "**not met**" + few
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), cmp.Compare[string])
}

// String shows a Spread: "9.81 (9.60–10.2)".
func (s Spread) String() string {
	switch s.N {
	case 0:
		return "–"
	case 1:
		return digits(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", digits(s.Median), digits(s.Min), digits(s.Max))
}

// Middle is the median alone.
func (s Spread) Middle() string {
	if s.N == 0 {
		return "–"
	}
	return digits(s.Median)
}

// digits shows three of them.
func digits(v float64) string {
	switch {
	case v >= 1000:
		return thousands(v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// digitsInt shows a count.
func digitsInt(n int) string { return fmt.Sprint(n) }

func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// report is the whole text. Everything in it is computed.
func (b *Bench) report() string {
	var w strings.Builder
	r := b.Results
	rounds := 0
	for _, s := range r.Samples {
		rounds = max(rounds, s.Round)
	}
	fmt.Fprintf(&w, "# Benchmark\n\nMade by `go run ./bench` on %s at commit %s, %d of %d rounds, scale %g, in %s. How to run and to read it: [docs/benchmarks.md](../docs/benchmarks.md).\n",
		b.began.UTC().Format("2006-01-02 15:04 MST"), b.machine.Commit, rounds, b.Options.Rounds, b.Options.Scale, time.Since(b.began).Round(time.Second))
	fmt.Fprintf(&w, "Figures are the median over the rounds, with minimum and maximum in brackets; a ratio is made within each round, and the median of the ratios is shown.\n\n")
	if b.ended != nil {
		fmt.Fprintf(&w, "The run ended early: %s.\n\n", strings.ReplaceAll(b.ended.Error(), "\n", " "))
	}
	var aims []Aim
	for _, wl := range b.workloads {
		aims = append(aims, wl.Aims(r)...)
	}
	if len(aims) > 0 {
		w.WriteString("## Aims\n\nA verdict is that of the median. *Within the noise* means that some rounds met the bound and others did not, as the range in brackets shows: another run may have the other verdict.\n\n")
		var rows [][]string
		for _, a := range aims {
			rows = append(rows, []string{a.What, a.Bound, a.Measured.String() + a.Unit, fmt.Sprintf("%d of %d", a.Measured.N, rounds), a.Verdict(), a.Note})
		}
		table(&w, []string{"aim", "bound", "measured", "rounds", "verdict", "note"}, rows)
	}
	for _, wl := range b.workloads {
		for _, s := range wl.Report(r) {
			section(&w, s)
		}
	}
	section(&w, b.missing())
	section(&w, b.failed())
	section(&w, b.machine.section())
	section(&w, b.datasets())
	b.commands(&w)
	return w.String()
}

func section(w *strings.Builder, s Section) {
	if len(s.Rows) == 0 && (s.Text == "" || len(s.Head) > 0) { // a table that nobody has a figure for
		return
	}
	if s.Title != "" {
		fmt.Fprintf(w, "## %s\n\n", s.Title)
	}
	if s.Text != "" {
		w.WriteString(s.Text + "\n\n")
	}
	if len(s.Rows) > 0 {
		table(w, s.Head, s.Rows)
	}
}

// table writes Markdown; a heading that begins with > is aligned to the right.
func table(w *strings.Builder, head []string, rows [][]string) {
	w.WriteString("|")
	for _, h := range head {
		w.WriteString(" " + strings.TrimPrefix(h, ">") + " |")
	}
	w.WriteString("\n|")
	for _, h := range head {
		if strings.HasPrefix(h, ">") {
			w.WriteString("---:|")
		} else {
			w.WriteString("---|")
		}
	}
	w.WriteString("\n")
	for _, row := range rows {
		w.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
	w.WriteString("\n")
}

func (b *Bench) missing() Section {
	s := Section{Title: "Not run", Head: []string{"case", "contender", "why"}}
	for _, a := range append(slices.Clone(b.Results.Missing), b.Results.Resting...) {
		s.Rows = append(s.Rows, []string{a.Case, a.Contender, a.Why})
	}
	return s
}

func (b *Bench) failed() Section {
	s := Section{Title: "Turns without a figure", Head: []string{"case", "contender", "round", "why"}}
	for _, f := range b.Results.Samples {
		if f.Failed != "" {
			s.Rows = append(s.Rows, []string{f.Case, f.Contender, fmt.Sprint(f.Round), strings.ReplaceAll(strings.ReplaceAll(f.Failed, "\n", " "), "|", `\|`)})
		}
	}
	return s
}

func (b *Bench) datasets() Section {
	s := Section{Title: "Datasets", Head: []string{"", "what", ">rows", ">MB with indexes", ">made in s"}}
	for _, d := range b.Results.Datasets {
		s.Rows = append(s.Rows, []string{d.Name, d.Title, thousands(float64(d.Rows)), thousands(float64(d.Bytes) / 1e6), digits(d.LoadSeconds)})
	}
	return s
}

// commands are what each contender ran in its first turn.
func (b *Bench) commands(w *strings.Builder) {
	if len(b.Results.Commands) == 0 {
		return
	}
	w.WriteString("## Commands\n\nAs they ran, in the first turn of each; $SOURCE and $TARGET1 stand for connection strings, which all are TCP over the loopback, $TARGET for pglogical's own server in D and E, " +
		"$REHOME for the server's address. Left out are the codes that commands of Rehome carry and their `-o json`, what sets up its server before the clock, and what the benchmark asks to see whether a contender is done. Of D each contender's list reaches to the end of its first backlog: " +
		"the others are drained with the same commands to stop and to go on.\n\n")
	for _, c := range b.Results.Commands {
		fmt.Fprintf(w, "**%s: %s**\n\n```\n%s\n```\n\n", c.Case, c.Contender, strings.Join(c.Lines, "\n"))
	}
}
