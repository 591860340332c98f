package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// pollEvery is how often progress is asked for: fast enough to look alive, and one small row of the control database.
	pollEvery = 500 * time.Millisecond
	// lineEvery is between plain lines that tell nothing new in kind, so that logs stay short.
	lineEvery = 5 * time.Second
)

// waitCommand waits until a worker has finished a command, and shows what it does meanwhile on stderr. The command's own
// failure is the error; the command with its result is returned also then.
func (a *App) waitCommand(ctx context.Context, t target, cmd api.Command, replication string) (api.Command, error) {
	t = a.patientTarget(t, "the "+cmd.Kind+" itself", a.lookAgain(t, cmd.Kind, replication))
	g, gctx := errgroup.WithContext(ctx)
	watch, stop := context.WithCancel(gctx)
	line := a.statusLine()
	g.Go(func() error {
		defer stop()
		var err error
		cmd, err = t.Wait(gctx, cmd)
		return err
	})
	g.Go(func() error {
		a.watchStep(watch, t, replication, line)
		return nil
	})
	err := g.Wait()
	line.clear()
	if err != nil {
		return cmd, interrupted(ctx, err, fmt.Sprintf("the %s goes on; see rehome replications", cmd.Kind))
	}
	if cmd.Error != nil {
		return cmd, client.ErrorOf(*cmd.Error)
	}
	return cmd, nil
}

// watchStep shows the step that a worker names until ctx ends. That it cannot be read is no failure of the command.
func (a *App) watchStep(ctx context.Context, t target, replication string, line *statusLine) {
	if a.Print.Quiet {
		return
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if p, err := t.Progress(ctx, replication); err == nil {
			text := phaseText(p)
			if p.Step != "" {
				text = p.Step
			}
			line.show(text)
		}
	}
}

// statusLine is one line on stderr that is written anew on a terminal, and lines now and then elsewhere.
type statusLine struct {
	a     *App
	live  bool
	last  string
	shown time.Time
}

func (a *App) statusLine() *statusLine {
	return &statusLine{a: a, live: a.StderrTerminal && !a.Print.Quiet}
}

func (s *statusLine) show(text string) {
	if s.live {
		text = output.Clean(text)
		if r := []rune(text); len(r) >= s.a.Width {
			text = string(r[:s.a.Width-1])
		}
		_, _ = fmt.Fprintf(s.a.Stderr, "\r\x1b[K%s", text)
		s.last = text
		return
	}
	if text == s.last || (!s.shown.IsZero() && time.Since(s.shown) < lineEvery) {
		return
	}
	s.last, s.shown = text, time.Now()
	s.a.Print.Notef("%s", text)
}

func (s *statusLine) clear() {
	if s.live && s.last != "" {
		_, _ = fmt.Fprint(s.a.Stderr, "\r\x1b[K")
	}
}

// phaseText says in a few words how a replication stands.
func phaseText(p tenant.Progress) string {
	switch p.Phase {
	case tenant.Copying:
		if p.RowsTotal == 0 && p.Percent == 0 && p.Step == "" {
			break
		}
		s := fmt.Sprintf("copying %.0f%%", min(p.Percent, 100))
		if p.RowsTotal > 0 {
			s += fmt.Sprintf(" · %s of %s rows", output.Count(p.RowsDone), output.Count(max(p.RowsTotal, p.RowsDone)))
		}
		if p.BytesPerSec > 0 {
			s += " · " + output.Bytes(p.BytesPerSec) + "/s"
		}
		if p.ETASeconds >= 0 && p.Percent < 100 {
			s += " · ETA " + output.ETA(p.ETASeconds)
		} else if p.Step != "" {
			s += " · " + p.Step
		}
		return s
	case tenant.CatchingUp:
		if p.At.IsZero() && p.LagBytes == 0 && p.LagMillis == 0 {
			break // not measured yet
		}
		s := "catching up · lag " + lagText(p)
		if p.RowsPerSec > 0 {
			s += fmt.Sprintf(" · %s rows/s", output.Count(int64(p.RowsPerSec)))
		}
		if p.Step != "" {
			s += " · " + p.Step
		}
		return s
	case tenant.InSync:
		if p.At.IsZero() && p.LagBytes == 0 && p.LagMillis == 0 {
			break
		}
		return "in sync, lag " + lagText(p)
	case tenant.Paused:
		s := "paused"
		if p.Reason != "" {
			s += ": " + p.Reason
		}
		return s
	case tenant.CutOver:
		return "cut over: the new side takes the writes" + wayBackText(p.WayBack)
	case tenant.Created, tenant.Preparing:
		if p.Step != "" {
			return string(p.Phase) + " · " + p.Step
		}
	}
	return strings.ReplaceAll(string(p.Phase), "_", " ")
}

func lagText(p tenant.Progress) string {
	s := output.Millis(p.LagMillis)
	if p.LagBytes > 0 {
		s += ", " + output.Bytes(float64(p.LagBytes))
	}
	return s
}
