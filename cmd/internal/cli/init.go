package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/server"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

type initOptions struct {
	email string
	flags *pflag.FlagSet
}

func newInitCommand(a *App) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use: "init", Short: "Set an installation up: control schema, keys, first API client",
		Long: "Set an installation up. It works on the control database itself, so no server need run: it makes the schema, the installation's keys and\n" +
			"the first API client, and writes rehome.json and rehome.key (0600) here. It may be run again and then changes nothing but the address.",
		Example: "  export REHOME_DATABASE_URL=postgres://… REHOME_SECRET=$(openssl rand -base64 48) REHOME_URL=https://own.example\n  rehome init --email me@own.example",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.flags = cmd.Flags()
			return runInit(cmd.Context(), a, o)
		},
	}
	config.AddFlags(cmd.Flags())
	hideFlags(cmd, "database-url", "url", "config")
	cmd.Flags().StringVar(&o.email, "email", "", "e-mail address that codes go to (needed the first time)")
	return cmd
}

func runInit(ctx context.Context, a *App, o initOptions) error {
	cfg, err := config.Load(config.Sources{Flags: o.flags, Environ: func() []string { return a.Environ }})
	if err != nil {
		return err
	}
	if o.email == "" && a.StdinTerminal {
		if o.email, err = a.ask(ctx, "e-mail address that codes go to: "); err != nil && ctx.Err() != nil {
			return err
		}
	}
	cfg.Version = Version()
	made, err := server.Init(ctx, cfg, server.InitRequest{AdminEmail: o.email})
	if err != nil {
		return err
	}
	ans := initAnswer{URL: keyfile.Normalise(cfg.URL), Installation: made.Installation.ID, Created: made.Created}
	if ans.Config, err = keyfile.WriteConfig(a.Dir, keyfile.Config{ServiceURL: ans.URL}); err != nil {
		return err
	}
	if made.Client != nil {
		ans.Client = &made.Client.Client
		ans.Key, err = keyfile.WriteKey(a.Dir, ans.URL, keyfile.Key{ClientID: made.Client.ID, ClientSecret: tenant.Secret(made.Client.Secret)})
		if err != nil {
			return &tenant.Error{
				Kind: tenant.KindInternal, Code: "key-not-written", Err: err, Message: "the first client was made, but its secret could not be kept",
				Hint: "with REHOME_SECRET and REHOME_URL set, and the server running: rehome authorize EMAIL --scopes admin --save",
			}
		}
	}
	return a.Print.Answer(ans, func() { a.initText(ans) })
}

type initAnswer struct {
	URL          string      `json:"url"`
	Installation string      `json:"installation"`
	Created      bool        `json:"created"`
	Client       *api.Client `json:"client,omitempty"`
	Config       string      `json:"config_file"`
	Key          string      `json:"key_file,omitempty"`
}

func (a *App) initText(ans initAnswer) {
	a.Print.Textf("installation %s at %s is set up", ans.Installation, ans.URL)
	if ans.Client == nil {
		a.Print.Notef("it has API clients already; rehome authorize EMAIL --save makes another one")
		return
	}
	a.Print.Textf("client %s for %s written to %s", ans.Client.ID, ans.Client.Email, relative(a.Dir, ans.Key))
	a.Print.Notef("keep %s out of version control; start the server with: rehome server", keyfile.KeyName)
}

// relative shortens a path for people.
func relative(dir, path string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		if rel, err := filepath.Rel(abs, path); err == nil && len(rel) < len(path) {
			return rel
		}
	}
	return path
}

type channelOptions struct{ url, testTo string }

func newEmailChannelCommand(a *App) *cobra.Command {
	var o channelOptions
	cmd := &cobra.Command{
		Use: "init-email-channel URL", Short: "Set how codes reach people, and send a test",
		Long: "Set how codes reach people: smtp://user:password@host:587, smtps://…, https://… (a webhook, signed), file:///dir (one .eml a message)\n" +
			"or log:. Write - to read the URL from stdin, or leave it out and set REHOME_EMAIL_URL, so that a password stays out of the shell's history.",
		Args: rangeArgs(0, "URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.url = args[0]
			}
			return runEmailChannel(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.testTo, "test-to", "", "send a test message to this address (default: the installation's first person)")
	return cmd
}

func runEmailChannel(ctx context.Context, a *App, o channelOptions) error {
	url, err := a.secretArgument(ctx, o.url, "REHOME_EMAIL_URL", "the channel's URL")
	if err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if o.testTo == "" {
		inst, err := c.Installation(ctx)
		if err != nil {
			return err
		}
		o.testTo = inst.AdminEmail
	}
	ch, err := c.SetEmailChannel(ctx, api.EmailChannelRequest{URL: url, TestTo: o.testTo})
	if err != nil {
		return err
	}
	return a.Print.Answer(ch, func() {
		a.Print.Textf("codes go out by %s", ch.Channel)
		if ch.TestedTo != "" {
			a.Print.Textf("a test message was sent to %s", ch.TestedTo)
		}
		if ch.WebhookSecret != "" {
			a.Print.Textf("the webhook is signed (Standard Webhooks) with: %s", ch.WebhookSecret)
			a.Print.Notef("the secret is not shown again")
		}
	})
}
