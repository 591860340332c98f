package main

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// growthFigure is the name of the drawing beside the report.
const growthFigure = "growth.svg"

// Sizes of the drawing, in its own units: a panel for each axis, side by side.
const (
	panelWidth, panelHeight = 300, 220
	marginLeft, marginTop   = 52, 40
	marginBottom, marginGap = 44, 20
)

// plot draws the costs of copying and applying over each axis, which is logarithmic; the height begins at nothing and is the same
// for all, so that flat looks flat.
func (w *growthWorkload) plot(r *Results, path string) error {
	top := 0.0
	for _, a := range w.axes() {
		for _, p := range a.points {
			top = max(top, growthCost(r, p, true).Median, growthCost(r, p, false).Median)
		}
	}
	if top <= 0 {
		return nil // nothing was measured
	}
	top = nice(top)
	axes := w.axes()
	width, height := marginLeft+len(axes)*(panelWidth+marginGap), marginTop+panelHeight+marginBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="18" font-size="13">CPU seconds per million rows, all processes</text>`+"\n", marginLeft)
	fmt.Fprintf(&b, `<text x="%d" y="18" fill="#1f5fbf">● copy</text><text x="%d" y="18" fill="#c0501f">● apply</text>`+"\n", width-130, width-70)
	for i, a := range axes {
		w.panel(&b, r, a, marginLeft+i*(panelWidth+marginGap), top, i == 0)
	}
	b.WriteString("</svg>\n")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a drawing is no secret
		return fmt.Errorf("write the drawing: %w", err)
	}
	return nil
}

func (w *growthWorkload) panel(b *strings.Builder, r *Results, a growthAxis, left int, top float64, labels bool) {
	bottom := marginTop + panelHeight
	y := func(v float64) float64 { return float64(bottom) - v/top*panelHeight }
	for i := range 5 {
		v := top * float64(i) / 4
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", left, left+panelWidth, y(v), y(v))
		if labels {
			fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left-6, y(v)+4, digits(v))
		}
	}
	first, last := math.Log10(a.at(a.points[0])), math.Log10(a.at(a.points[len(a.points)-1]))
	x := func(p growthPoint) float64 {
		const inset = 30 // the marks stay off the edges
		if last <= first {
			return float64(left) + inset
		}
		return float64(left) + inset + (math.Log10(a.at(p))-first)/(last-first)*(panelWidth-2*inset)
	}
	for _, p := range a.points {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(p), bottom+16, thousands(a.at(p)))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+panelWidth/2, bottom+34, a.name)
	for _, line := range []struct {
		copied bool
		colour string
	}{{true, "#1f5fbf"}, {false, "#c0501f"}} {
		var path []string
		for _, p := range a.points {
			c := growthCost(r, p, line.copied)
			if c.N == 0 {
				continue
			}
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(p), y(c.Median)))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s: %s</title></circle>`+"\n", x(p), y(c.Median), line.colour, p.label(), digits(c.Median))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", strings.Join(path, " "), line.colour)
	}
}

// nice is the next larger number of those that read well on an axis of four parts.
func nice(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 4, 6, 8, 10} {
		if v <= n*unit {
			return n * unit
		}
	}
	return 10 * unit
}
