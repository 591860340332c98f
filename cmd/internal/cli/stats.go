package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
)

// viaDirect is what the API calls a connection past the gateway.
const viaDirect = "direct"

// mostRows is how many clients and addresses a table for people shows; -o json has all that the server tells.
const mostRows = 20

type statsOptions struct {
	db       string
	watch    bool
	interval time.Duration
	history  time.Duration
}

func newStatsCommand(a *App) *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use: "stats --db URL", Short: "Show who is connected to a database, through the gateway and past it",
		Long: "Show who is connected to a database: by protocol, client and version, through the gateway and past it (from the database's own\n" +
			"pg_stat_activity), and how much of it was sent to the new place. --watch draws the curve of open connections as it falls; --history\n" +
			"shows how it went, from samples that are kept by the minute for two days, by the hour for a month and by the day for two years.",
		Example: "  rehome stats --db https://hosted.example/acme --watch\n  rehome stats --db https://hosted.example/acme --history 168h",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.history != 0 && o.history < time.Minute {
				return usage("bad-history", "write a duration of at least a minute, as 24h", "--history is too short")
			}
			return runStats(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.db, "db", "", "the database, by URL or name")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on, and draw the curve")
	f.DurationVar(&o.interval, "interval", 2*time.Second, "with --watch: how often")
	f.DurationVar(&o.history, "history", 0, "how it went for so long up to now, as 24h")
	cmd.MarkFlagsMutuallyExclusive("watch", "history")
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
	switch {
	case o.watch:
		return interrupted(ctx, a.watchStats(ctx, t, o), "")
	case o.history > 0:
		h, err := t.StatsHistory(ctx, t.database, o.history)
		if err != nil {
			return err
		}
		h.Points, h.Clients = list(h.Points), list(h.Clients)
		return a.Print.Answer(h, func() { a.historyText(h) })
	}
	s, err := t.Stats(ctx, t.database)
	if err != nil {
		return err
	}
	s.Clients, s.ByClient = list(s.Clients), list(s.ByClient)
	return a.Print.Answer(s, func() { a.statsText(s) })
}

func (a *App) watchStats(ctx context.Context, t target, o statsOptions) error {
	t = a.patientTarget(t, "", a.again(t, "stats", "--watch", "--db", t.database))
	v := statsView{a: a}
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for {
		s, err := t.Stats(ctx, t.database)
		if err != nil {
			return err // a server that restarts is outlasted by the patient client
		}
		s.Clients, s.ByClient = list(s.Clients), list(s.ByClient)
		switch {
		case a.Print.JSON:
			if err := a.Print.Line(s); err != nil {
				return err
			}
		case a.StdoutTerminal:
			v.draw(s)
		default:
			a.Print.Textf("%s %s", s.At.UTC().Format(time.TimeOnly), statsLine(s))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// statsLine is everything in a line.
func statsLine(s api.Stats) string {
	return openLine(s) + " · " + openedLine(s)
}

func openLine(s api.Stats) string {
	parts := []string{fmt.Sprintf("%d open", s.OpenNow)}
	for _, p := range slices.Sorted(maps.Keys(s.ByProtocol)) {
		parts = append(parts, fmt.Sprintf("%d %s", s.ByProtocol[p], p))
	}
	if n := s.ByVia[viaDirect]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d past the gateway", n))
	}
	return strings.Join(parts, " · ")
}

func openedLine(s api.Stats) string {
	return fmt.Sprintf("opened: %s last minute, %s hour, %s day · %.0f%% redirected", brief(s.LastMinute), brief(s.LastHour), brief(s.LastDay), s.Redirected*100)
}

func (a *App) statsText(s api.Stats) {
	a.Print.Textf("%s", openLine(s))
	a.Print.Textf("%s", openedLine(s))
	a.Print.Textf("last seen: %s", output.Ago(s.LastSeen, a.Now()))
	if !s.Collecting {
		a.Print.Textf("the gateway does not count connections (REHOME_USAGE_STATS is disabled)")
	}
	if s.Note != "" {
		a.Print.Textf("note: %s", s.Note)
	}
	for _, u := range s.Unseen {
		a.Print.Textf("%s %s", a.Print.Paint(output.Yellow, "not seen:"), u)
	}
	if len(s.ByClient) > 0 {
		a.Print.Textf("")
		a.Print.Table(useHeaders(), useRows(s.ByClient, a.Now(), mostRows))
		a.more(len(s.ByClient))
	}
	if len(s.Clients) > 0 {
		a.Print.Textf("")
		a.Print.Table(clientHeaders(), clientRows(s, a.Now(), mostRows))
		a.more(len(s.Clients))
	}
}

// more says how much a table left out.
func (a *App) more(n int) {
	if n > mostRows {
		a.Print.Notef("and %d more; -o json shows them", n-mostRows)
	}
}

// useHeaders are of clients and their versions, whatever the address.
func useHeaders() []string {
	return []string{"client", "version", "over", ">open", ">hour", ">opened", ">moved", "last seen"}
}

func useRows(uses []api.ClientUse, now time.Time, most int) [][]string {
	var rows [][]string
	for _, c := range uses[:min(most, len(uses))] {
		moved := "past it"
		switch {
		case c.Via == viaDirect:
		case c.Opened == 0:
			moved = "-"
		default:
			moved = fmt.Sprintf("%.0f%%", 100*float64(c.Redirected)/float64(c.Opened))
		}
		rows = append(rows, []string{
			begin(c.Client, 18), begin(c.Version, 10), output.Clean(c.Protocol), strconv.Itoa(c.Open), brief(c.LastHour), brief(c.Opened), moved, output.Ago(&c.LastSeen, now),
		})
	}
	return rows
}

// clientHeaders are of what is open now, from where.
func clientHeaders() []string {
	return []string{"open from", "client", "user", "over", "via", ">open", "last seen"}
}

func clientRows(s api.Stats, now time.Time, most int) [][]string {
	var rows [][]string
	for _, c := range s.Clients[:min(most, len(s.Clients))] {
		name := c.Client
		if c.Version != "" {
			name += " " + c.Version
		}
		rows = append(rows, []string{c.Address, begin(name, 22), begin(c.User, 12), c.Protocol, c.Via, strconv.Itoa(c.Open), output.Ago(&c.LastSeen, now)})
	}
	return rows
}

// begin is the beginning of a name, which tells most of a program's.
func begin(s string, n int) string {
	if r := []rune(output.Clean(s)); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return output.Clean(s)
}

// brief writes a number in at most five characters: 999, 1.2k, 57k, 3.4M.
func brief(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1_000_000_000, "G"}, {1_000_000, "M"}, {1000, "k"}} {
		switch {
		case n >= 10*u.size:
			return strconv.FormatInt(n/u.size, 10) + u.name
		case n >= u.size:
			return fmt.Sprintf("%.1f%s", float64(n/(u.size/10))/10, u.name)
		}
	}
	return strconv.FormatInt(n, 10)
}
