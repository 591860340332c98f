package cli

import (
	"context"
	"errors"
	"io"
	"net/url"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func newTOTPCommand(a *App) *cobra.Command {
	parent := &cobra.Command{
		Use: "totp", Short: "Let codes come from an authenticator app instead of e-mail", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var code, mailCode string
	enroll := &cobra.Command{
		Use: "enroll EMAIL", Short: "Show the QR code for the app, and confirm with the mailed code and a first one of the app", Args: exactArgs("EMAIL"),
		Long: "Show the QR code for the app. A code is mailed to the address as well: the app counts once both that code and a first one of the\n" +
			"app are given, so that nobody who merely holds a key becomes an approver.",
		RunE: func(cmd *cobra.Command, args []string) error { return runEnrol(cmd.Context(), a, args[0]) },
	}
	confirm := &cobra.Command{
		Use: "confirm EMAIL CODE --mail-code CODE", Short: "Confirm an enrolment with the mailed code and a first code of the app", Args: rangeArgs(1, "EMAIL", "CODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				code = args[1]
			}
			return runConfirmTOTP(cmd.Context(), a, args[0], mailCode, code)
		},
	}
	confirm.Flags().StringVar(&code, "otp", "", "the code of the app")
	confirm.Flags().StringVar(&mailCode, "mail-code", "", "the code that was mailed to the address")
	var yes bool
	remove := &cobra.Command{
		Use: "remove EMAIL", Short: "Forget the app of an address", Args: exactArgs("EMAIL"),
		RunE: func(cmd *cobra.Command, args []string) error { return runRemoveTOTP(cmd.Context(), a, args[0], yes) },
	}
	remove.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	parent.AddCommand(enroll, confirm, remove)
	return parent
}

func runEnrol(ctx context.Context, a *App, email string) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	e, err := c.EnrolTOTP(ctx, email)
	if err != nil {
		return err
	}
	if a.Print.JSON {
		return a.Print.Document(e)
	}
	// Drawn with half blocks: black on white also where the terminal is dark, so that phones read it.
	qrterminal.GenerateHalfBlock(e.URI, qrterminal.M, a.Stdout)
	if u, err := url.Parse(e.URI); err == nil && u.Query().Get("secret") != "" {
		a.Print.Textf("Scan it, or type this key into the app: %s", u.Query().Get("secret"))
	}
	a.Print.Notef("A code that lets it count was sent to %s.", e.SentTo)
	how := "rehome totp confirm " + email + " CODE --mail-code CODE"
	if !a.StdinTerminal {
		a.Print.Notef("confirm with: %s", how)
		return nil
	}
	mailCode := ""
	for try := 1; ; try++ {
		var code string
		if mailCode == "" {
			mailCode, err = a.ask(ctx, "code of the mail: ")
		}
		if err == nil && mailCode != "" {
			code, err = a.ask(ctx, "first code of the app: ")
		}
		if errors.Is(err, io.EOF) || (err == nil && code == "") {
			a.Print.Notef("it does not count yet; confirm with: %s", how)
			return nil
		}
		if err != nil {
			return err
		}
		err = runConfirmTOTP(ctx, a, email, mailCode, code)
		failed := tenant.AsError(err)
		if err == nil || failed.Kind != tenant.KindUnauthorised || failed.Code == "too-many-tries" || try >= codeTries {
			return err
		}
		a.Print.Notef("%s", err)
		if failed.Code == "wrong-mail-code" {
			mailCode = ""
		}
		err = nil
	}
}

func runConfirmTOTP(ctx context.Context, a *App, email, mailCode, code string) error {
	const how = "usage: rehome totp confirm EMAIL CODE --mail-code CODE"
	if code == "" {
		return usage("missing-argument", how, "the code of the app is missing")
	}
	if mailCode == "" {
		return usage("missing-flag", how, "the code that was mailed to the address is missing")
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.ConfirmTOTP(ctx, api.TOTPConfirm{Email: email, MailCode: normaliseCode(mailCode), Code: normaliseCode(code)}); err != nil {
		return err
	}
	return a.Print.Answer(done{Done: "totp-confirmed", Name: email}, func() { a.Print.Textf("codes of the app count for %s from now on: --otp-channel totp", email) })
}

func runRemoveTOTP(ctx context.Context, a *App, email string, yes bool) error {
	if err := a.confirm(ctx, yes, "Forget the authenticator app of %s?", email); err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.RemoveTOTP(ctx, email); err != nil {
		return err
	}
	return a.Print.Answer(done{Done: "totp-removed", Name: email}, func() { a.Print.Textf("the app of %s is forgotten", email) })
}
