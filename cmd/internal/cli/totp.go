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
	var code string
	enroll := &cobra.Command{
		Use: "enroll EMAIL", Short: "Show the QR code for the app, and confirm with a first code", Args: exactArgs("EMAIL"),
		RunE: func(cmd *cobra.Command, args []string) error { return runEnrol(cmd.Context(), a, args[0]) },
	}
	confirm := &cobra.Command{
		Use: "confirm EMAIL CODE", Short: "Confirm an enrolment with a first code", Args: rangeArgs(1, "EMAIL", "CODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				code = args[1]
			}
			return runConfirmTOTP(cmd.Context(), a, args[0], code)
		},
	}
	confirm.Flags().StringVar(&code, "otp", "", "the code")
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
	if !a.StdinTerminal {
		a.Print.Notef("confirm with: rehome totp confirm %s CODE", email)
		return nil
	}
	for try := 1; ; try++ {
		code, err := a.ask(ctx, "first code of the app: ")
		if errors.Is(err, io.EOF) || (err == nil && code == "") {
			a.Print.Notef("it does not count yet; confirm with: rehome totp confirm %s CODE", email)
			return nil
		}
		if err != nil {
			return err
		}
		err = runConfirmTOTP(ctx, a, email, code)
		if e := tenant.AsError(err); err == nil || e.Kind != tenant.KindUnauthorised || try >= codeTries {
			return err
		}
		a.Print.Notef("%s", err)
	}
}

func runConfirmTOTP(ctx context.Context, a *App, email, code string) error {
	if code == "" {
		return usage("missing-argument", "usage: rehome totp confirm EMAIL CODE", "the code is missing")
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.ConfirmTOTP(ctx, api.TOTPConfirm{Email: email, Code: normaliseCode(code)}); err != nil {
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
