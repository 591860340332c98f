package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func newDoctorCommand(a *App) *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Compare the installation's records with what is there, and propose repairs",
		Long: "Compare the records of the installation with what is there: slots, publications, gates and fences at the sources, databases,\n" +
			"positions and placements at the shards, routes, leases, events. Nothing is changed without --fix, and with it only what needs no\n" +
			"decision. Exit code 3 while anything is found.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, fix) },
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "perform the repairs that are marked so, then look again")
	return cmd
}

func runDoctor(ctx context.Context, a *App, fix bool) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	examine := c.Examine
	if fix {
		examine = c.Repair
	}
	r, err := examine(ctx)
	if err != nil {
		return err
	}
	r.Findings = list(r.Findings)
	if err := a.Print.Answer(r, func() { a.printDoctor(r) }); err != nil {
		return err
	}
	if len(r.Findings) == 0 {
		return nil
	}
	hint := "follow the remedies and run rehome doctor again"
	if mendable(r.Findings) > 0 && !fix {
		hint = "rehome doctor --fix performs the repairs that are marked so; for the others follow the remedies"
	}
	n := len(r.Findings)
	if n == 1 {
		return tenant.Errorf(tenant.KindRefused, "doctor-findings", hint, "one thing is not as it should be")
	}
	return tenant.Errorf(tenant.KindRefused, "doctor-findings", hint, "%s things are not as they should be", output.Count(int64(n)))
}

func mendable(findings []tenant.Finding) int {
	n := 0
	for _, f := range findings {
		if f.Fixable {
			n++
		}
	}
	return n
}

func (a *App) printDoctor(r api.Doctor) {
	for _, m := range r.Repairs {
		switch {
		case m.Done:
			a.Print.Textf("%s %s: %s", a.Print.Paint(output.Green, "mended:"), m.Code, output.Clean(m.Object))
		case m.Error != "":
			a.Print.Textf("%s %s: %s: %s", a.Print.Paint(output.Red, "not mended:"), m.Code, output.Clean(m.Object), output.Clean(m.Error))
		default:
			a.Print.Textf("%s %s: %s", a.Print.Paint(output.Red, "not mended:"), m.Code, output.Clean(m.Object))
		}
	}
	if len(r.Findings) == 0 {
		a.Print.Textf("%s everything is as the records say", a.Print.Paint(output.Green, "ok:"))
		return
	}
	rows := make([][]string, len(r.Findings))
	for i, f := range r.Findings {
		style := output.Yellow
		if f.Severity == tenant.Blocking {
			style = output.Red
		}
		rows[i] = []string{a.Print.Paint(style, string(f.Severity)), f.Code, f.Object, yesNo(f.Fixable), f.Message}
	}
	a.Print.Table([]string{"severity", "code", "object", "--fix", "what is wrong"}, rows)
	a.Print.Textf("")
	for _, f := range r.Findings {
		a.Print.Textf("%s %s", a.Print.Paint(output.Bold, output.Clean(f.ID())+":"), output.Clean(f.Remedy))
	}
}
