package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// exitInterrupted is what shells report of a program that SIGINT ended (128 + 2).
const exitInterrupted = 130

// report prints why a command failed and returns its exit code.
func (a *App) report(ctx context.Context, err error) int {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		var e *tenant.Error
		if errors.As(err, &e) && e.Hint != "" {
			a.Print.Notef("%s", e.Hint)
		}
		return exitInterrupted
	}
	e := tenant.AsError(err)
	if a.Print.JSON {
		enc := json.NewEncoder(a.Stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(client.ProblemOf(e)) // there is no other place to say that stderr is closed
		return e.Kind.ExitCode()
	}
	p := output.Printer{Out: a.Stderr, Err: a.Stderr, Color: a.StderrTerminal && a.mayColor()}
	p.Textf("%s %s", p.Paint(output.Red, "error:"), e.Error())
	if len(e.Findings) > 0 {
		a.printFindings(&p, e.Findings)
	}
	if e.Hint != "" {
		p.Textf("%s %s", p.Paint(output.Cyan, "hint:"), e.Hint)
	}
	return e.Kind.ExitCode()
}

// interrupted says what goes on although the watching was ended.
func interrupted(ctx context.Context, err error, goesOn string) error {
	if err != nil && ctx.Err() != nil {
		return &tenant.Error{Kind: tenant.KindInternal, Code: "interrupted", Message: "interrupted", Hint: goesOn, Err: context.Canceled}
	}
	return err
}

// printFindings shows what a check found: a line with severity, code and object, then what is wrong and what to do.
func (a *App) printFindings(p *output.Printer, findings []tenant.Finding) {
	for _, f := range findings {
		style, word := output.Cyan, "notice"
		switch {
		case f.Accepted:
			style, word = output.Faint, "accepted"
		case f.Severity == tenant.Blocking:
			style, word = output.Red, "blocking"
		case f.Severity == tenant.Warning:
			style, word = output.Yellow, "warning"
		}
		p.Textf("  %s %s", p.Paint(style, fmt.Sprintf("%-8s", word)), p.Paint(output.Bold, f.ID()))
		p.Textf("           %s", f.Message)
		if f.Remedy != "" {
			p.Textf("           remedy: %s", f.Remedy)
		}
		// What the remedy says already is not said twice.
		var ways []string
		if f.Fixable && !f.Accepted && !strings.Contains(f.Remedy, "--fix-identity") {
			ways = append(ways, "--fix-identity mends it")
		}
		if f.Acceptable && !f.Accepted && a.override != nil && !strings.Contains(f.Remedy, "--accept") {
			ways = append(ways, a.override(f))
		}
		if len(ways) > 0 {
			p.Textf("           %s", strings.Join(ways, "; "))
		}
	}
}
