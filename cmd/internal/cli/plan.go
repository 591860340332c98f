package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// planOptions say what is replicated; preflight and start-replication share them.
type planOptions struct {
	from, to string
	tables   []string // --table-key
	chunk    string   // --chunk-size
	opts     tenant.ReplicationOptions
	otp      otpOptions
}

func (o *planOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "the source: postgres://…; - reads it from stdin (default REHOME_FROM)")
	f.StringVar(&o.to, "to", "", "the target: https://host/NAME (default rehome.json's dbUrl)")
	f.StringVar(&o.opts.RealmKey, "realm-key", "", "column that names a row's realm (default: the database's)")
	f.StringArrayVar(&o.tables, "table-key", nil, "for one table another realm key: TABLE=COLUMN (may be repeated)")
	f.StringSliceVar(&o.opts.Reference, "reference", nil, "tables without realms, copied whole to every shard")
	f.StringSliceVar(&o.opts.RealmsNeverChange, "realms-never-change", nil, "tables whose rows never change their realm: their replica identity may lack the realm key")
	f.StringSliceVar(&o.opts.Include, "include", nil, "only these tables (schema.table, * as wildcard)")
	f.StringSliceVar(&o.opts.Exclude, "exclude", nil, "not these tables")
	f.IntVar(&o.opts.CopyJobs, "copy-jobs", 0, "tables or chunks copied at the same time (default 2)")
	f.StringVar(&o.chunk, "chunk-size", "", "copy tables with more than this per shard in chunks of about this size, so that a crash costs no more (default 1.07GB)")
	f.BoolVar(&o.opts.FixIdentity, "fix-identity", false, "make replica identities that contain the realm key at the source; taken back by cancel and complete")
	f.StringArrayVar(&o.opts.Accept, "accept", nil, "go on in spite of this finding: CODE:OBJECT (may be repeated)")
	f.BoolVar(&o.opts.NoRunAhead, "no-run-ahead", false, "apply large transactions when they have ended at the source, not while they come; the source then decodes with its own logical_decoding_work_mem, not at most 16 MB")
	f.BoolVar(&o.opts.NoHeartbeat, "no-heartbeat", false, "write nothing to the source while it is idle")
}

// plan checks the flags and connects to the target's installation.
func (o *planOptions) plan(ctx context.Context, a *App) (target, api.PlanRequest, error) {
	a.override = func(f tenant.Finding) string { return fmt.Sprintf("--accept '%s' goes on in spite of it", f.ID()) }
	t, err := a.ConnectDatabase(o.to)
	if err != nil {
		return t, api.PlanRequest{}, err
	}
	from, err := a.secretArgument(ctx, o.from, "REHOME_FROM", "the source (--from)")
	if err != nil {
		return t, api.PlanRequest{}, err
	}
	if o.chunk != "" {
		if o.opts.ChunkBytes, err = output.ParseBytes(o.chunk); err != nil {
			return t, api.PlanRequest{}, usage("bad-chunk-size", "write it as --chunk-size 500MB", "%v", err)
		}
	}
	for _, tk := range o.tables {
		table, column, ok := strings.Cut(tk, "=")
		name, err := tenant.ParseTableName(table)
		if !ok || column == "" || err != nil {
			return t, api.PlanRequest{}, usage("bad-table-key", "write --table-key schema.table=column", "%q is not TABLE=COLUMN", tk)
		}
		if o.opts.TableKeys == nil {
			o.opts.TableKeys = map[string]string{}
		}
		o.opts.TableKeys[name.String()] = column
	}
	for _, acc := range o.opts.Accept {
		if !strings.Contains(acc, ":") {
			return t, api.PlanRequest{}, usage("bad-accept", "copy the name from the finding, for example constraint-without-realm:public.accounts_pkey", "%q is not the name of a finding", acc)
		}
	}
	if o.opts.RealmKey == "" {
		db, err := t.Database(ctx, t.database)
		if err != nil {
			return t, api.PlanRequest{}, err
		}
		o.opts.RealmKey = db.RealmKey
	}
	return t, api.PlanRequest{From: from, To: t.Base() + "/" + t.database, Options: o.opts}, nil
}

func newPreflightCommand(a *App) *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use: "preflight --from SOURCE --to URL", Short: "Check whether a database can be replicated; nothing is changed",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPreflight(cmd.Context(), a, o) },
	}
	o.flags(cmd)
	return cmd
}

func runPreflight(ctx context.Context, a *App, o planOptions) error {
	t, plan, err := o.plan(ctx, a)
	if err != nil {
		return err
	}
	r, err := t.Preflight(ctx, plan)
	if err != nil {
		return err
	}
	r.Findings = list(r.Findings)
	err = a.Print.Answer(r, func() {
		a.Print.Textf("%d tables, about %s rows, %s", r.Tables, output.Count(r.Rows), output.Bytes(float64(r.Bytes)))
		a.printFindings(a.Print, r.Findings)
		if r.OK {
			a.Print.Textf("%s nothing stands in the way", a.Print.Paint(output.Green, "ok:"))
		}
	})
	if err == nil && !r.OK {
		return tenant.Errorf(tenant.KindRefused, "preflight-refused", "follow the remedies and run rehome preflight again", "%s", blockingCount(r.Findings))
	}
	return err
}

func blockingCount(findings []tenant.Finding) string {
	n := 0
	for _, f := range findings {
		if f.Severity == tenant.Blocking && !f.Accepted {
			n++
		}
	}
	if n == 1 {
		return "one finding stands in the way"
	}
	return output.Count(int64(n)) + " findings stand in the way"
}

func newStartReplicationCommand(a *App) *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use: "start-replication --from SOURCE --to URL", Short: "Copy a database to its new place and keep it in step (code needed)",
		Example: "  rehome start-replication --from postgres://me@hosted.example/acme --to https://own.example/acme --realm-key org_id",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runStartReplication(cmd.Context(), a, o) },
	}
	o.flags(cmd)
	o.otp.flags(cmd.Flags())
	return cmd
}

func runStartReplication(ctx context.Context, a *App, o planOptions) error {
	if err := o.otp.check(); err != nil {
		return err
	}
	t, plan, err := o.plan(ctx, a)
	if err != nil {
		return err
	}
	var r api.Replication
	requested, err := a.approve(ctx, t, o.otp, api.ChallengeRequest{Action: "start-replication", Start: &plan},
		func(ctx context.Context, approval api.Approval) error {
			var err error
			r, err = t.StartReplication(ctx, api.StartRequest{PlanRequest: plan, Approval: approval})
			return err
		})
	if err != nil || requested {
		return err
	}
	return a.Print.Answer(r, func() {
		a.Print.Textf("replication %s started: %s to %s", r.ID, r.From, r.To)
		a.Print.Notef("watch it with: rehome replication-progress --watch")
	})
}
