package cli

import (
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/server/api"
)

// patientTarget is a target for who only looks at what goes on at the server: it outlasts a restart of the server. what
// goes on is named to the person when the server does not answer; "" if it is nothing but the view.
func (a *App) patientTarget(t target, what, lookAgain string) target {
	p := client.Patience{LookAgain: "look again with: " + lookAgain}
	if what != "" {
		p.GoesOn = what + " goes on at the server"
		p.LookAgain = p.GoesOn + "; " + p.LookAgain
	}
	t.Client = t.Patient(p)
	return t
}

// lookAgain is the command that shows how a replication's command went.
func (a *App) lookAgain(t target, kind, replication string) string {
	if kind == api.CommandVerify {
		return a.again(t, "verify", replication, "--last")
	}
	return a.again(t, "replications", replication)
}

// again writes a command that talks to the same installation: with --url where the next run would not find it by itself.
func (a *App) again(t target, words ...string) string {
	command := "rehome " + strings.Join(words, " ")
	if base, err := a.baseURL(); a.url != "" || err != nil || keyfile.Normalise(base) != keyfile.Normalise(t.Base()) {
		command += " --url " + t.Base()
	}
	return command
}

// noteAway is a note that may come while a status line is shown on the terminal.
func (a *App) noteAway(format string, args ...any) {
	if a.StderrTerminal && !a.Print.Quiet {
		_, _ = fmt.Fprint(a.Stderr, "\r\x1b[K")
	}
	a.Print.Notef(format, args...)
}
