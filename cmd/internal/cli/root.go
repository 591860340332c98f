package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// Groups of commands in the help.
const (
	groupInstall = "install"
	groupJourney = "journey"
	groupManage  = "manage"
	groupRights  = "rights"
)

// Run runs one command line and returns its exit code.
func Run(ctx context.Context, env Env) int {
	env = env.withDefaults()
	a := &App{Env: env, Print: &output.Printer{Out: env.Stdout, Err: env.Stderr}, lines: &lineReader{r: env.Stdin}}
	root := NewRoot(a)
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !a.ran {
		// Neither flags nor arguments were understood, so what -o says is looked for by hand.
		err = asUsage(err)
		a.Print.JSON = wantsJSON(env.Args)
	}
	return a.report(ctx, err)
}

// NewRoot builds the tree of commands.
func NewRoot(a *App) *cobra.Command {
	root := &cobra.Command{
		Use:   "rehome",
		Short: "Move a tenant database to your own machines while its users keep working",
		Long: "Rehome moves a tenant database from a hosted service to Postgres servers of your own: it copies, keeps in step, compares every row,\n" +
			"switches writes in well under a second, and sends clients to the new place.",
		SilenceErrors: true, SilenceUsage: true,
		Args: noArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.begin()
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("usage", "see "+cmd.CommandPath()+" --help", "%s", redactArgs(err.Error(), a.Args))
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", "text", "how to answer: text or json")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no notes and no progress")
	f.BoolVar(&a.noColor, "no-color", false, "no colours (also NO_COLOR)")
	f.StringVar(&a.url, "url", "", "base URL of the installation (default REHOME_URL, then rehome.json)")
	root.AddGroup(&cobra.Group{ID: groupInstall, Title: "Set up and run:"}, &cobra.Group{ID: groupJourney, Title: "The move:"},
		&cobra.Group{ID: groupManage, Title: "Databases and shards:"}, &cobra.Group{ID: groupRights, Title: "Rights and records:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupInstall, newServerCommand(a), newInitCommand(a), newEmailChannelCommand(a), newMigrateCommand(a), newDoctorCommand(a))
	for _, construct := range a.Commands {
		add(groupInstall, construct(a))
	}
	add(groupJourney, newPreflightCommand(a), newStartReplicationCommand(a), newReplicationsCommand(a), newProgressCommand(a),
		newAskCommand(a, pauseVerb()), newAskCommand(a, resumeVerb()), newAskCommand(a, cancelVerb()), newThrottleCommand(a), newVerifyCommand(a), newCutoverCommand(a),
		newRollbackCommand(a), newCompleteCommand(a), newCertificateCommand(a), newRedirectCommand(a), newStatsCommand(a),
		newDeleteCommand(a), newUndeleteCommand(a))
	add(groupManage, newAddShardCommand(a), newUpdateShardCommand(a), newRemoveShardCommand(a), newShardsCommand(a), newCreateCommand(a),
		newAdoptCommand(a), newDatabasesCommand(a), newStateCommand(a, "start"), newStateCommand(a, "stop"), newRealmsCommand(a), newDomainsCommand(a))
	add(groupRights, newAuthorizeCommand(a), newClientsCommand(a), newRevokeCommand(a), newTOTPCommand(a), newEventsCommand(a),
		newWebhooksCommand(a), newNotificationsCommand(a), newAuditCommand(a))
	root.AddCommand(newVersionCommand(a), newDocsCommand(root, a))
	return root
}

// begin settles what the common flags say, before a command runs.
func (a *App) begin() error {
	switch a.format {
	case "text", "json":
	default:
		return usage("bad-output", "write -o text or -o json", "there is no output format %q", a.format)
	}
	a.Print.JSON, a.Print.Quiet = a.format == "json", a.quiet
	a.Print.Color = a.StdoutTerminal && !a.Print.JSON && a.mayColor()
	a.ran = true
	return nil
}

// mayColor follows https://no-color.org.
func (a *App) mayColor() bool {
	return !a.noColor && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}

func wantsJSON(args []string) bool {
	for i, arg := range args {
		switch {
		case arg == "-ojson", arg == "-o=json", arg == "--output=json":
			return true
		case (arg == "-o" || arg == "--output") && i+1 < len(args) && args[i+1] == "json":
			return true
		}
	}
	return false
}

// asUsage makes cobra's own errors (an unknown command, too many arguments) errors of usage.
func asUsage(err error) error {
	if _, ok := errors.AsType[*tenant.Error](err); ok {
		return err
	}
	message := strings.TrimSpace(err.Error())
	first, rest, _ := strings.Cut(message, "\n")
	hint := "see rehome --help"
	if s := strings.Fields(rest); slices.Contains(s, "this?") {
		hint = "did you mean " + strings.Join(s[slices.Index(s, "this?")+1:], " or ") + "? " + hint
	}
	return usage("usage", hint, "%s", first)
}

// redactArgs keeps a connection string, which cobra quotes in its errors, out of what is printed.
func redactArgs(message string, args []string) string {
	for _, arg := range args {
		_, value, _ := strings.Cut(arg, "=")
		for _, s := range []string{value, arg} {
			if looksLikeDSN(s) && strings.Contains(message, s) {
				message = strings.ReplaceAll(message, s, tenant.DSN(s).String())
			}
		}
	}
	return message
}

// noArgs and exactArgs are cobra's validators with errors that say what is missing, and never repeat an argument: it may
// be a connection string.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() && !looksLikeDSN(args[0]) {
		hint := "see " + cmd.CommandPath() + " --help"
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			hint = "did you mean " + strings.Join(s, " or ") + "? " + hint
		}
		return usage("unknown-command", hint, "there is no command %q", args[0])
	}
	return usage("too-many-arguments", usageLine(cmd), "%s takes no arguments", cmd.CommandPath())
}

func exactArgs(names ...string) cobra.PositionalArgs { return rangeArgs(len(names), names...) }

// rangeArgs wants at least minimum of the named arguments.
func rangeArgs(minimum int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < minimum {
			return usage("missing-argument", usageLine(cmd), "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):minimum], " and "))
		}
		if len(args) > len(names) {
			return usage("too-many-arguments", usageLine(cmd), "%s got %d arguments and takes %d", cmd.CommandPath(), len(args), len(names))
		}
		return nil
	}
}

func usageLine(cmd *cobra.Command) string { return fmt.Sprintf("usage: %s", cmd.UseLine()) }
