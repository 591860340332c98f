package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// scribe notes the commands of a follower for the report, as they run. The zero value is ready.
type scribe struct{ log Run } // of the run only its list of commands and its names are used

// transcript is where a follower's commands are noted.
func (s *scribe) transcript() *Run { return &s.log }

// sql runs statements on a session of their own and notes them; secret is what stands for the database in the report.
func (s *scribe) sql(ctx context.Context, dsn tenant.DSN, secret string, statements ...string) error {
	s.log.Name(dsn, secret)
	return s.log.SQL(ctx, dsn, statements...)
}

// Noted are the commands so far.
func (r *Run) Noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.commands)
}

// withArguments writes a statement with the values of its parameters behind it.
func withArguments(sql string, args []any) string {
	var values []string
	for i, a := range args {
		values = append(values, fmt.Sprintf("$%d = %v", i+1, a))
	}
	if len(values) == 0 {
		return sql
	}
	return sql + " -- " + strings.Join(values, ", ")
}

// noteCommands lists what a contender ran in a case, unless the report has it from an earlier turn.
func (b *Bench) noteCommands(inCase, contender string, lines []string) {
	known := slices.ContainsFunc(b.Results.Commands, func(c Commands) bool { return c.Case == inCase && c.Contender == contender })
	if !known && len(lines) > 0 {
		b.Results.Commands = append(b.Results.Commands, Commands{Case: inCase, Contender: contender, Lines: lines})
	}
}
