package cli

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/guptarohit/asciigraph"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
)

const (
	// graphPoints is how much of the past the curve keeps; graphHeight leaves room for the tables below it.
	graphPoints, graphHeight = 600, 8
	// axisWidth is what asciigraph needs to the left of the curve.
	axisWidth = 10
	// leastWidth is the narrowest curve; narrower terminals cut it off.
	leastWidth = 20
)

// statsView is the picture of stats --watch. It is drawn over itself; after a resize the screen is cleared, since nobody
// knows where the terminal has put the old lines.
type statsView struct {
	a               *App
	gateway, direct []float64
	began           time.Time
	drawn           int // lines
	columns, lines  int // of the terminal, when it was drawn
}

// draw adds what is open now to the curves and draws everything.
func (v *statsView) draw(s api.Stats) {
	now := v.a.Now()
	if v.began.IsZero() {
		v.began = now
	}
	direct := s.ByVia[viaDirect]
	v.gateway, v.direct = append(v.gateway, float64(s.OpenNow-direct)), append(v.direct, float64(direct))
	if n := len(v.gateway) - graphPoints; n > 0 {
		v.gateway, v.direct = v.gateway[n:], v.direct[n:]
	}
	columns, lines := v.a.Size()
	if columns <= 0 {
		columns = v.a.Width
	}
	if lines <= 0 {
		lines = defaultLines
	}
	var b strings.Builder
	switch {
	case v.drawn > 0 && (columns != v.columns || lines != v.lines):
		b.WriteString("\x1b[2J\x1b[H")
	case v.drawn > 0:
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", v.drawn)
	}
	v.columns, v.lines = columns, lines
	// One line less than the terminal has: the cursor stands on the one below.
	picture := v.picture(s, now)
	picture = picture[:min(len(picture), lines-1)]
	for _, line := range picture {
		b.WriteString(cutLine(line, columns))
		b.WriteByte('\n')
	}
	v.drawn = len(picture)
	_, _ = fmt.Fprint(v.a.Stdout, b.String())
}

// picture is the lines from the most important to the least: what does not fit is left out at the end.
func (v *statsView) picture(s api.Stats, now time.Time) []string {
	p := v.a.Print
	out := []string{p.Paint(output.Bold, output.Clean(s.Database)) + "  " + output.Clean(openLine(s)), openedLine(s) + " · seen " + output.Ago(s.LastSeen, now)}
	out = append(out, v.a.curves(v.gateway, v.direct, "watched for "+output.Duration(now.Sub(v.began).Round(time.Second)), v.columns)...)
	if !s.Collecting {
		out = append(out, "statistics are disabled: clients of the gateway are not told apart")
	}
	for _, u := range s.Unseen {
		out = append(out, p.Paint(output.Yellow, "not seen: ")+output.Clean(u))
	}
	if len(s.ByClient) > 0 {
		out = append(out, splitLines(p.Render(useHeaders(), useRows(s.ByClient, now, mostRows)))...)
	}
	return out
}

// curves plots what is open through gateways and past them. The second is drawn with dots, so that they can be told apart
// without colours.
func (a *App) curves(gateway, direct []float64, caption string, columns int) []string {
	width := max(columns-axisWidth, leastWidth)
	tail := func(points []float64) []float64 { return points[max(len(points)-width, 0):] }
	options := []asciigraph.Option{
		asciigraph.Height(graphHeight), asciigraph.LowerBound(0), asciigraph.UpperBound(1), asciigraph.Precision(0),
		asciigraph.SeriesChars(asciigraph.DefaultCharSet, asciigraph.CreateCharSet("•")),
	}
	through, past := "── through the gateway", "•• past it"
	if a.Print.Color {
		options = append(options, asciigraph.SeriesColors(asciigraph.Cyan, asciigraph.Yellow))
		through, past = a.Print.Paint(output.Cyan, through), a.Print.Paint(output.Yellow, past)
	}
	graph := asciigraph.PlotMany([][]float64{tail(gateway), tail(direct)}, options...)
	return append(splitLines(graph), "  open connections: "+through+"  "+past+"  "+a.Print.Paint(output.Faint, caption))
}

// historyText shows how it went: as a curve on a terminal, as lines otherwise.
func (a *App) historyText(h api.StatsHistory) {
	if !h.Collecting {
		a.Print.Notef("nothing new is added: REHOME_USAGE_STATS is disabled")
	}
	if len(h.Points) == 0 {
		a.Print.Textf("nothing is known of the time since %s", output.When(h.Since))
		return
	}
	if a.StdoutTerminal {
		columns, _ := a.Size()
		if columns <= 0 {
			columns = a.Width
		}
		gateway, direct := historyCurves(h, max(columns-axisWidth, leastWidth))
		for _, line := range a.curves(gateway, direct, "since "+output.When(h.Since), columns) {
			_, _ = fmt.Fprintln(a.Stdout, cutLine(line, columns))
		}
	} else {
		rows := make([][]string, len(h.Points))
		for i, p := range h.Points {
			rows[i] = []string{output.When(p.At), mean(p.Gateway), mean(p.Direct), output.Count(p.GatewayMax), output.Count(p.DirectMax), output.Count(p.Opened), output.Count(p.Redirected)}
		}
		a.Print.Table([]string{h.Step, ">gateway", ">direct", ">gateway max", ">direct max", ">opened", ">moved"}, rows)
	}
	if len(h.Clients) > 0 {
		a.Print.Textf("")
		a.Print.Table(useHeaders(), useRows(h.Clients, a.Now(), mostRows))
		a.more(len(h.Clients))
	}
}

func mean(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", *v)
}

// historyCurves spreads the points over the width by their time: a step without a sample keeps the value before it.
func historyCurves(h api.StatsHistory, width int) (gateway, direct []float64) {
	begin, length := h.Points[0].At, h.Until.Sub(h.Points[0].At)
	g, d, next := 0.0, 0.0, 0
	for i := range width {
		end := begin.Add(time.Duration(float64(length) * float64(i+1) / float64(width)))
		first := true
		for ; next < len(h.Points) && (h.Points[next].At.Before(end) || i == width-1); next++ {
			p := h.Points[next]
			// Of several steps in one column the highest is shown: a peak must not vanish.
			if p.Gateway != nil && (first || *p.Gateway > g) {
				g = *p.Gateway
			}
			if p.Direct != nil && (first || *p.Direct > d) {
				d = *p.Direct
			}
			first = false
		}
		gateway, direct = append(gateway, g), append(direct, d)
	}
	return gateway, direct
}

func splitLines(text string) []string { return strings.Split(strings.TrimRight(text, "\n"), "\n") }

// cutLine cuts a line to a number of columns; colours take none. What is cut within a colour is ended.
func cutLine(line string, columns int) string {
	var b strings.Builder
	n, colored := 0, false
	for i := 0; i < len(line); {
		if strings.HasPrefix(line[i:], "\x1b[") {
			if end := strings.IndexByte(line[i:], 'm'); end > 0 {
				colored = line[i:i+end+1] != "\x1b[0m"
				b.WriteString(line[i : i+end+1])
				i += end + 1
				continue
			}
		}
		_, size := utf8.DecodeRuneInString(line[i:])
		if n == columns {
			if colored {
				b.WriteString("\x1b[0m")
			}
			return b.String()
		}
		b.WriteString(line[i : i+size])
		n++
		i += size
	}
	return b.String()
}
