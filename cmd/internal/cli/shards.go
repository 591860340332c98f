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

type shardOptions struct {
	name, dsn string
	weight    int
	zone      string
	accepting bool
	changed   func(flag string) bool
	yes       bool
}

func (o *shardOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.weight, "weight", 100, "share of new realms, relative to the other shards")
	f.StringVar(&o.zone, "zone", "", "where it stands, for people and for placement")
	f.BoolVar(&o.accepting, "accepting", true, "takes realms of new databases")
	o.changed = f.Changed
}

func newAddShardCommand(a *App) *cobra.Command {
	var o shardOptions
	cmd := &cobra.Command{
		Use: "add-shard NAME [DSN]", Short: "Add a Postgres server that will hold realms",
		Long: "Add a Postgres server that will hold realms. DSN is a connection string to a maintenance database of it, with a role that may create\n" +
			"databases. Write - to read it from stdin, or leave it out and set REHOME_SHARD_DSN, so that it stays out of the shell's history.",
		Example: "  rehome add-shard eu-1 postgres://admin@10.0.0.7/postgres\n  REHOME_SHARD_DSN=postgres://… rehome add-shard eu-2 --weight 200",
		Args:    rangeArgs(1, "NAME", "DSN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			if len(args) > 1 {
				o.dsn = args[1]
			}
			return runAddShard(cmd.Context(), a, o)
		},
	}
	o.flags(cmd)
	return cmd
}

func runAddShard(ctx context.Context, a *App, o shardOptions) error {
	if err := tenant.CheckShardName(o.name); err != nil {
		return err
	}
	dsn, err := a.secretArgument(ctx, o.dsn, "REHOME_SHARD_DSN", "the connection string of the shard")
	if err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	s, err := c.AddShard(ctx, api.ShardRequest{Name: o.name, DSN: dsn, Weight: o.weight, Zone: o.zone, Accepting: &o.accepting})
	if err != nil {
		return err
	}
	return a.Print.Answer(s, func() { a.Print.Textf("shard %s added: %s, Postgres %s", s.Name, s.Address, version(s.Version)) })
}

// secretArgument is a connection string from the command line, from stdin ("-") or from the environment (left out).
func (a *App) secretArgument(ctx context.Context, arg, envName, what string) (string, error) {
	switch arg {
	case "":
		if v := a.Getenv(envName); v != "" {
			return v, nil
		}
		return "", usage("missing-argument", "give it as an argument, set "+envName+", or write - and give it on stdin", "%s is missing", what)
	case "-":
		question := ""
		if a.StdinTerminal {
			question = what + ": "
		}
		text, err := a.ask(ctx, question)
		if err != nil && ctx.Err() != nil {
			return "", err
		}
		if text == "" {
			return "", usage("missing-argument", "write it as the first line of stdin", "%s is missing on stdin", what)
		}
		return text, nil
	}
	return arg, nil
}

func newUpdateShardCommand(a *App) *cobra.Command {
	var o shardOptions
	cmd := &cobra.Command{
		Use: "update-shard NAME", Short: "Change a shard's weight, zone, connection or whether it takes new realms",
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runUpdateShard(cmd.Context(), a, o)
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.dsn, "dsn", "", "new connection string; - reads it from stdin")
	return cmd
}

func runUpdateShard(ctx context.Context, a *App, o shardOptions) error {
	var u api.ShardUpdate
	if o.changed("dsn") {
		dsn, err := a.secretArgument(ctx, o.dsn, "REHOME_SHARD_DSN", "the connection string of the shard")
		if err != nil {
			return err
		}
		u.DSN = &dsn
	}
	if o.changed("weight") {
		u.Weight = &o.weight
	}
	if o.changed("zone") {
		u.Zone = &o.zone
	}
	if o.changed("accepting") {
		u.Accepting = &o.accepting
	}
	if u == (api.ShardUpdate{}) {
		return usage("nothing-to-change", "say what to change: --weight, --zone, --accepting or --dsn", "nothing to change on shard %s", o.name)
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	s, err := c.UpdateShard(ctx, o.name, u)
	if err != nil {
		return err
	}
	return a.Print.Answer(s, func() {
		a.Print.Textf("shard %s: weight %d, zone %q, accepting %t", s.Name, s.Weight, s.Zone, s.Accepting)
	})
}

func newRemoveShardCommand(a *App) *cobra.Command {
	var o shardOptions
	cmd := &cobra.Command{
		Use: "remove-shard NAME", Short: "Forget a shard that holds no realms",
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runRemoveShard(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return cmd
}

func runRemoveShard(ctx context.Context, a *App, o shardOptions) error {
	if err := a.confirm(ctx, o.yes, "Remove shard %s?", o.name); err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.RemoveShard(ctx, o.name); err != nil {
		return err
	}
	return a.Print.Answer(done{Done: "removed", Name: o.name}, func() { a.Print.Textf("shard %s removed", o.name) })
}

// done is the JSON answer of commands whose request has no answer of its own.
type done struct {
	Done string `json:"done"`
	Name string `json:"name"`
}

func newShardsCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "shards", Short: "List the shards", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runShards(cmd.Context(), a) },
	}
}

func runShards(ctx context.Context, a *App) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	shards, err := c.Shards(ctx)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(shards), func() {
		if len(shards) == 0 {
			a.Print.Notef("no shards yet; add one with rehome add-shard NAME DSN")
			return
		}
		rows := make([][]string, len(shards))
		for i, s := range shards {
			state := "ok"
			if !s.Reachable {
				state = a.Print.Paint(output.Red, "unreachable")
				if s.Error != "" {
					state += ": " + s.Error
				}
			}
			size := "-"
			if s.Bytes >= 0 {
				size = output.Bytes(float64(s.Bytes))
			}
			rows[i] = []string{s.Name, s.Address, version(s.Version), strconv.Itoa(s.Weight), s.Zone, yesNo(s.Accepting), strconv.Itoa(s.Buckets), size, strings.Join(s.Databases, " "), state}
		}
		a.Print.Table([]string{"shard", "address", "postgres", ">weight", "zone", "accepting", ">buckets", ">size", "databases", "state"}, rows)
	})
}

// version writes server_version_num as people do: 150020 is 15.20.
func version(num int) string {
	if num <= 0 {
		return "?"
	}
	return strconv.Itoa(num/10000) + "." + strconv.Itoa(num%10000)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// list makes an empty list print as [] and not as null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
