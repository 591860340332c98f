package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type verifyOptions struct {
	whichOptions
	watch, last bool
}

func newVerifyCommand(a *App) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use: "verify [ID]", Short: "Compare both sides row by row, while both keep moving",
		Long: "Compare both sides row by row, and their schemas, at one exact position, while both keep moving. Waits for the result; exit code 3 if anything differs.\n" +
			"With --watch -o json the replication's events are printed while it compares, one a line, and the result as the last line.",
		Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			return runVerify(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.BoolVarP(&o.watch, "watch", "w", false, "show each step")
	f.BoolVar(&o.last, "last", false, "show the last result; compare nothing now")
	return cmd
}

func runVerify(ctx context.Context, a *App, o verifyOptions) error {
	o.ended = o.last
	t, r, err := o.find(ctx, a)
	if err != nil {
		return err
	}
	var v tenant.Verification
	if o.last {
		if v, err = t.Verification(ctx, r.ID, "latest"); err != nil {
			return err
		}
		return a.printVerification(v, false)
	}
	cmd, err := t.Ask(ctx, r.ID, "verify", api.CommandRequest{})
	if err != nil {
		return err
	}
	stream := o.watch && a.Print.JSON
	if stream {
		cmd, err = a.waitWithEvents(ctx, t, cmd, r.ID)
	} else {
		cmd, err = a.waitCommand(ctx, t, cmd, r.ID)
	}
	// A comparison that found differences may come as a refusal together with its result.
	if len(cmd.Result) > 0 && json.Unmarshal(cmd.Result, &v) == nil && v.ID != "" {
		if perr := a.printVerification(v, stream); perr != nil && err == nil {
			err = perr
		}
		return err
	}
	if err != nil {
		return err
	}
	if v, err = t.Verification(ctx, r.ID, "latest"); err != nil {
		return err
	}
	return a.printVerification(v, stream)
}

// waitWithEvents waits for a command and prints the replication's events meanwhile.
func (a *App) waitWithEvents(ctx context.Context, t target, cmd api.Command, id string) (api.Command, error) {
	g, gctx := errgroup.WithContext(ctx)
	watch, stop := context.WithCancel(gctx)
	g.Go(func() error {
		defer stop()
		var err error
		cmd, err = t.Wait(gctx, cmd)
		return err
	})
	g.Go(func() error {
		err := t.ReplicationEvents(watch, id, "", func(e client.Event) error {
			if eventTime(e.Data).Before(cmd.CreatedAt) {
				return nil
			}
			return a.Print.Line(e.Data)
		})
		if watch.Err() == nil {
			return err
		}
		return nil // the command is finished
	})
	if err := g.Wait(); err != nil {
		return cmd, interrupted(ctx, err, fmt.Sprintf("the %s goes on; see rehome verify --last", cmd.Kind))
	}
	if cmd.Error != nil {
		return cmd, client.ErrorOf(*cmd.Error)
	}
	return cmd, nil
}

// printVerification prints a result and returns the refusal that it means, if it does.
func (a *App) printVerification(v tenant.Verification, line bool) error {
	if line {
		if err := a.Print.Line(v); err != nil {
			return err
		}
	} else if err := a.Print.Answer(v, func() { a.verificationText(v) }); err != nil {
		return err
	}
	switch {
	case v.Error != "":
		return tenant.Errorf(tenant.KindInternal, "verification-failed", "run rehome verify again; what stands above was compared", "the comparison could not be finished: %s", v.Error)
	case !v.Clean:
		return tenant.Errorf(tenant.KindRefused, "verification-not-clean", "look at the rows by their keys, and at the schema; a cutover is refused until a comparison is clean", "the two sides differ")
	}
	return nil
}

func (a *App) verificationText(v tenant.Verification) {
	rows := make([][]string, len(v.Tables))
	for i, t := range v.Tables {
		state := a.Print.Paint(output.Green, "equal")
		switch {
		case t.Skipped != "":
			state = a.Print.Paint(output.Red, "not compared")
		case !t.Equal:
			state = a.Print.Paint(output.Red, "differs")
		}
		rows[i] = []string{t.Table, output.Count(t.SourceRows), output.Count(t.TargetRows), state, output.Count(t.Misplaced), short12(t.Digest)}
	}
	a.Print.Table([]string{"table", ">source rows", ">target rows", "result", ">misplaced", "digest"}, rows)
	for _, t := range v.Tables {
		if t.Skipped != "" {
			a.Print.Textf("  %s: rows not compared: %s", t.Table, t.Skipped)
		}
		for _, d := range t.Differences {
			where := ""
			if d.Shard != "" {
				where = " on " + d.Shard
			}
			if len(d.Columns) > 0 {
				where += " in " + strings.Join(d.Columns, ", ")
			}
			a.Print.Textf("  %s (%s): %s%s", t.Table, d.Key, d.Kind, where)
		}
		if t.MoreDiffs > 0 {
			a.Print.Textf("  %s: and %s rows more", t.Table, output.Count(t.MoreDiffs))
		}
	}
	for _, d := range v.Schema {
		a.Print.Textf("  schema: %s", schemaText(d))
	}
	if v.MoreSchema > 0 {
		a.Print.Textf("  schema: and %s differences more", output.Count(v.MoreSchema))
	}
	if v.Clean {
		a.Print.Textf("%s %s rows equal at %s in %s; digest %s", a.Print.Paint(output.Green, "clean:"), output.Count(v.Rows), v.LSN,
			output.Millis(float64(v.FinishedAt.Sub(v.StartedAt).Milliseconds())), short12(v.Digest))
	}
}

// schemaText is one difference in schema: "public.item.price: column-type on eu-1: numeric(10,2) at the source, numeric(12,2) there".
func schemaText(d tenant.SchemaDiff) string {
	text := d.Object + ": " + d.Kind + " on " + d.Shard
	switch {
	case d.Source != "" && d.Target != "":
		text += ": " + d.Source + " at the source, " + d.Target + " there"
	case d.Source != "":
		text += ": " + d.Source + " at the source"
	case d.Target != "":
		text += ": " + d.Target + " there"
	}
	return text
}

func short12(s string) string { return s[:min(len(s), 12)] }
