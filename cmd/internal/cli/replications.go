package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// whichOptions name a replication: by id, by its database, or as the only one that is not finished.
type whichOptions struct {
	id, db string
	ended  bool // a finished one will do
}

func (o *whichOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.db, "db", "", "the database of the replication, by name or URL")
}

func (o *whichOptions) args(args []string) {
	if len(args) > 0 {
		o.id = args[0]
	}
}

func (o whichOptions) find(ctx context.Context, a *App) (target, api.Replication, error) {
	var t target
	var err error
	if o.db != "" {
		t, err = a.ConnectDatabase(o.db)
	} else {
		t.Client, err = a.Connect()
	}
	if err != nil {
		return t, api.Replication{}, err
	}
	if o.id != "" {
		r, err := t.Replication(ctx, o.id)
		if err == nil && o.db != "" && r.Database != t.database {
			err = tenant.Errorf(tenant.KindNotFound, "no-replication", "see rehome replications", "replication %s does not belong to database %s", r.ID, t.database)
		}
		t.database = r.Database
		return t, r, err
	}
	all, err := t.Replications(ctx)
	if err != nil {
		return t, api.Replication{}, err
	}
	var active, ended []api.Replication
	for _, r := range all {
		switch {
		case t.database != "" && r.Database != t.database:
		case r.State.Phase.Terminal():
			ended = append(ended, r)
		default:
			active = append(active, r)
		}
	}
	// The list is sorted by age, so the first that ended is the latest.
	if len(active) == 0 && o.ended && len(ended) > 0 {
		active = ended[:1]
	}
	switch len(active) {
	case 0:
		return t, api.Replication{}, tenant.Errorf(tenant.KindNotFound, "no-replication", "see rehome replications; rehome start-replication starts one", "there is no replication at work")
	case 1:
		t.database = active[0].Database
		return t, active[0], nil
	}
	ids := make([]string, len(active))
	for i, r := range active {
		ids[i] = r.ID + " (" + r.Database + ")"
	}
	return t, api.Replication{}, usage("which-replication", "name one: "+strings.Join(ids, ", "), "%d replications are at work", len(active))
}

func newReplicationsCommand(a *App) *cobra.Command {
	var db string
	cmd := &cobra.Command{
		Use: "replications [ID]", Short: "List the replications, or show the steps of one", Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return runReplication(cmd.Context(), a, whichOptions{id: args[0], db: db})
			}
			return runReplications(cmd.Context(), a, db)
		},
	}
	cmd.Flags().StringVar(&db, "db", "", "of this database only, by name or URL")
	return cmd
}

func runReplications(ctx context.Context, a *App, db string) error {
	var t target
	var err error
	if db != "" {
		t, err = a.ConnectDatabase(db)
	} else {
		t.Client, err = a.Connect()
	}
	if err != nil {
		return err
	}
	all, err := t.Replications(ctx)
	if err != nil {
		return err
	}
	shown := []api.Replication{}
	for _, r := range all {
		if t.database == "" || r.Database == t.database {
			shown = append(shown, r)
		}
	}
	return a.Print.Answer(shown, func() {
		if len(shown) == 0 {
			a.Print.Notef("no replications yet")
			return
		}
		rows := make([][]string, len(shown))
		for i, r := range shown {
			how := phaseText(tenant.Progress{Phase: r.State.Phase, Reason: r.State.Reason, ETASeconds: -1})
			if r.Progress != nil && r.State.Phase == r.Progress.Phase && r.State.Phase != tenant.Paused {
				how = phaseText(*r.Progress)
			}
			rows[i] = []string{r.ID, r.Database, r.From, how, output.When(r.CreatedAt)}
		}
		a.Print.Table([]string{"id", "database", "from", "state", "started"}, rows)
	})
}

// runReplication shows one with its steps: what took how long.
func runReplication(ctx context.Context, a *App, which whichOptions) error {
	_, r, err := which.find(ctx, a)
	if err != nil {
		return err
	}
	return a.Print.Answer(r, func() {
		a.Print.Textf("%s: %s to %s, %s", r.ID, r.From, r.To, r.State.Phase)
		rows := make([][]string, len(r.Steps))
		for i, s := range r.Steps {
			took := "under way"
			if s.FinishedAt != nil {
				took = output.Duration(s.FinishedAt.Sub(s.StartedAt))
			}
			rows[i] = []string{s.Name, output.When(s.StartedAt), took}
		}
		a.Print.Table([]string{"step", "began", ">took"}, rows)
	})
}

// verb is a request to a replication's worker.
type verb struct {
	name, path, short, said, question string
}

func pauseVerb() verb {
	return verb{name: "pause-replication", path: "pause", short: "Stop copying and applying; slot and positions stay", said: "paused"}
}

func resumeVerb() verb {
	return verb{name: "resume-replication", path: "resume", short: "Go on after a pause", said: "resumed"}
}

func cancelVerb() verb {
	return verb{
		name: "cancel-replication", path: "cancel", short: "End a replication and leave the source as it was", said: "cancelled",
		question: "Cancel replication %s? Slot, publication and all that was made at the source are dropped; what was copied counts no more.",
	}
}

func completeVerb() verb {
	return verb{
		name: "complete", path: "complete", short: "Close the way back and drop what the move made on both sides", said: "completed",
		question: "Complete replication %s? There is no way back afterwards, and all that was made at the source is dropped.",
	}
}

type askOptions struct {
	whichOptions
	verb    verb
	request api.CommandRequest
	force   []string
	yes     bool
	otp     otpOptions
}

func newAskCommand(a *App, v verb) *cobra.Command {
	o := askOptions{verb: v}
	cmd := &cobra.Command{
		Use: v.name + " [ID]", Short: v.short, Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			if len(o.force) > 0 {
				if err := o.destroyed("Cancel replication %s without the source, which is gone for good? What was copied is dropped. Should the source still be there, it keeps its data and the writes, and also slot, publication and all else that was made at it: the slot holds back WAL until somebody drops it."); err != nil {
					return err
				}
			}
			return runAsk(cmd.Context(), a, o)
		},
	}
	o.flags(cmd.Flags())
	if v.path == "cancel" {
		cmd.Flags().StringSliceVar(&o.force, "force", nil, "go on in spite of: "+forceSourceDestroyed+" (slot, publication and the rest stay at the source, should it still be there)")
	}
	if v.path == "pause" {
		cmd.Flags().StringVar(&o.request.Reason, "reason", "", "why, for those who look later")
	}
	if v.question != "" {
		cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	}
	return cmd
}

// destroyed makes the request one for a source that is gone for good, if that is what --force says.
func (o *askOptions) destroyed(question string) error {
	for _, f := range o.force {
		if f != forceSourceDestroyed {
			return usage("bad-force", "write "+forceSourceDestroyed, "there is nothing called %q to override", f)
		}
	}
	o.request.SourceDestroyed, o.verb.question = true, question
	return nil
}

// forceSourceDestroyed declares that the old side is gone for good.
const forceSourceDestroyed = "source-destroyed"

func newCompleteCommand(a *App) *cobra.Command {
	o := askOptions{verb: completeVerb()}
	cmd := &cobra.Command{
		Use: "complete [ID]", Short: o.verb.short, Args: rangeArgs(0, "ID"),
		Long: "Close the way back and drop what the move made on both sides. The old side stays closed unless --drop-fence says otherwise.\n" +
			"If the old side is gone for good, --force source-destroyed drops what is at the new side only. Where a cutover or rollback is in doubt, because the old side\n" +
			"cannot be asked, that opens the new side: what it had not received is lost, and should the old side come back, both may accept writes. That takes a code.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			if len(o.force) > 0 {
				if err := o.destroyed("Complete replication %s without the old side, which is gone for good? What the new side has not received is lost; should the old side come back, both may accept writes."); err != nil {
					return err
				}
			}
			return runAsk(cmd.Context(), a, o)
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().StringSliceVar(&o.force, "force", nil, "go on in spite of: "+forceSourceDestroyed+" (code needed)")
	cmd.Flags().BoolVar(&o.request.DropFence, "drop-fence", false, "also let the old side accept writes again (code needed)")
	o.otp.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return cmd
}

func runAsk(ctx context.Context, a *App, o askOptions) error {
	if o.verb.question != "" && !o.yes && !a.StdinTerminal {
		return a.confirm(ctx, false, "%s needs a confirmation.", o.verb.name)
	}
	t, r, err := o.find(ctx, a)
	if err != nil {
		return err
	}
	if o.verb.question != "" {
		if err := a.confirm(ctx, o.yes, o.verb.question, r.ID); err != nil {
			return err
		}
	}
	var cmd api.Command
	ask := func(ctx context.Context, approval api.Approval) (err error) {
		o.request.Approval = approval
		cmd, err = t.Ask(ctx, r.ID, o.verb.path, o.request)
		return err
	}
	if o.request.DropFence || o.verb.path == "complete" && o.request.SourceDestroyed {
		plan := api.CompletePlan{Replication: r.ID, DropFence: o.request.DropFence, SourceDestroyed: o.request.SourceDestroyed}
		requested, err := a.approve(ctx, t, o.otp, api.ChallengeRequest{Action: "complete", Complete: &plan}, ask)
		if err != nil || requested {
			return err
		}
	} else if err := ask(ctx, api.Approval{}); err != nil {
		return err
	}
	if cmd, err = a.waitCommand(ctx, t, cmd, r.ID); err != nil {
		return err
	}
	return a.Print.Answer(cmd, func() { a.Print.Textf("replication %s %s", r.ID, o.verb.said) })
}
