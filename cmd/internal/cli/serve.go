package cli

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/server"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/server/supervisor"
)

type serverOptions struct {
	flags       *pflag.FlagSet
	printConfig bool
	logFormat   string
	verbose     bool
}

func newServerCommand(a *App) *cobra.Command {
	var o serverOptions
	cmd := &cobra.Command{
		Use: "server", Short: "Run a server of the installation",
		Long: "Run a server: HTTP API, gateway, replications. Settings come from flags, then the environment, then the file --config.\n" +
			"It brings the control database up to date first. SIGINT or SIGTERM: requests in flight finish, then it stops.",
		Example: "  REHOME_DATABASE_URL=postgres://rehome@localhost/rehome REHOME_SECRET=$(openssl rand -base64 48) rehome server",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.flags = cmd.Flags()
			return runServer(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	config.AddFlags(f)
	f.BoolVar(&o.printConfig, "print-config", false, "print the settings in force, without secrets, and end")
	f.StringVar(&o.logFormat, "log-format", "", "text or json (default: text on a terminal)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	return cmd
}

func runServer(ctx context.Context, a *App, o serverOptions) error {
	src := config.Sources{Flags: o.flags, Environ: func() []string { return a.Environ }}
	if o.printConfig {
		cfg, err := config.Read(src)
		if err != nil {
			return err
		}
		return cfg.Print(a.Stdout)
	}
	cfg, err := config.Load(src)
	if err != nil {
		return err
	}
	switch o.logFormat {
	case "", "text", "json":
	default:
		return usage("bad-log-format", "write text or json", "there is no log format %q", o.logFormat)
	}
	cfg.Version = Version()
	s, err := server.New(ctx, cfg, deps(a.logger(o)))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// logger writes to stderr: for people on a terminal, JSON elsewhere.
func (a *App) logger(o serverOptions) *slog.Logger {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	if a.quiet {
		level = slog.LevelWarn
	}
	return newLogger(a.Stderr, level, o.logFormat == "text" || (o.logFormat == "" && a.StderrTerminal), !a.mayColor() || !a.StderrTerminal)
}

func newLogger(w io.Writer, level slog.Level, text, plain bool) *slog.Logger {
	if text {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: plain}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// deps wires what only the program can: the worker of the replications.
func deps(logger *slog.Logger) server.Deps {
	return server.Deps{Logger: logger, NewWorker: func(p server.Parts) (server.Worker, error) {
		return supervisor.New(supervisor.Config{
			Pool: p.Pool, Seal: p.Seal, Catalogue: p.Catalogue, Log: p.Log, Gateway: p.Gateway,
			Signer: cutover.Signer{Installation: p.Installation.ID, Key: p.Installation.PrivateKey},
			Server: p.Server, Now: p.Now, Logger: p.Logger,
		}), nil
	}}
}

func newMigrateCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "Bring the control database's schema up to date (the server does it by itself)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runMigrate(cmd.Context(), a, cmd.Flags()) },
	}
	config.AddFlags(cmd.Flags())
	hideFlags(cmd, "database-url", "config")
	return cmd
}

// hideFlags leaves out of the help the settings that a command does not use.
func hideFlags(cmd *cobra.Command, shown ...string) {
	keep := map[string]bool{}
	for _, s := range shown {
		keep[s] = true
	}
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { f.Hidden = f.Hidden || !keep[f.Name] })
}

func runMigrate(ctx context.Context, a *App, flags *pflag.FlagSet) error {
	cfg, err := config.Read(config.Sources{Flags: flags, Environ: func() []string { return a.Environ }})
	if err != nil {
		return err
	}
	if cfg.DatabaseURL == "" {
		return usage("missing-database-url", "set REHOME_DATABASE_URL (or DATABASE_URL), for example postgres://rehome@127.0.0.1/rehome", "no control database is named")
	}
	st, err := server.Migrate(ctx, cfg)
	if err != nil {
		return err
	}
	st.Applied = list(st.Applied)
	return a.Print.Answer(st, func() {
		if len(st.Applied) == 0 {
			a.Print.Textf("the control database is up to date (version %d)", st.Version)
			return
		}
		a.Print.Textf("the control database is at version %d; applied %d", st.Version, len(st.Applied))
	})
}
