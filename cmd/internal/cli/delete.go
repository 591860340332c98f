package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type deleteOptions struct {
	url         string
	force       []string
	certificate string
	key         string
	confirm     string
	otp         otpOptions
}

func newDeleteCommand(a *App) *cobra.Command {
	var o deleteOptions
	cmd := &cobra.Command{
		Use: "delete-db URL", Short: "Delete a database in two steps: a code, then the confirmation of a second e-mail",
		Long: "Delete a database. First a code approves the plan; then a second e-mail brings a link and another code, and only that deletes.\n" +
			"The data stays for a grace period (see undelete), and the old URL redirects for months. Without a terminal: run it with --otp, and then\n" +
			"again with --confirm CODE.\n" +
			"It is refused while clients are connected, without a certificate, without a redirect, or while the way back is open; --force names\n" +
			"what is overridden.",
		Example: "  rehome delete-db https://hosted.example/acme --certificate acme-certificate.json",
		Args:    exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.url = args[0]
			if cmd.Flags().Changed("confirm") && o.confirm == "" {
				return usage("missing-code", "write --confirm CODE, as the confirmation e-mail shows it", "--confirm is empty")
			}
			return runDelete(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.force, "force", nil, "go on in spite of: connections, certificate, redirect, way-back")
	f.StringVar(&o.certificate, "certificate", "", "file with the certificate of the cutover (rehome certificate show -o json)")
	f.StringVar(&o.key, "certificate-key", "", "the key that the certificate must be signed with, or its fingerprint (rehome certificate key, at the new side)")
	f.StringVar(&o.confirm, "confirm", "", "the code of the confirmation e-mail")
	f.BoolP("yes", "y", false, "accepted for scripts; the code is the confirmation")
	o.otp.flags(f)
	return cmd
}

func runDelete(ctx context.Context, a *App, o deleteOptions) error {
	if err := o.otp.check(); err != nil {
		return err
	}
	for _, f := range o.force {
		if !slices.Contains([]string{"connections", "certificate", "redirect", "way-back"}, f) {
			return usage("bad-force", "write connections, certificate, redirect or way-back", "there is nothing called %q to override", f)
		}
	}
	a.override = func(f tenant.Finding) string { return "--force " + f.Code + " goes on in spite of it" }
	t, err := a.ConnectDatabase(o.url)
	if err != nil {
		return err
	}
	if o.confirm != "" {
		return a.confirmDelete(ctx, t, o.confirm)
	}
	plan := api.DeletePlan{Database: t.database, Force: o.force, CertificateKey: strings.TrimSpace(o.key)}
	if plan.Certificate, err = a.readCertificate(o.certificate); err != nil {
		return err
	}
	var st api.DeleteStatus
	requested, err := a.approve(ctx, t, o.otp, api.ChallengeRequest{Action: "delete-db", Delete: &plan}, func(ctx context.Context, approval api.Approval) error {
		var err error
		st, err = t.DeleteDatabase(ctx, api.DeleteRequest{DeletePlan: plan, Approval: approval})
		return err
	})
	if err != nil || requested {
		return err
	}
	if st.State != "deleting" || !a.StdinTerminal {
		return a.Print.Answer(st, func() { a.deleteText(st) })
	}
	a.deleteNote(st)
	for try := 1; ; try++ {
		code, err := a.ask(ctx, "confirmation code (or open the link, and leave this empty): ")
		if err != nil && !errors.Is(err, io.EOF) {
			return interrupted(ctx, err, "nothing is deleted yet; confirm with the link, or with --confirm CODE")
		}
		if code == "" {
			return a.Print.Answer(st, func() {})
		}
		err = a.confirmDelete(ctx, t, code)
		if e := tenant.AsError(err); err == nil || e.Code != "wrong-code" || try >= codeTries {
			return err
		}
		a.Print.Notef("%s", err)
	}
}

func (a *App) confirmDelete(ctx context.Context, t target, code string) error {
	st, err := t.ConfirmDelete(ctx, t.database, normaliseCode(code))
	if err != nil {
		return err
	}
	return a.Print.Answer(st, func() { a.deleteText(st) })
}

func (a *App) deleteNote(st api.DeleteStatus) {
	a.Print.Notef("A confirmation was sent to %s. Nothing is deleted before its link or code is used.", st.SentTo)
	if st.ConfirmBefore != nil {
		a.Print.Notef("It is valid until %s.", output.When(*st.ConfirmBefore))
	}
}

func (a *App) deleteText(st api.DeleteStatus) {
	if st.State == "deleting" {
		a.Print.Textf("%s waits for the confirmation that was sent to %s", st.Database, st.SentTo)
		a.Print.Notef("confirm with the link, or with: rehome delete-db URL --confirm CODE")
		return
	}
	a.Print.Textf("%s is %s", st.Database, st.State)
	if st.PurgeAfter != nil {
		a.Print.Textf("its data stays until %s; until then: rehome undelete URL", output.When(*st.PurgeAfter))
	}
	if st.TombstoneUntil != nil {
		a.Print.Textf("its URL redirects until %s", output.When(*st.TombstoneUntil))
	}
}

func (a *App) readCertificate(path string) (*tenant.Certificate, error) {
	if path == "" {
		return nil, nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.Dir, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &tenant.Error{Kind: tenant.KindInvalid, Code: "no-certificate-file", Message: "the certificate cannot be read", Hint: "rehome certificate show -o json > FILE makes one", Err: err}
	}
	var c tenant.Certificate
	if err := json.Unmarshal(b, &c); err != nil || c.Signature == "" {
		return nil, usage("bad-certificate-file", "rehome certificate show -o json > FILE makes one", "%s holds no certificate", filepath.Base(path))
	}
	return &c, nil
}

func newUndeleteCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "undelete URL", Short: "Take a deletion back while the data is still there", Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return runUndelete(cmd.Context(), a, args[0]) },
	}
}

func runUndelete(ctx context.Context, a *App, url string) error {
	t, err := a.ConnectDatabase(url)
	if err != nil {
		return err
	}
	db, err := t.Undelete(ctx, t.database)
	if err != nil {
		return err
	}
	return a.Print.Answer(db, func() { a.Print.Textf("%s is %s again", db.Name, db.State) })
}
