package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

type progressOptions struct {
	whichOptions
	watch bool
	until string
	after string
}

func newProgressCommand(a *App) *cobra.Command {
	o := progressOptions{whichOptions: whichOptions{ended: true}}
	cmd := &cobra.Command{
		Use: "replication-progress [ID]", Short: "Show how far a replication is: rows, rate, what is left, lag, what blocks",
		Long: "Show how far a replication is. With --watch it goes on until the replication has ended, --until is reached or Ctrl-C, which ends the watching\n" +
			"only. With --watch -o json it prints the replication's events, one a line, from the first on or after --after.",
		Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			return runProgress(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.BoolVarP(&o.watch, "watch", "w", false, "go on showing it")
	f.StringVar(&o.until, "until", "", "watch until this phase, for example in_sync")
	f.StringVar(&o.after, "after", "", "with --watch -o json: only events after this sequence number")
	return cmd
}

func runProgress(ctx context.Context, a *App, o progressOptions) error {
	if o.until != "" {
		o.watch = true
		if !slices.Contains(tenant.Phases, tenant.Phase(o.until)) {
			names := make([]string, len(tenant.Phases))
			for i, p := range tenant.Phases {
				names[i] = string(p)
			}
			return usage("bad-phase", "write one of "+strings.Join(names, ", "), "there is no phase %q", o.until)
		}
	}
	t, r, err := o.find(ctx, a)
	if err != nil {
		return err
	}
	goesOn := fmt.Sprintf("replication %s goes on; look again with rehome replication-progress", r.ID)
	if !o.watch {
		p, err := t.Progress(ctx, r.ID)
		if err != nil {
			return err
		}
		return a.Print.Answer(p, func() { a.printProgress(p) })
	}
	words := []string{"replication-progress", r.ID, "--watch"}
	if o.until != "" {
		words = append(words, "--until", o.until)
	}
	t = a.patientTarget(t, "replication "+r.ID+" itself", a.again(t, words...))
	if a.Print.JSON {
		return interrupted(ctx, a.followProgress(ctx, t, r.ID, o), goesOn)
	}
	return interrupted(ctx, a.watchProgress(ctx, t, r.ID, o.until), goesOn)
}

// printProgress is the picture of one moment.
func (a *App) printProgress(p tenant.Progress) {
	a.Print.Textf("%s", a.Print.Paint(output.Bold, phaseText(p)))
	if p.Remedy != "" {
		a.Print.Textf("remedy: %s", p.Remedy)
	}
	if p.Blocked != "" {
		a.Print.Textf("%s %s", a.Print.Paint(output.Yellow, "blocked by:"), p.Blocked)
	}
	a.printCare(p)
	if len(p.Tables) > 0 {
		rows := make([][]string, len(p.Tables))
		for i, t := range p.Tables {
			rows[i] = []string{t.Table, t.State, output.Count(t.RowsDone), output.Count(max(t.RowsTotal, t.RowsDone)), output.Bytes(float64(t.BytesDone))}
		}
		a.Print.Table([]string{"table", "state", ">rows", ">of", ">copied"}, rows)
	}
	if p.BytesAgain > 0 {
		a.Print.Textf("copied again after interruptions: %s rows, %s", output.Count(p.RowsAgain), output.Bytes(float64(p.BytesAgain)))
	}
	if len(p.Shards) > 0 {
		rows := make([][]string, len(p.Shards))
		for i, s := range p.Shards {
			rows[i] = []string{s.Shard, s.LSN.String(), s.Durable.String()}
		}
		a.Print.Table([]string{"shard", "applied to", "durable to"}, rows)
	}
	a.printWayBack(p.WayBack)
	if v := p.Verification; v != nil {
		a.Print.Textf("%s", a.verifiedText(*v))
	}
	if p.SourceLSN != 0 {
		a.Print.Textf("source at %s, slot holds %s of WAL; %s transactions with %s rows applied", p.SourceLSN, output.Bytes(float64(p.SlotWAL)),
			output.Count(p.AppliedTxns), output.Count(p.AppliedRows))
	}
	if p.SpooledBytes > 0 {
		a.Print.Textf("%s of large transactions that are still open at the source are kept until they end", output.Bytes(float64(p.SpooledBytes)))
	}
}

// verifiedText says how fresh the proof is that both sides are equal.
func (a *App) verifiedText(v tenant.VerificationState) string {
	text := "not verified yet"
	if v.ID != "" {
		text = a.Print.Paint(output.Green, "verified clean") + " at " + v.LSN.String()
		if !v.Clean {
			text = a.Print.Paint(output.Red, "verification found differences") + " at " + v.LSN.String()
		}
		text += ", compared at " + v.ComparedAt.Format(time.RFC3339)
		if v.Direction == tenant.DirectionBack {
			text += " (the source with what the shards have)"
		}
		if v.Outdated {
			text += ", " + a.Print.Paint(output.Yellow, "before the writes changed sides: a new one is needed")
		}
	}
	if v.Continuous {
		text += fmt.Sprintf("; goes on every %s", time.Duration(v.EverySeconds*float64(time.Second)))
	}
	return text
}

// reached says whether watching ends at this phase, and whether that is a failure.
func reached(phase tenant.Phase, until, reason, remedy string) (bool, error) {
	switch {
	case until == "" && phase.Terminal(), until != "" && atLeast(phase, tenant.Phase(until)):
		return true, nil
	case until == "":
		return false, nil
	case phase.Terminal():
		return true, tenant.Errorf(tenant.KindConflict, "not-reached", "", "the replication is %s and will not be %s", phase, until)
	case phase == tenant.Paused:
		if reason == "" {
			reason = "no reason was given"
		}
		return true, tenant.Errorf(tenant.KindConflict, "paused", remedy, "the replication is paused: %s", reason)
	}
	return false, nil
}

// atLeast reports whether a phase is the wanted one or, on the way forward, a later one.
func atLeast(phase, want tenant.Phase) bool {
	forward := []tenant.Phase{tenant.Created, tenant.Preparing, tenant.Copying, tenant.CatchingUp, tenant.InSync, tenant.CuttingOver, tenant.CutOver, tenant.Completed}
	have, need := slices.Index(forward, phase), slices.Index(forward, want)
	return phase == want || (need >= 0 && have >= need)
}

// watchProgress shows progress for people until it ends.
func (a *App) watchProgress(ctx context.Context, t target, id, until string) error {
	var v progressView = &plainProgress{a: a}
	if a.StdoutTerminal && !a.Print.Quiet {
		v = newLiveProgress(ctx, a)
	}
	err := pollProgress(ctx, a, t, id, until, v)
	v.close()
	return err
}

// progressView shows successive states.
type progressView interface {
	show(p tenant.Progress)
	close()
}

func pollProgress(ctx context.Context, a *App, t target, id, until string, v progressView) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		p, err := t.Progress(ctx, id)
		if err != nil {
			return err // a server that restarts is outlasted by the patient client
		}
		v.show(p)
		if end, err := reached(p.Phase, until, p.Reason, p.Remedy); end {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// plainProgress prints a line when something changes in kind, and else now and then.
type plainProgress struct {
	a       *App
	phase   tenant.Phase
	blocked string
	care    string
	text    string
	at      time.Time
}

func (v *plainProgress) show(p tenant.Progress) {
	text := phaseText(p)
	care := careLine(p)
	if p.Phase == v.phase && p.Blocked == v.blocked && strings.Join(careKind(p), "") == v.care && (text == v.text || time.Since(v.at) < lineEvery) {
		return
	}
	v.phase, v.blocked, v.care, v.text, v.at = p.Phase, p.Blocked, strings.Join(careKind(p), ""), text, time.Now()
	v.a.Print.Textf("%s", text)
	if care != "" {
		v.a.Print.Textf("%s", care)
	}
	if p.Blocked != "" {
		v.a.Print.Textf("blocked by: %s", p.Blocked)
	}
	if p.Remedy != "" {
		v.a.Print.Textf("remedy: %s", p.Remedy)
	}
}

func (v *plainProgress) close() {}

// followProgress prints the replication's events as they are, one a line.
func (a *App) followProgress(ctx context.Context, t target, id string, o progressOptions) error {
	return t.ReplicationEvents(ctx, id, o.after, func(e client.Event) error {
		if err := a.Print.Line(e.Data); err != nil {
			return err
		}
		if end, _ := reached(phaseOf(e.Data), o.until, "", ""); !end {
			return nil
		}
		// The event may be of the past: what counts is how it stands now.
		p, err := t.Progress(ctx, id)
		if err != nil {
			return err
		}
		end, err := reached(p.Phase, o.until, p.Reason, p.Remedy)
		if err == nil && end {
			return client.Stop()
		}
		return err
	})
}

// phaseOf finds the phase in an event's data: of progress, or of a change of phase; "" if there is none.
func phaseOf(event json.RawMessage) tenant.Phase {
	var e struct {
		Data struct {
			Phase tenant.Phase `json:"phase"`
			To    tenant.Phase `json:"to"` // of a change of phase
		} `json:"data"`
	}
	if json.Unmarshal(event, &e) != nil {
		return "" // its data is of another shape
	}
	if e.Data.Phase != "" {
		return e.Data.Phase
	}
	if slices.Contains(tenant.Phases, e.Data.To) {
		return e.Data.To
	}
	return ""
}
