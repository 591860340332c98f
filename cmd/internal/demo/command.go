package demo

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

const (
	defaultScale  = 1
	defaultShards = 2
	// maxShards is what one machine runs beside everything else; a sequence step reserves more.
	maxShards = 16
)

// options say how the demo is run.
type options struct {
	scale  int
	shards int
	keep   bool
	// fault breaks something after the move and before the checks, which must notice. Tests set it.
	fault func(context.Context, *demo) error
}

// Command is the constructor of `rehome demo`, for cli.Main.
func Command(a *cli.App) *cobra.Command { return newCommand(a, options{}) }

func newCommand(a *cli.App, o options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "demo", Short: "Show the whole move on this machine, in temporary Postgres clusters",
		Long: "Show the whole move on this machine: a hosted installation with an application whose clients never stop writing, an installation of\n" +
			"one's own with several shards, and every step from preflight to the deletion of the old side. At the end it checks that nothing\n" +
			"was lost, doubled or misplaced; the exit code is 0 only if every check holds. It needs Postgres' binaries and nothing else.",
		Example: "  rehome demo\n  rehome demo --shards 3 --scale 5\n  rehome demo -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCommand(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.scale, "scale", defaultScale, "how much data: 60 000 rows per unit")
	f.IntVar(&o.shards, "shards", defaultShards, "how many shards the database is spread over")
	f.BoolVar(&o.keep, "keep", false, "leave everything running at the end, until Ctrl-C")
	return cmd
}

func runCommand(ctx context.Context, a *cli.App, o options) error {
	switch {
	case o.scale < 1:
		return tenant.Errorf(tenant.KindInvalid, "bad-scale", "use a whole number of 1 or more", "--scale %d is too small", o.scale)
	case o.shards < 1 || o.shards > maxShards:
		return tenant.Errorf(tenant.KindInvalid, "bad-shards", "use 1 to 16", "--shards %d is not possible", o.shards)
	}
	d := newDemo(o, newShow(a))
	rep, err := d.run(ctx, func(rep *Report) error {
		return a.Print.Answer(rep, func() { d.show.summary(rep) })
	})
	switch {
	case interrupted(ctx, err):
		a.Print.Notef("interrupted; clusters and files of the demo are gone")
		return err
	case err != nil:
		return err
	case !rep.OK:
		return tenant.Errorf(tenant.KindInternal, "demo-failed", "see the checks above", "%d of %d checks do not hold", rep.failed(), len(rep.Checks))
	}
	return nil
}

// newShow sends the steps to where people read: stdout, or with -o json, where stdout has the document, stderr.
func newShow(a *cli.App) *show {
	s := &show{out: a.Stdout, live: a.StdoutTerminal, width: a.Width, environ: a.Environ}
	if a.Print.JSON {
		s.out, s.live = a.Stderr, a.StderrTerminal
	}
	if a.Print.Quiet {
		s.out, s.live = io.Discard, false
	}
	s.p = &output.Printer{Out: s.out, Err: s.out, Color: s.live && (a.Print.Color || a.Print.JSON) && a.Getenv("NO_COLOR") == ""}
	// The checks are the answer, so they are printed even with -q.
	s.answer = &output.Printer{Out: a.Stdout, Err: a.Stderr, JSON: a.Print.JSON, Color: a.Print.Color}
	return s
}

// interrupted reports whether a person ended the demo.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded)
}
