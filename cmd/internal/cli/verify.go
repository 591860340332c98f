package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type verifyOptions struct {
	whichOptions
	watch, last       bool
	maxDuration, rest time.Duration
	jobs              int
	resume, repair    bool
	continuous, stop  bool
	every             time.Duration
}

func (o verifyOptions) request() api.VerifyRequest {
	return api.VerifyRequest{
		MaxDurationMS: o.maxDuration.Milliseconds(), RestMS: o.rest.Milliseconds(), Jobs: o.jobs, Resume: o.resume, Repair: o.repair,
		Continuous: o.continuous, EveryMS: o.every.Milliseconds(), Stop: o.stop,
	}
}

func newVerifyCommand(a *App) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use: "verify [ID]", Short: "Compare both sides row by row, while both keep moving",
		Long: "Compare both sides row by row, and their schemas, at one exact position, while both keep moving. Waits for the result; exit code 3 if anything differs.\n" +
			"With --watch -o json the replication's events are printed while it compares, one a line, and the result as the last line.\n\n" +
			"--max-duration bounds it, since its snapshots hold back vacuum on both sides; what was found equal until then is kept, and --resume goes on with the\n" +
			"rest at a new position. Such a result is as old as its oldest part. --rest spares the servers.\n\n" +
			"--repair copies rows that differ again, through the stream and fenced like it, and compares what was not equal once more, until both sides are equal;\n" +
			"it says how many rows were written where. A replication that is paused by such a row is resumed by it. Schemas are not repaired.\n\n" +
			"After a cutover it shows that the way back has carried to the source what was written at the shards, which a rollback demands; reference tables are compared\n" +
			"with the shard that they are carried from, and nothing is repaired then.\n\n" +
			"--continuous compares again and again, with any server, until --stop, complete or a cutover without a way back; differences raise an alarm, and\n" +
			"replication-progress shows how fresh the result is.",
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
	f.DurationVar(&o.maxDuration, "max-duration", 0, "give up after this time, and keep what was found equal for --resume; 0: no bound")
	f.DurationVar(&o.rest, "rest", 0, "each session rests so long after each table or part, to spare the servers")
	f.IntVar(&o.jobs, "jobs", 0, "tables compared at the same time; 0: by the machine")
	f.BoolVar(&o.resume, "resume", false, "go on with the last one that was not finished")
	f.BoolVar(&o.repair, "repair", false, "copy the rows that differ again, until both sides are equal")
	f.BoolVar(&o.continuous, "continuous", false, "compare again and again, until --stop or complete")
	f.DurationVar(&o.every, "every", 0, "with --continuous: so long after the last one; default 5m")
	f.BoolVar(&o.stop, "stop", false, "end the continuous mode")
	cmd.MarkFlagsMutuallyExclusive("last", "continuous", "stop")
	cmd.MarkFlagsMutuallyExclusive("repair", "continuous", "stop")
	cmd.MarkFlagsMutuallyExclusive("resume", "continuous", "stop")
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
	cmd, err := t.Ask(ctx, r.ID, "verify", api.CommandRequest{VerifyRequest: o.request()})
	if err != nil {
		return err
	}
	stream := o.watch && a.Print.JSON
	if stream {
		cmd, err = a.waitWithEvents(ctx, t, cmd, r.ID)
	} else {
		cmd, err = a.waitCommand(ctx, t, cmd, r.ID)
	}
	if o.continuous || o.stop {
		return a.printVerifyMode(cmd, err)
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
	t = a.patientTarget(t, "the "+cmd.Kind+" itself", a.lookAgain(t, cmd.Kind, id))
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
	case v.Unfinished > 0 || v.Error != "":
		return tenant.Errorf(tenant.KindTimeout, "verification-unfinished", "go on with it: rehome verify --resume; what stands above was compared", "the comparison could not be finished: %s", v.Error)
	case !v.Clean && v.Direction == tenant.DirectionBack:
		return tenant.Errorf(tenant.KindRefused, "verification-not-clean", "look at the rows by their keys, and at the schema; a rollback is refused until a comparison is clean", "the source does not have what the shards have")
	case !v.Clean:
		return tenant.Errorf(tenant.KindRefused, "verification-not-clean", "look at the rows by their keys, and at the schema; rows are mended with rehome verify --repair; a cutover is refused until a comparison is clean", "the two sides differ")
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
		if len(t.ShardsDiffer) > 0 {
			a.Print.Textf("  %s: the rows of shard %s are not the home shard's; after a rollback: rehome verify --repair", t.Table, strings.Join(t.ShardsDiffer, ", "))
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
	a.repairText(v.Repair)
	if v.Unfinished > 0 {
		a.Print.Textf("%s %s tables are not compared, or not all of them", a.Print.Paint(output.Yellow, "unfinished:"), output.Count(int64(v.Unfinished)))
	}
	if v.FirstLSN != 0 {
		a.Print.Textf("gathered from %s on; its oldest part was compared at %s", v.FirstLSN, v.ComparedAt.Format(time.RFC3339))
	}
	for _, s := range v.Shards {
		a.Print.Textf("shard %s was compared at %s", s.Shard, s.LSN)
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

func (a *App) repairText(r *tenant.RowRepair) {
	if r == nil {
		return
	}
	if len(r.Tables) > 0 {
		rows := make([][]string, len(r.Tables))
		for i, t := range r.Tables {
			rows[i] = []string{t.Table, t.Shard, output.Count(t.Removed), output.Count(t.Inserted)}
		}
		a.Print.Table([]string{"repaired", "shard", ">removed", ">inserted"}, rows)
	}
	if r.Left != "" {
		a.Print.Textf("%s %s", a.Print.Paint(output.Red, "not repaired:"), r.Left)
	}
}

// printVerifyMode says whether verifications go on by themselves.
func (a *App) printVerifyMode(cmd api.Command, err error) error {
	if err != nil {
		return err
	}
	var m api.VerifyModeResult
	if err := json.Unmarshal(cmd.Result, &m); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return a.Print.Answer(m, func() {
		if m.Policy == nil {
			a.Print.Textf("verifications do not go on by themselves")
			return
		}
		a.Print.Textf("verifies %s after the last one; see: rehome replication-progress, rehome verify --last", time.Duration(m.Policy.EveryMS)*time.Millisecond)
	})
}
