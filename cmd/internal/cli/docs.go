package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Version is what this binary was built from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

func newVersionCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
			}{Version()}
			return a.Print.Answer(v, func() { a.Print.Textf("rehome %s", v.Version) })
		},
	}
}

// newDocsCommand writes the manual; it is for packagers and hidden from the help.
func newDocsCommand(root *cobra.Command, a *App) *cobra.Command {
	parent := &cobra.Command{Use: "docs", Hidden: true, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	parent.AddCommand(&cobra.Command{
		Use: "man DIR", Short: "Write the man pages into a folder", Args: exactArgs("DIR"),
		RunE: func(_ *cobra.Command, args []string) error { return runMan(root, a, args[0]) },
	})
	return parent
}

func runMan(root *cobra.Command, a *App, dir string) error {
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(a.Dir, dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // man pages are for everybody
		return fmt.Errorf("make the folder: %w", err)
	}
	root.DisableAutoGenTag = true // no line about how the page was made
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "REHOME", Section: "1", Source: "rehome " + Version()}, dir); err != nil {
		return fmt.Errorf("write the man pages: %w", err)
	}
	a.Print.Notef("man pages written to %s", dir)
	return nil
}
