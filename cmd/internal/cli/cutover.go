package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type cutoverOptions struct {
	whichOptions
	from, to  string
	dryRun    bool
	noWayBack bool
	rehearse  bool
	maxPause  time.Duration
	otp       otpOptions
}

func (o *cutoverOptions) flags(f *pflag.FlagSet) {
	o.whichOptions.flags(f)
	f.StringVar(&o.from, "from", "", "the source, as at start-replication")
	f.StringVar(&o.to, "to", "", "the target: https://host/NAME")
	f.DurationVar(&o.maxPause, "max-pause", 0, "give up and restore the former state after this pause of writes (default 5s)")
	o.otp.flags(f)
}

func newCutoverCommand(a *App) *cobra.Command {
	var o cutoverOptions
	cmd := &cobra.Command{
		Use: "cutover [ID]", Short: "Let the new side take the writes (code needed)",
		Long: "Let the new side take the writes: they pause for well under a second and go on there. It succeeds or restores the former state (exit code 7).\n" +
			"The replication is named by ID, by --to, or is the only one at work.",
		Example: "  rehome cutover --from postgres://me@hosted.example/acme --to https://own.example/acme\n  rehome cutover --dry-run",
		Args:    rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			return runCutover(cmd.Context(), a, o, "cutover")
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only say what stands in the way; nothing changes and no code is needed")
	cmd.Flags().BoolVar(&o.rehearse, "rehearse", false, "do everything but the decision and take it back: says how long writes would pause (they do pause; code needed)")
	cmd.Flags().BoolVar(&o.noWayBack, "no-way-back", false, "go on although a later rollback is not possible")
	return cmd
}

func newRollbackCommand(a *App) *cobra.Command {
	var o cutoverOptions
	cmd := &cobra.Command{
		Use: "rollback [ID]", Short: "Give the writes back to the old side after a cutover (code needed)",
		Long: "Give the writes back to the old side after a cutover: they pause, at most for --max-pause, and go on there, with everything that was written since.\n" +
			"It succeeds or restores the former state (exit code 7). It needs a way back that works and is close behind, a fresh verification (rehome verify), and a schema\n" +
			"that is the same on both sides. Replication then goes on from the old side to the new one: cutover may be tried again, cancel-replication ends it.",
		Example: "  rehome rollback --dry-run\n  rehome rollback",
		Args:    rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			return runCutover(cmd.Context(), a, o, "rollback")
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only say what stands in the way; nothing changes and no code is needed")
	return cmd
}

func runCutover(ctx context.Context, a *App, o cutoverOptions, action string) error {
	if err := o.otp.check(); err != nil {
		return err
	}
	if o.dryRun && o.rehearse {
		return usage("dry-run-or-rehearse", "--dry-run only looks; --rehearse pauses writes and takes it back", "--dry-run and --rehearse are two things")
	}
	if o.maxPause < 0 {
		return usage("bad-max-pause", "write a duration such as 5s or 800ms", "--max-pause is negative")
	}
	if o.to != "" {
		o.db = o.to
	}
	a.override = func(f tenant.Finding) string {
		return fmt.Sprintf("start-replication --accept '%s' goes on in spite of it", f.ID())
	}
	t, r, err := o.find(ctx, a)
	if err != nil {
		return err
	}
	if err := sameSource(ctx, a, o.from, r); err != nil {
		return err
	}
	plan := api.CutoverPlan{Replication: r.ID, MaxPauseMS: o.maxPause.Milliseconds(), NoWayBack: o.noWayBack, Rehearse: o.rehearse}
	var cmd api.Command
	ask := func(ctx context.Context, approval api.Approval) error {
		req := api.CutoverRequest{CutoverPlan: plan, DryRun: o.dryRun, Approval: approval}
		var err error
		if action == "rollback" {
			cmd, err = t.Rollback(ctx, req)
		} else {
			cmd, err = t.Cutover(ctx, req)
		}
		return err
	}
	if o.dryRun {
		err = ask(ctx, api.Approval{})
	} else {
		var requested bool
		requested, err = a.approve(ctx, t, o.otp, api.ChallengeRequest{Action: action, Cutover: &plan}, ask)
		if requested {
			return err
		}
	}
	if err != nil {
		return err
	}
	cmd, err = a.waitCommand(ctx, t, cmd, r.ID)
	return a.printCutover(cmd, action, err)
}

// sameSource refuses to cut over another replication than the one that --from describes. Connection strings are compared
// without their passwords: that is all the server tells.
func sameSource(ctx context.Context, a *App, from string, r api.Replication) error {
	if from == "" {
		return nil
	}
	from, err := a.secretArgument(ctx, from, "REHOME_FROM", "the source (--from)")
	if err != nil {
		return err
	}
	label := strings.TrimRight(from, "/")
	if looksLikeDSN(from) {
		label = tenant.DSN(from).String()
	}
	if label != strings.TrimRight(r.From, "/") {
		return tenant.Errorf(tenant.KindConflict, "other-source", "see rehome replications, and name the replication by its id", "replication %s has another source: %s", r.ID, r.From)
	}
	return nil
}

// printCutover prints the report, also of an attempt that was taken back, and returns what the command's failure was.
func (a *App) printCutover(cmd api.Command, action string, failed error) error {
	var report api.CutoverReport
	if len(cmd.Result) == 0 || json.Unmarshal(cmd.Result, &report) != nil || report.Outcome == "" {
		if failed != nil {
			return failed
		}
		return a.Print.Answer(cmd, func() { a.Print.Textf("%s finished", action) })
	}
	report.Findings, report.Steps = list(report.Findings), list(report.Steps)
	if err := a.Print.Answer(report, func() { a.cutoverText(report, action) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	stays := "source"
	if action == "rollback" {
		stays = "target"
	}
	switch {
	case report.Outcome == "dry_run" && tenant.Blocks(report.Findings):
		return tenant.Errorf(tenant.KindRefused, action+"-refused", "follow the remedies and try again", "%s", blockingCount(report.Findings))
	case report.Outcome == stays:
		return tenant.Errorf(tenant.KindTimeout, "restored", "see the steps above and who was in the way; then try again, or allow more with --max-pause", "the %s was taken back; the former state is restored", action)
	}
	return nil
}

func (a *App) cutoverText(r api.CutoverReport, action string) {
	a.printFindings(a.Print, r.Findings)
	a.printSteps(r.Steps)
	for _, c := range r.Culprits {
		a.Print.Textf("%s %s", a.Print.Paint(output.Yellow, "in the way:"), c)
	}
	switch {
	case r.Outcome == "dry_run" && !tenant.Blocks(r.Findings):
		a.Print.Textf("%s a %s could begin now", a.Print.Paint(output.Green, "ok:"), action)
	case r.Outcome == "rehearsed":
		a.Print.Textf("%s a %s would pause writes for about %s now; everything is as it was", a.Print.Paint(output.Green, "rehearsed:"), action, output.Millis(r.PauseMillis))
	case r.Outcome == "target" && action == "cutover":
		a.Print.Textf("%s the new side takes the writes; they paused for %s", a.Print.Paint(output.Green, "cut over:"), output.Millis(r.PauseMillis))
	case r.Outcome == "source" && action == "rollback":
		a.Print.Textf("%s the old side takes the writes again; they paused for %s", a.Print.Paint(output.Green, "rolled back:"), output.Millis(r.PauseMillis))
	}
}
