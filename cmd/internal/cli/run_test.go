package cli_test

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/cli"
)

// buffer may be written by a run and read by its test at the same time.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// bundle is one run's surroundings: a terminal, and an installation.
type bundle struct {
	env      cli.Env
	out, err *buffer
}

func setup(t *testing.T, args ...string) bundle {
	t.Helper()
	srv := httptest.NewServer(newContract())
	t.Cleanup(srv.Close)
	b := bundle{out: &buffer{}, err: &buffer{}}
	b.env = cli.Env{
		Args: args, Stdout: b.out, Stderr: b.err, Dir: t.TempDir(), Environ: []string{"REHOME_URL=" + srv.URL, "REHOME_SECRET=" + operator},
		StdinTerminal: true, StdoutTerminal: true, StderrTerminal: true, Width: 100,
	}
	return b
}

func (b bundle) run(ctx context.Context, t *testing.T, want int) {
	t.Helper()
	if got := cli.Run(ctx, b.env); got != want {
		t.Fatalf("%v ended with %d instead of %d\nstdout:\n%s\nstderr:\n%s", b.env.Args, got, want, b.out, b.err)
	}
}

func TestLiveProgress(t *testing.T) {
	t.Parallel()
	b := setup(t, "replication-progress", "--until", "in_sync")
	b.run(t.Context(), t, 0)
	for _, want := range []string{"copying 63%", "public.accounts", "█", "ETA 2m10s", "in sync, lag 8 ms\n"} {
		if !strings.Contains(b.out.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.out)
		}
	}
}

func TestStatusLineWhileACommandRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, "cutover", "--otp-channel", "totp")
	b.env.Stdin = strings.NewReader("\n111111\n123456\n")
	b.run(t.Context(), t, 0)
	if !strings.Contains(b.err.String(), "authenticator app") || !strings.Contains(b.out.String(), "\x1b[32mcut over:\x1b[0m") {
		t.Errorf("stdout:\n%s\nstderr:\n%s", b.out, b.err)
	}
}

func TestFiveWrongCodes(t *testing.T) {
	t.Parallel()
	b := setup(t, "cutover")
	b.env.Stdin = strings.NewReader(strings.Repeat("000000\n", 9))
	b.run(t.Context(), t, 4)
	if n := strings.Count(b.err.String(), "code: "); n != 5 {
		t.Errorf("asked %d times\n%s", n, b.err)
	}
}

// An interrupt while a person is asked, or watches, ends the run with 130.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"cutover"}, {"stats", "--db", "acme", "--watch", "--interval", "100ms"}, {"replication-progress", "--watch"}, {"replication-progress", "--watch", "-o", "json"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			b := setup(t, args...)
			r, w := io.Pipe()
			t.Cleanup(func() { _ = w.Close() })
			b.env.Stdin = r
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			sign := map[string]string{"cutover": "code: ", "stats": "open connections", "replication-progress": "in sync"}[args[0]]
			if args[len(args)-1] == "json" {
				sign = "in_sync"
			}
			out := &watched{to: b.out, sign: sign, seen: cancel}
			b.env.Stdout = out
			b.env.Stderr = &watched{to: b.err, sign: sign, seen: cancel}
			b.run(ctx, t, 130)
			if args[0] == "replication-progress" && !strings.Contains(b.err.String(), "goes on") {
				t.Errorf("nothing says that the work goes on:\n%s", b.err)
			}
		})
	}
}

// watched calls seen when a text was written.
type watched struct {
	to   *buffer
	sign string
	seen func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if strings.Contains(w.to.String(), w.sign) {
		w.seen()
	}
	return n, err
}

// Another package's command gets the run's streams and its exit code.
func TestCommandOfAnotherPackage(t *testing.T) {
	t.Parallel()
	b := setup(t, "other", "-o", "json")
	b.env.Commands = []func(*cli.App) *cobra.Command{func(a *cli.App) *cobra.Command {
		return &cobra.Command{Use: "other", Short: "Other", RunE: func(*cobra.Command, []string) error { return a.Print.Document(map[string]int{"n": 1}) }}
	}}
	b.run(t.Context(), t, 0)
	if b.out.String() != "{\n  \"n\": 1\n}\n" {
		t.Errorf("got %q", b.out)
	}
}

func TestNoColor(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"shards", "--no-color"}, {"shards"}} {
		b := setup(t, args...)
		if len(args) == 1 {
			b.env.Environ = append(b.env.Environ, "NO_COLOR=1")
		}
		b.run(t.Context(), t, 0)
		if strings.Contains(b.out.String(), "\x1b") {
			t.Errorf("%v: colours in %q", args, b.out)
		}
	}
}
