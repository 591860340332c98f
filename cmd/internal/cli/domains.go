package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/server/api"
)

type domainsOptions struct{ add, remove []string }

func newDomainsCommand(a *App) *cobra.Command {
	var o domainsOptions
	cmd := &cobra.Command{
		Use: "domains NAME", Short: "Show or change the domains under which a database's clients reach it",
		Long: "Show or change the domains under which the gateway knows a database, besides https://host/NAME and https://NAME.host.\n" +
			"All paths of such a host are the database's. Its DNS must lead to the gateway, and whatever ends TLS there must pass\n" +
			"the Host header on.",
		Example: "  rehome domains acme\n  rehome domains acme --add db.acme.example\n  rehome domains acme --remove db.acme.example",
		Args:    exactArgs("NAME"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runDomains(cmd.Context(), a, args[0], o) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.add, "add", nil, "a domain")
	f.StringSliceVar(&o.remove, "remove", nil, "a domain")
	return cmd
}

func runDomains(ctx context.Context, a *App, name string, o domainsOptions) error {
	t, err := a.ConnectDatabase(name)
	if err != nil {
		return err
	}
	var db api.Database
	for _, domain := range o.remove {
		if db, err = t.RemoveDomain(ctx, t.database, domain); err != nil {
			return err
		}
	}
	for _, domain := range o.add {
		if db, err = t.AddDomain(ctx, t.database, domain); err != nil {
			return err
		}
	}
	if len(o.add)+len(o.remove) == 0 {
		if db, err = t.Database(ctx, t.database); err != nil {
			return err
		}
	}
	return a.Print.Answer(list(db.Domains), func() {
		if len(db.Domains) == 0 {
			a.Print.Notef("%s has no domains of its own; it is reached at %s", db.Name, db.URL)
			return
		}
		a.Print.Textf("%s", strings.Join(db.Domains, "\n"))
	})
}
