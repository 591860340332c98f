package demo

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/rehomedb/rehome/cmd/internal/output"
)

const (
	indent = "   "
	// ticks draw a figure between nothing and the largest.
	ticks = "▁▂▃▄▅▆▇█"
	// The table of checks is as wide as the terminal, as far as that goes; without one its details are cut here.
	detailMost, detailLeast = 100, 30
	beforeDetail            = 84
)

// show prints what the demo does.
type show struct {
	out     io.Writer
	p       *output.Printer // to out
	answer  *output.Printer // the checks
	live    bool            // out is a terminal: a line may be written anew
	width   int
	environ []string // of the process

	status string // what stands in the live line
}

// step begins a numbered step.
func (s *show) step(n int, title string) {
	s.clear()
	s.p.Textf("\n%s %s", s.p.Paint(output.Cyan, fmt.Sprintf("%2d", n)), s.p.Paint(output.Bold, title))
}

// note prints a line below a step.
func (s *show) note(format string, args ...any) {
	s.clear()
	s.p.Textf("%s%s", indent, fmt.Sprintf(format, args...))
}

// command prints a command line as a person types it; shell is what only the shell reads.
func (s *show) command(where string, args []string, shell ...string) {
	s.clear()
	words := make([]string, 0, len(args)+len(shell))
	for _, a := range args {
		words = append(words, quoted(a))
	}
	words = append(words, shell...)
	s.p.Textf("%s%s %s", indent, s.p.Paint(output.Faint, where+" $"), s.p.Paint(output.Bold, "rehome "+strings.Join(words, " ")))
}

// progress writes the live line anew; without a terminal it says nothing.
func (s *show) progress(format string, args ...any) {
	if !s.live {
		return
	}
	text := output.Clean(indent + fmt.Sprintf(format, args...))
	if r := []rune(text); s.width > 0 && len(r) >= s.width {
		text = string(r[:s.width-1])
	}
	if text != s.status {
		_, _ = fmt.Fprintf(s.out, "\r\x1b[K%s", text)
		s.status = text
	}
}

func (s *show) clear() {
	if s.status != "" {
		_, _ = fmt.Fprint(s.out, "\r\x1b[K")
		s.status = ""
	}
}

// quoted puts what a shell would split or expand into quotes.
func quoted(arg string) string {
	if arg != "" && !strings.ContainsAny(arg, " \t\n\"'$&|;<>()*?`\\#~") {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// sparkline draws figures in one line, from nothing to the largest.
func sparkline(figures []int, width int) string {
	if len(figures) == 0 {
		return ""
	}
	most := 0
	for _, n := range figures {
		most = max(most, n)
	}
	steps := []rune(ticks)
	var b strings.Builder
	for _, n := range figures[max(0, len(figures)-width):] {
		i := 0
		if most > 0 {
			i = (n*(len(steps)-1) + most - 1) / most // what is not zero does not look like it
		}
		b.WriteRune(steps[i])
	}
	return b.String()
}

// summary prints the answer: each check with its figure.
func (s *show) summary(r *Report) {
	s.clear()
	if r.Failed != nil && len(r.Checks) == 0 {
		return
	}
	rows, room := make([][]string, len(r.Checks)), detailMost
	if s.live && s.width > 0 {
		room = max(s.width-beforeDetail, detailLeast)
	}
	for i, c := range r.Checks {
		mark := s.answer.Paint(output.Green, "ok")
		if !c.OK {
			mark = s.answer.Paint(output.Red, "FAILED")
		}
		rows[i] = []string{mark, c.Name, output.Count(c.Figure), c.Unit, shorten(output.Clean(c.Detail), room)}
	}
	s.answer.Textf("")
	s.answer.Table([]string{"", "check", ">figure", "of", "detail"}, rows)
	for _, c := range r.Checks {
		if !c.OK {
			s.answer.Textf("%s %s: %s", s.answer.Paint(output.Red, "failed:"), c.Name, c.Detail)
		}
	}
	s.answer.Textf("")
	s.answer.Textf("Writes paused for %s. Longest wait between two acknowledged writes: %s of clients that go to Postgres,", output.Millis(r.PauseMillis), output.Millis(r.GapDirectMillis))
	s.answer.Textf("%s of HTTP clients, which waited for the redirect too. %s acknowledged writes, %.0f/s; copied %s rows/s, verified %s rows/s.",
		output.Millis(r.GapHTTPMillis), output.Count(r.acknowledged()), r.Rates.Writes, output.Count(int64(r.Rates.CopyRows)), output.Count(int64(r.Rates.VerifyRows)))
	if r.OK {
		s.answer.Textf("%s all %d checks hold, in %s", s.answer.Paint(output.Green, "done:"), len(r.Checks), output.Duration(time.Duration(r.Seconds*float64(time.Second))))
	}
}

func shorten(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return text
}

// indented writes lines with an indentation; it is what the output of commands goes through.
type indented struct {
	mu    *sync.Mutex // of both outputs of a command
	w     io.Writer
	inner bool // a line has begun
}

func (i *indented) Write(b []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out bytes.Buffer
	for line := range bytes.Lines(b) {
		if !i.inner && len(bytes.TrimSpace(line)) > 0 {
			out.WriteString(indent + "  ")
		}
		out.Write(line)
		i.inner = !bytes.HasSuffix(line, []byte("\n"))
	}
	if _, err := i.w.Write(out.Bytes()); err != nil {
		return 0, fmt.Errorf("show: %w", err)
	}
	return len(b), nil
}
