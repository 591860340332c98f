package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func newCreateCommand(a *App) *cobra.Command {
	var o api.DatabaseRequest
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a logical database, spread over the shards",
		Example: "  rehome create acme --realm-key org_id --owner owner@acme.example",
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCreate(cmd.Context(), a, args[0], o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Shards, "shards", nil, "on these shards only (default: all that accept)")
	f.StringVar(&o.RealmKey, "realm-key", "", "column that names a row's realm (default realm_id)")
	f.StringVar(&o.Owner, "owner", "", "e-mail address that codes go to")
	f.StringVar(&o.Upstream, "upstream", "", "URL of the application behind the gateway")
	f.StringVar(&o.SourceUpstream, "source-upstream", "", "URL of the application that works on the source: clients go there until the cutover (default: --upstream)")
	return cmd
}

func runCreate(ctx context.Context, a *App, name string, o api.DatabaseRequest) error {
	t, err := a.ConnectDatabase(name)
	if err != nil {
		return err
	}
	o.Name = t.database
	db, err := t.CreateDatabase(ctx, o)
	if err != nil {
		return err
	}
	return a.Print.Answer(db, func() {
		a.Print.Textf("database %s created on %s", db.Name, strings.Join(db.Shards, ", "))
		a.Print.Textf("%s", db.URL)
	})
}

func newAdoptCommand(a *App) *cobra.Command {
	var o api.AdoptRequest
	cmd := &cobra.Command{
		Use: "adopt NAME [DSN]", Short: "Put an existing Postgres database under management (the hosted side)",
		Long: "Put an existing Postgres database under management. Write - for DSN to read it from stdin, or leave it out and set REHOME_ADOPT_DSN.",
		Args: rangeArgs(1, "NAME", "DSN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			if len(args) > 1 {
				o.DSN = args[1]
			}
			return runAdopt(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Owner, "owner", "", "e-mail address that codes go to")
	f.StringVar(&o.Upstream, "upstream", "", "URL of the application behind the gateway")
	return cmd
}

func runAdopt(ctx context.Context, a *App, o api.AdoptRequest) error {
	t, err := a.ConnectDatabase(o.Name)
	if err != nil {
		return err
	}
	o.Name = t.database
	if o.DSN, err = a.secretArgument(ctx, o.DSN, "REHOME_ADOPT_DSN", "the connection string of the database"); err != nil {
		return err
	}
	db, err := t.AdoptDatabase(ctx, o)
	if err != nil {
		return err
	}
	return a.Print.Answer(db, func() {
		a.Print.Textf("database %s is under management, %s", db.Name, output.Bytes(float64(db.Bytes)))
		a.Print.Textf("%s", db.URL)
	})
}

func newDatabasesCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "databases", Short: "List the databases", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDatabases(cmd.Context(), a) },
	}
}

func runDatabases(ctx context.Context, a *App) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	dbs, err := c.Databases(ctx)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(dbs), func() {
		if len(dbs) == 0 {
			a.Print.Notef("no databases yet; make one with rehome create NAME")
			return
		}
		rows := make([][]string, len(dbs))
		for i, d := range dbs {
			state := d.State
			if d.PurgeAfter != nil && d.State == "deleted" {
				state += ", data until " + output.When(*d.PurgeAfter)
			}
			size := "-"
			if d.Bytes >= 0 {
				size = output.Bytes(float64(d.Bytes))
			}
			rows[i] = []string{d.Name, d.URL, d.Kind, state, d.Owner, d.RealmKey, strings.Join(d.Shards, " "), size, d.Replication, d.RedirectTo}
		}
		a.Print.Table([]string{"database", "url", "kind", "state", "owner", "realm key", "shards", ">size", "replication", "redirects to"}, rows)
	})
}

// newStateCommand makes start and stop.
func newStateCommand(a *App, verb string) *cobra.Command {
	state, said, short := "active", "started", "Let a stopped database answer its clients again"
	if verb == "stop" {
		state, said, short = "stopped", "stopped", "Let a database refuse its clients; its data stays"
	}
	var yes bool
	cmd := &cobra.Command{
		Use: verb + " NAME", Short: short, Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(cmd.Context(), yes || verb == "start", "Stop %s? Its clients will be refused.", args[0]); err != nil {
				return err
			}
			return runState(cmd.Context(), a, args[0], state, said)
		},
	}
	if verb == "stop" {
		cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	}
	return cmd
}

func runState(ctx context.Context, a *App, name, state, said string) error {
	t, err := a.ConnectDatabase(name)
	if err != nil {
		return err
	}
	db, err := t.UpdateDatabase(ctx, t.database, api.DatabaseUpdate{State: &state})
	if err != nil {
		return err
	}
	return a.Print.Answer(db, func() { a.Print.Textf("database %s %s", db.Name, said) })
}

type realmsOptions struct{ db, shard, sort string }

func newRealmsCommand(a *App) *cobra.Command {
	var o realmsOptions
	cmd := &cobra.Command{
		Use: "realms", Short: "List a database's realms, with their shards and sizes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRealms(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.db, "db", "", "the database, by name or URL (default: the only one, or rehome.json's)")
	f.StringVar(&o.shard, "shard", "", "on this shard only")
	f.StringVar(&o.sort, "sort", "", "by what: size or name")
	return cmd
}

func runRealms(ctx context.Context, a *App, o realmsOptions) error {
	t, err := a.oneDatabase(ctx, o.db)
	if err != nil {
		return err
	}
	realms, err := t.Realms(ctx, t.database, o.shard, o.sort)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(realms), func() {
		rows := make([][]string, len(realms))
		for i, r := range realms {
			pinned := ""
			if r.Pinned {
				pinned = "pinned"
			}
			rows[i] = []string{r.Realm, strconv.Itoa(r.Bucket), r.Shard, output.Count(r.Rows), pinned}
		}
		a.Print.Table([]string{"realm", ">bucket", "shard", ">rows", ""}, rows)
	})
}

// oneDatabase is the database that was named, that rehome.json names, or the only one that there is.
func (a *App) oneDatabase(ctx context.Context, nameOrURL string) (target, error) {
	t, err := a.ConnectDatabase(nameOrURL)
	if err == nil || nameOrURL != "" || tenant.AsError(err).Code != "no-database" {
		return t, err
	}
	c, cerr := a.Connect()
	if cerr != nil {
		return target{}, cerr
	}
	dbs, lerr := c.Databases(ctx)
	if lerr != nil {
		return target{}, lerr
	}
	if len(dbs) == 1 {
		return target{Client: c, database: dbs[0].Name}, nil
	}
	return target{}, err
}
