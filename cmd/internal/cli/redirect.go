package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type redirectOptions struct {
	from, to, mode   string
	permanent, force bool
	off, yes         bool
	otp              otpOptions
}

func newRedirectCommand(a *App) *cobra.Command {
	var o redirectOptions
	cmd := &cobra.Command{
		Use: "redirect --from URL --to URL", Short: "Send clients of the old URL to the new one (code needed); --off undoes it",
		Long: "Send ongoing and incoming connections of the old URL to the new one. With --from alone it shows the redirect in force;\n" +
			"with --off it takes it back.",
		Example: "  rehome redirect --from https://hosted.example/acme --to https://own.example/acme\n  rehome redirect --off --from https://hosted.example/acme",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runRedirect(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "the old URL: https://host/NAME")
	f.StringVar(&o.to, "to", "", "the new URL")
	f.StringVar(&o.mode, "mode", "redirect", "redirect, proxy (for clients that do not follow redirects) or refuse")
	f.BoolVar(&o.permanent, "permanent", false, "answer 308, which clients keep, at once; otherwise it is 307 for the first hours")
	f.BoolVar(&o.force, "force", false, "although the old side still accepts writes: they would go to both")
	f.BoolVar(&o.off, "off", false, "take the redirect back")
	f.BoolVarP(&o.yes, "yes", "y", false, "with --off: do not ask")
	o.otp.flags(f)
	return cmd
}

func runRedirect(ctx context.Context, a *App, o redirectOptions) error {
	if err := o.otp.check(); err != nil {
		return err
	}
	switch o.mode {
	case "redirect", "proxy", "refuse":
	default:
		return usage("bad-mode", "write redirect, proxy or refuse", "there is no mode %q", o.mode)
	}
	if o.off && o.to != "" {
		return usage("redirect-flags", "leave --to out", "--off does not go with --to")
	}
	if o.from == "" {
		return usage("missing-flag", "add --from https://host/NAME, the old URL", "--from is missing")
	}
	t, err := a.ConnectDatabase(o.from)
	if err != nil {
		return err
	}
	switch {
	case o.off:
		if err := a.confirm(ctx, o.yes, "Take back the redirect of %s?", t.database); err != nil {
			return err
		}
		if err := t.ClearRedirect(ctx, t.database); err != nil {
			return err
		}
		return a.Print.Answer(done{Done: "redirect-off", Name: t.database}, func() { a.Print.Textf("%s redirects no more", t.database) })
	case o.to == "":
		r, err := t.RedirectOf(ctx, t.database)
		if err != nil {
			return err
		}
		return a.Print.Answer(r, func() { a.redirectText(r) })
	}
	to, err := tenant.ParseDatabaseURL(o.to)
	if err != nil {
		return safeURLError(err, o.to)
	}
	plan := api.RedirectPlan{Database: t.database, To: to.String(), Mode: o.mode, Permanent: o.permanent, Force: o.force}
	var r api.Redirect
	requested, err := a.approve(ctx, t, o.otp, api.ChallengeRequest{Action: "redirect", Redirect: &plan}, func(ctx context.Context, approval api.Approval) error {
		var err error
		r, err = t.SetRedirect(ctx, api.RedirectRequest{RedirectPlan: plan, Approval: approval})
		return err
	})
	if err != nil || requested {
		return err
	}
	return a.Print.Answer(r, func() { a.redirectText(r) })
}

func (a *App) redirectText(r api.Redirect) {
	how := map[string]string{"redirect": "redirects to", "proxy": "is proxied to", "refuse": "refuses clients and names"}[r.Mode]
	if how == "" {
		how = "goes to"
	}
	a.Print.Textf("%s %s %s", r.Database, how, r.To)
	if r.TombstoneUntil != nil {
		a.Print.Textf("until %s", output.When(*r.TombstoneUntil))
	}
}
