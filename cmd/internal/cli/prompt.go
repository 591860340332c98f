package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// lineReader reads lines from stdin so that an interrupt is noticed while a person thinks. Reads of a terminal cannot be
// cancelled, so the one goroutine that reads stays behind, blocked, until the process ends; it reads on only when asked.
type lineReader struct {
	r    io.Reader
	once sync.Once
	want chan struct{}
	got  chan line
}

type line struct {
	text string
	err  error
}

func (l *lineReader) next(ctx context.Context) (string, error) {
	l.once.Do(func() {
		l.want, l.got = make(chan struct{}), make(chan line, 1)
		go func() {
			br := bufio.NewReader(l.r)
			for range l.want {
				text, err := br.ReadString('\n')
				if text != "" {
					err = nil // the last line may lack its newline
				}
				l.got <- line{strings.TrimRight(text, "\r\n"), err}
				if err != nil {
					return
				}
			}
		}()
	})
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case l.want <- struct{}{}:
	}
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case got := <-l.got:
		return got.text, got.err
	}
}

// ask prints a question to stderr and reads the answer.
func (a *App) ask(ctx context.Context, question string) (string, error) {
	if _, err := fmt.Fprint(a.Stderr, output.Clean(question)); err != nil {
		return "", fmt.Errorf("ask: %w", err)
	}
	text, err := a.lines.next(ctx)
	if err != nil {
		_, _ = fmt.Fprintln(a.Stderr)
		return "", err
	}
	return strings.TrimSpace(text), nil
}

// confirm asks before something is destroyed. Without a terminal --yes is needed.
func (a *App) confirm(ctx context.Context, yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !a.StdinTerminal {
		return usage("not-confirmed", "say --yes", "%s Without a terminal nobody can answer", question)
	}
	answer, err := a.ask(ctx, question+" [y/N] ")
	if err != nil && ctx.Err() != nil {
		return err
	}
	switch strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return tenant.Errorf(tenant.KindRefused, "not-confirmed", "", "not confirmed; nothing was done")
}
