package cli

import (
	"math"
	"strings"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// pauseBar is how many characters the pause is wide.
const pauseBar = 32

// printSteps prints how long each step of a cutover or rollback took, and draws those during which writers waited on the
// pause's own time line: what took long is seen, and what ran side by side.
func (a *App) printSteps(steps []tenant.StepTime) {
	if len(steps) == 0 {
		return
	}
	from, to := math.Inf(1), 0.0
	for _, s := range steps {
		if s.Pause {
			from, to = min(from, s.AtMillis), max(to, s.AtMillis+s.Millis)
		}
	}
	headers := []string{"step", ">took"}
	if to > from {
		headers = append(headers, "in the pause")
	}
	rows := make([][]string, len(steps))
	for i, s := range steps {
		rows[i] = []string{s.Step, output.Millis(s.Millis)}
		if to > from {
			rows[i] = append(rows[i], bar(s, from, to-from))
		}
	}
	a.Print.Table(headers, rows)
}

// bar draws one step; empty outside the pause.
func bar(s tenant.StepTime, from, total float64) string {
	if !s.Pause {
		return ""
	}
	begin := min(int(math.Round((s.AtMillis-from)/total*pauseBar)), pauseBar-1)
	length := int(math.Round(s.Millis / total * pauseBar))
	if length == 0 {
		return strings.Repeat(" ", begin) + "▏"
	}
	return strings.Repeat(" ", begin) + strings.Repeat("█", min(length, pauseBar-begin))
}
