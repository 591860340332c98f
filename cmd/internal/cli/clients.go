package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type authorizeOptions struct {
	api.ClientRequest
	expires time.Duration
	save    bool
}

func newAuthorizeCommand(a *App) *cobra.Command {
	var o authorizeOptions
	cmd := &cobra.Command{
		Use: "authorize EMAIL", Short: "Make an API client for a person; its secret is shown once",
		Args: exactArgs("EMAIL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Email = args[0]
			return runAuthorize(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Scopes, "scopes", nil, "what it may do: admin, operate, read (default operate)")
	f.StringSliceVar(&o.Databases, "databases", nil, "with these databases only (default all)")
	f.DurationVar(&o.expires, "expires", 0, "ends by itself after this time, for example 720h")
	f.BoolVar(&o.save, "save", false, "write it into rehome.key here instead of showing the secret")
	return cmd
}

func runAuthorize(ctx context.Context, a *App, o authorizeOptions) error {
	if o.expires > 0 {
		at := a.Now().Add(o.expires)
		o.ExpiresAt = &at
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	made, err := c.Authorize(ctx, o.ClientRequest)
	if err != nil {
		return err
	}
	if o.save {
		path, err := keyfile.WriteKey(a.Dir, c.Base(), keyfile.Key{ClientID: made.ID, ClientSecret: tenant.Secret(made.Secret)})
		if err != nil {
			return err
		}
		return a.Print.Answer(made.Client, func() { a.Print.Textf("client %s for %s written to %s", made.ID, made.Email, path) })
	}
	return a.Print.Answer(made, func() {
		a.Print.Table([]string{"client", "secret", "email", "scopes"}, [][]string{{made.ID, made.Secret, made.Email, strings.Join(made.Scopes, " ")}})
		a.Print.Notef("the secret is not shown again; put both into rehome.key under %q", keyfile.Normalise(c.Base()))
	})
}

func newClientsCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "clients", Short: "List the API clients", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runClients(cmd.Context(), a) },
	}
}

func runClients(ctx context.Context, a *App) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	clients, err := c.Clients(ctx)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(clients), func() {
		rows := make([][]string, len(clients))
		for i, k := range clients {
			state := "active"
			switch {
			case k.RevokedAt != nil:
				state = "revoked " + output.When(*k.RevokedAt)
			case k.ExpiresAt != nil && k.ExpiresAt.Before(a.Now()):
				state = "expired"
			case k.ExpiresAt != nil:
				state = "until " + output.When(*k.ExpiresAt)
			}
			dbs := strings.Join(k.Databases, " ")
			if dbs == "" {
				dbs = "all"
			}
			rows[i] = []string{k.ID, k.Email, strings.Join(k.Scopes, " "), dbs, state, output.Ago(k.LastUsedAt, a.Now())}
		}
		a.Print.Table([]string{"client", "email", "scopes", "databases", "state", "last used"}, rows)
	})
}

func newRevokeCommand(a *App) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "End an API client", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error { return runRevoke(cmd.Context(), a, args[0], yes) },
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func runRevoke(ctx context.Context, a *App, id string, yes bool) error {
	if err := a.confirm(ctx, yes, "Revoke client %s?", id); err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.Revoke(ctx, id); err != nil {
		return err
	}
	return a.Print.Answer(done{Done: "revoked", Name: id}, func() { a.Print.Textf("client %s revoked", id) })
}
