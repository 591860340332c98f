package cli

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
)

// manyClients is what a busy gateway answers, with names that somebody chose to do harm.
func manyClients(open, direct int) api.Stats {
	now := time.Unix(1_800_000_000, 0)
	s := api.Stats{
		Database: "acme", OpenNow: open, ByProtocol: map[string]int{"http": open - direct, "postgres": direct}, ByVia: map[string]int{"gateway": open - direct, "direct": direct},
		LastMinute: 1234, LastHour: 56789, LastDay: 1234567, Redirected: 0.87, LastSeen: &now, Collecting: true,
	}
	for i := range 30 {
		s.ByClient = append(s.ByClient, api.ClientUse{Protocol: "websocket", Client: fmt.Sprintf("a-client-with-a-long-name-%d\x1b]0;evil\x07", i), Version: "1.2.3-beta.45678", Via: "gateway", Open: 1000, LastHour: 100000, Opened: 2000000, Redirected: 1000000, LastSeen: now})
	}
	return s
}

func TestStatsPicture(t *testing.T) {
	t.Parallel()
	for _, color := range []bool{false, true} {
		for _, size := range [][2]int{{80, 24}, {40, 10}, {200, 60}, {12, 3}} {
			var out bytes.Buffer
			columns, lines := size[0], size[1]
			a := &App{Env: Env{Stdout: &out, Size: func() (int, int) { return columns, lines }, Now: func() time.Time { return time.Unix(1_800_000_010, 0) }}.withDefaults(), Print: &output.Printer{Out: &out, Color: color}}
			v := statsView{a: a}
			screen := func() []string {
				text := regexp.MustCompile("\x1b\\[[0-9;]*[AJHm]").ReplaceAllString(out.String(), "")
				return strings.Split(strings.TrimRight(text, "\n"), "\n")
			}
			for i := range 100 {
				out.Reset()
				v.draw(manyClients(100-i, 20-i/5))
			}
			if !strings.HasPrefix(out.String(), fmt.Sprintf("\x1b[%dA\x1b[J", v.drawn)) {
				t.Errorf("%v: not drawn over what was there: %.20q", size, out.String())
			}
			if n := len(screen()); n > lines-1 || n != v.drawn {
				t.Errorf("%v: %d lines on a terminal of %d", size, n, lines)
			}
			for _, l := range screen() {
				if utf8.RuneCountInString(l) > columns {
					t.Errorf("%v: a line of %d: %s", size, utf8.RuneCountInString(l), l)
				}
			}
			if strings.Contains(out.String(), "\x07") || strings.Contains(out.String(), "\x1b]") {
				t.Error("a client's name reached the terminal as it was")
			}
			if got := regexp.MustCompile("\x1b\\[[0-9]+m").MatchString(out.String()); got != color {
				t.Errorf("coloured: %t, want %t", got, color)
			}
			if color && strings.Count(out.String(), "\x1b[3") > strings.Count(out.String(), "\x1b[0m") {
				t.Error("a colour is not ended")
			}
			if size == [2]int{80, 24} && !color {
				t.Logf("\n%s", strings.Join(screen(), "\n"))
				for _, want := range []string{"acme  1 open · 0 http · 1 postgres · 1 past the gateway", "87% redirected", "•• past it", "CLIENT", "a-client-with-a-l…", "LAST SEEN"} {
					if !strings.Contains(out.String(), want) {
						t.Errorf("%q is missing in\n%s", want, strings.Join(screen(), "\n"))
					}
				}
			}
			columns += 7
			out.Reset()
			v.draw(manyClients(1, 0))
			if !strings.HasPrefix(out.String(), "\x1b[2J\x1b[H") {
				t.Error("the screen is not cleared after a resize")
			}
		}
	}
}

func TestHistoryCurves(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1_800_000_000, 0)
	f := func(v float64) *float64 { return &v }
	h := api.StatsHistory{Until: begin.Add(10 * time.Minute), Points: []api.HistoryPoint{
		{At: begin, Gateway: f(4), Direct: f(1)}, {At: begin.Add(time.Minute), Gateway: f(9)}, {At: begin.Add(5 * time.Minute), Gateway: f(2), Direct: f(0)}, {At: begin.Add(9 * time.Minute), Gateway: f(0)},
	}}
	gateway, direct := historyCurves(h, 5)
	if fmt.Sprint(gateway) != "[9 9 2 2 0]" || fmt.Sprint(direct) != "[1 1 0 0 0]" {
		t.Errorf("%v %v", gateway, direct)
	}
}
