package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/otp"
)

// how a command is run.
type how struct {
	in      *installation // in whose directory
	mailbox *installation // who sends the codes; default in
	environ []string      // default: a person's
	raw     bool          // it draws on the terminal by itself
	before  func()        // called just before a command that has its code
	want    []int         // exit codes that are right; default 0
}

// do runs a command in sight: the command line, then what it prints.
func (d *demo) do(ctx context.Context, h how, args ...string) (result, error) {
	d.show.command(h.in.name, shown(args))
	environ := h.environ
	if environ == nil {
		environ = h.in.person
	}
	raw := h.raw && d.show.live
	stdout, stderr, kept := d.show.pair(raw)
	r := result{code: cli.Run(ctx, cli.Env{
		Args: args, Stdout: stdout, Stderr: stderr, Environ: environ, Dir: h.in.dir, HTTP: &http.Client{Transport: h.in.http.Transport},
		StdoutTerminal: d.show.live, StderrTerminal: d.show.live, Width: d.show.width - len(indent),
	})}
	r.stdout, r.stderr = kept()
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	want := h.want
	if want == nil {
		want = []int{0}
	}
	if !slices.Contains(want, r.code) {
		return r, unexpected(args, r, want[0])
	}
	return r, nil
}

// approved runs a command that a person approves: first it asks for a code, then the mail is read, then it is run with
// the code.
func (d *demo) approved(ctx context.Context, h how, args ...string) (result, error) {
	asking := h
	asking.want, asking.raw = nil, false
	r, err := d.do(ctx, asking, append(slices.Clone(args), "--request-otp")...)
	if err != nil {
		return r, err
	}
	id := strings.TrimSpace(r.stdout)
	box := h.mailbox
	if box == nil {
		box = h.in
	}
	mail, err := box.letter(ctx, "the code", func(m otp.Mail) bool { return m.Kind == otp.KindCode && m.Challenge == id })
	if err != nil {
		return r, err
	}
	if mail.Code == "" {
		return r, errors.New("the mail for request " + id + " has no code")
	}
	d.mailRead(mail)
	if h.before != nil {
		h.before()
	}
	return d.do(ctx, h, append(slices.Clone(args), "--otp-id", id, "--otp", mail.Code)...)
}

func (d *demo) mailRead(m otp.Mail) {
	d.show.note("%s", d.show.p.Paint(output.Yellow, fmt.Sprintf("mail to %s: %s", m.To, m.Subject)))
}
