package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// codeTries is how often a wrong code may be typed; the server closes the challenge after as many.
const codeTries = 5

// otpOptions are the flags of a command that a person approves.
type otpOptions struct {
	code    string
	id      string
	request bool
	channel string
}

func (o *otpOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.code, "otp", "", "the code that approves exactly this plan")
	f.StringVar(&o.id, "otp-id", "", "which request the code answers (from --request-otp)")
	f.BoolVar(&o.request, "request-otp", false, "only ask for a code, and print the request's id")
	f.StringVar(&o.channel, "otp-channel", "", "where the code comes from: email or totp (default email)")
}

func (o *otpOptions) check() error {
	switch o.channel {
	case "", "email", "totp":
	default:
		return usage("bad-otp-channel", "write --otp-channel email or --otp-channel totp", "there is no channel %q for codes", o.channel)
	}
	if o.request && (o.code != "" || o.id != "") {
		return usage("otp-flags", "first --request-otp alone, then the same command with --otp-id and --otp", "--request-otp does not go with --otp or --otp-id")
	}
	if o.code != "" && o.id == "" && o.channel != "totp" {
		return usage("otp-flags", "add --otp-id from an earlier --request-otp of the same command", "--otp needs --otp-id: it says which request the code answers")
	}
	return nil
}

// approve gets a person's approval of a plan and calls do with it, again while the code is wrong. With --request-otp it
// asks for a code, prints the request and does nothing: requested is true.
func (a *App) approve(ctx context.Context, t target, o otpOptions, req api.ChallengeRequest, do func(context.Context, api.Approval) error) (requested bool, err error) {
	if err := o.check(); err != nil {
		return false, err
	}
	req.Channel = o.channel
	switch {
	case o.request:
		ch, err := t.Challenge(ctx, req)
		if err != nil {
			return false, err
		}
		return true, a.Print.Answer(ch, func() {
			a.tellChallenge(ch, a.Print.Quiet)
			a.Print.Textf("%s", ch.ID)
			a.Print.Notef("run the same command with: --otp-id %s --otp CODE", ch.ID)
		})
	case o.code != "" && o.id != "":
		return false, do(ctx, api.Approval{ID: o.id, Code: normaliseCode(o.code)})
	case o.code != "":
		ch, err := t.Challenge(ctx, req)
		if err != nil {
			return false, err
		}
		return false, do(ctx, api.Approval{ID: ch.ID, Code: normaliseCode(o.code)})
	case !a.StdinTerminal:
		// Nobody is asked for a code that nobody could type.
		return false, tenant.Errorf(tenant.KindUnauthorised, "code-needed",
			"ask with --request-otp, then run the same command with --otp-id ID --otp CODE; or use --otp-channel totp --otp CODE", "this needs a person's code, and there is no terminal to ask for it")
	}
	id, app := o.id, o.channel == "totp"
	if id == "" {
		ch, err := t.Challenge(ctx, req)
		if err != nil {
			return false, err
		}
		a.tellChallenge(ch, false)
		id = ch.ID
	}
	return false, a.askCode(ctx, id, app, do)
}

// askCode asks until a code is right. An app shows the same code for 30 s, and each counts once: then the next one will do.
func (a *App) askCode(ctx context.Context, id string, app bool, do func(context.Context, api.Approval) error) error {
	for try := 1; ; try++ {
		code, err := a.ask(ctx, "code: ")
		if errors.Is(err, io.EOF) {
			return tenant.Errorf(tenant.KindUnauthorised, "code-needed", "run the same command with --otp-id "+id+" --otp CODE", "no code was given")
		}
		if err != nil {
			return err
		}
		if code == "" {
			try--
			continue
		}
		err = do(ctx, api.Approval{ID: id, Code: normaliseCode(code)})
		var e *tenant.Error
		if !errors.As(err, &e) || try >= codeTries || (e.Code != "wrong-code" && (!app || e.Code != "code-used")) {
			return err
		}
		_, _ = fmt.Fprintln(a.Stderr, output.Clean(e.Message))
	}
}

// tellChallenge says what will happen and where the code is. Who is about to type the code reads it also with -q.
func (a *App) tellChallenge(ch api.Challenge, quiet bool) {
	p := output.Printer{Err: a.Stderr, Quiet: quiet}
	p.Notef("%s", strings.TrimSpace(ch.Plan))
	left := ch.ExpiresAt.Sub(a.Now()).Round(time.Minute)
	valid := ""
	if left > 0 {
		valid = "; it is valid for " + output.Duration(left)
	}
	if ch.Channel == "totp" {
		p.Notef("Approve it with the code of the authenticator app of %s%s.", ch.SentTo, valid)
		return
	}
	p.Notef("A code for exactly this was sent to %s%s.", ch.SentTo, valid)
}

// normaliseCode drops the blanks and dashes that people and mail programs put into codes.
func normaliseCode(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, s)
}
