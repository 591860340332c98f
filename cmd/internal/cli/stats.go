package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/guptarohit/asciigraph"
	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// graphPoints is how much of the past the curve keeps; graphHeight leaves room for the table below it.
	graphPoints, graphHeight = 600, 8
	// axisWidth is what asciigraph needs to the left of the curve.
	axisWidth = 10
)

type statsOptions struct {
	db       string
	watch    bool
	interval time.Duration
}

func newStatsCommand(a *App) *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use: "stats --db URL", Short: "Show who is connected to a database, through the gateway and past it",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStats(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.db, "db", "", "the database, by URL or name")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on, and draw the curve")
	f.DurationVar(&o.interval, "interval", 2*time.Second, "with --watch: how often")
	return cmd
}

func runStats(ctx context.Context, a *App, o statsOptions) error {
	if o.interval < 100*time.Millisecond {
		return usage("bad-interval", "write a duration of at least 100ms", "--interval is too short")
	}
	t, err := a.oneDatabase(ctx, o.db)
	if err != nil {
		return err
	}
	if !o.watch {
		s, err := t.Stats(ctx, t.database)
		if err != nil {
			return err
		}
		s.Clients = list(s.Clients)
		return a.Print.Answer(s, func() { a.statsText(s) })
	}
	return interrupted(ctx, a.watchStats(ctx, t, o), "")
}

func (a *App) watchStats(ctx context.Context, t target, o statsOptions) error {
	var curve []float64
	drawn := 0
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for {
		s, err := t.Stats(ctx, t.database)
		switch {
		case err == nil:
			s.Clients = list(s.Clients)
			if curve = append(curve, float64(s.OpenNow)); len(curve) > graphPoints {
				curve = curve[1:]
			}
			switch {
			case a.Print.JSON:
				err = a.Print.Line(s)
			case a.StdoutTerminal:
				drawn = a.drawStats(s, curve, drawn)
			default:
				a.Print.Textf("%s", statsLine(s))
			}
			if err != nil {
				return err
			}
		case ctx.Err() != nil || tenant.AsError(err).Kind != tenant.KindUnavailable:
			return err
		default:
			a.Print.Notef("%s", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// drawStats draws over what it drew before and returns how many lines that are now.
func (a *App) drawStats(s api.Stats, curve []float64, before int) int {
	var b strings.Builder
	if before > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", before)
	}
	width := max(a.Width-axisWidth, 20)
	points := curve[max(len(curve)-width, 0):]
	graph := asciigraph.Plot(points, asciigraph.Height(graphHeight), asciigraph.LowerBound(0), asciigraph.Precision(0), asciigraph.Caption("open connections"))
	text := graph + "\n" + output.Clean(statsLine(s)) + "\n"
	if len(s.Clients) > 0 {
		text += a.Print.Render(clientHeaders(), clientRows(s, a.Now(), 10))
	}
	b.WriteString(text)
	_, _ = fmt.Fprint(a.Stdout, b.String())
	return strings.Count(text, "\n")
}

func statsLine(s api.Stats) string {
	parts := []string{fmt.Sprintf("%d open", s.OpenNow)}
	for _, p := range slices.Sorted(maps.Keys(s.ByProtocol)) {
		parts = append(parts, fmt.Sprintf("%d %s", s.ByProtocol[p], p))
	}
	if n := s.ByVia["direct"]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d past the gateway", n))
	}
	parts = append(parts, fmt.Sprintf("opened: %s last minute, %s hour, %s day", output.Count(s.LastMinute), output.Count(s.LastHour), output.Count(s.LastDay)),
		fmt.Sprintf("%.0f%% redirected", s.Redirected*100))
	return strings.Join(parts, " · ")
}

func (a *App) statsText(s api.Stats) {
	a.Print.Textf("%s", statsLine(s))
	a.Print.Textf("last seen: %s", output.Ago(s.LastSeen, a.Now()))
	if !s.Collecting {
		a.Print.Textf("the gateway does not count connections (REHOME_USAGE_STATS is disabled)")
	}
	if s.Note != "" {
		a.Print.Textf("note: %s", s.Note)
	}
	if len(s.Clients) > 0 {
		a.Print.Table(clientHeaders(), clientRows(s, a.Now(), len(s.Clients)))
	}
}

func clientHeaders() []string {
	return []string{"protocol", "client", "address", "via", ">open", "last seen"}
}

func clientRows(s api.Stats, now time.Time, most int) [][]string {
	var rows [][]string
	for _, c := range s.Clients[:min(most, len(s.Clients))] {
		rows = append(rows, []string{c.Protocol, short(output.Clean(c.Client), 40), c.Address, c.Via, strconv.Itoa(c.Open), output.Ago(&c.LastSeen, now)})
	}
	return rows
}
