package cli

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
)

// quietFor ends `events` without --follow: when no further event has come for this long, the past has been read.
const quietFor = 2 * time.Second

type eventsOptions struct {
	follow         bool
	subject, after string
}

func newEventsCommand(a *App) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happened in the installation, and with --follow what happens",
		Long: "Show the installation's events, those that are published on NATS as well. Without --follow it prints the ones that are kept and ends;\n" +
			"with --follow it goes on, from now or after the event --after. -o json prints one CloudEvents object a line.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEvents(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what happens")
	f.StringVar(&o.subject, "subject", "", "only these, as NATS writes them: 'rehome.v1.*.acme.>'")
	f.StringVar(&o.after, "after", "", "after the event with this number (0: all that are kept)")
	return cmd
}

func runEvents(ctx context.Context, a *App, o eventsOptions) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if !o.follow {
		// The time of quiet counts from here on, when the server is known to answer.
		if _, err := c.Installation(ctx); err != nil {
			return err
		}
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	after := o.after
	var idle *time.Timer
	if !o.follow {
		if after == "" {
			after = "0"
		}
		idle = time.AfterFunc(quietFor, cancel)
		defer idle.Stop()
	}
	err = c.Events(rctx, o.subject, after, func(e client.Event) error {
		if idle != nil {
			idle.Reset(quietFor)
		}
		return a.printEvent(e.Data)
	})
	if !o.follow && ctx.Err() == nil && rctx.Err() != nil {
		return nil
	}
	return interrupted(ctx, err, "")
}

func (a *App) printEvent(raw json.RawMessage) error {
	if a.Print.JSON {
		return a.Print.Line(raw)
	}
	var e progress.Event
	if json.Unmarshal(raw, &e) == nil {
		a.Print.Textf("%s  %s  %s %s", e.Time.UTC().Format("2006-01-02 15:04:05.000Z"), e.Subject,
			a.Print.Paint(output.Bold, strings.TrimPrefix(e.Type, "dev.rehome.")), phaseOf(raw))
	} else { // of another shape: shown as it is
		a.Print.Textf("%s", raw)
	}
	return nil
}

func eventTime(raw json.RawMessage) time.Time {
	var e progress.Event
	if json.Unmarshal(raw, &e) != nil {
		return time.Time{} // of an unknown time, so of no interest to who asks for one
	}
	return e.Time
}

type auditOptions struct {
	limit  int
	before int64
}

func newAuditCommand(a *App) *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use: "audit", Short: "Show the audit log, the newest first: who did what, allowed or refused", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runAudit(cmd.Context(), a, o) },
	}
	cmd.Flags().IntVarP(&o.limit, "limit", "n", 50, "at most so many")
	cmd.Flags().Int64Var(&o.before, "before", 0, "older than the entry with this number")
	return cmd
}

func runAudit(ctx context.Context, a *App, o auditOptions) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	entries, err := c.Audit(ctx, o.limit, o.before)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(entries), func() { a.auditText(entries) })
}

func (a *App) auditText(entries []api.AuditEntry) {
	rows := make([][]string, len(entries))
	for i, e := range entries {
		detail := string(e.Detail)
		if detail == "{}" || detail == "null" {
			detail = ""
		}
		outcome := e.Outcome
		if outcome != "ok" {
			outcome = a.Print.Paint(output.Red, outcome)
		}
		rows[i] = []string{output.Count(e.ID), output.When(e.At), e.Actor, e.Action, e.Object, outcome, e.Address, short(output.Clean(detail), 60)}
	}
	a.Print.Table([]string{">no", "at", "who", "action", "object", "outcome", "address", "detail"}, rows)
}
