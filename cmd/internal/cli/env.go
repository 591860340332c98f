package cli

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// defaultLines is the height of a terminal that does not tell.
const defaultLines = 24

// Env is everything that a run of the command line takes from outside. A zero Env reads nothing and prints nothing, and
// has an empty environment; Main fills it from the process.
type Env struct {
	Args    []string // without the program's name
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Environ []string // NAME=value
	Dir     string   // working directory: rehome.json and rehome.key are looked for here and above

	StdinTerminal  bool // a person answers: codes and confirmations are asked for
	StdoutTerminal bool // plots and colours
	StderrTerminal bool // progress bars and colours
	Width          int  // columns of the terminal; 0: 80
	// Size asks the terminal on Stdout for its columns and lines, which change while something is watched. Default: Width, 24.
	Size func() (columns, lines int)

	HTTP *http.Client     // default: a client of its own; its redirect policy is replaced
	Now  func() time.Time // default time.Now
	// Commands adds commands of other packages, as demo; they get what the run was given.
	Commands []func(*App) *cobra.Command
}

// Main runs the process' command line and returns its exit code. An interrupt ends what is watched, not what was begun;
// a second one ends the process at once.
func Main(commands ...func(*App) *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	dir, err := os.Getwd()
	if err != nil {
		dir = "."
	}
	env := Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), Dir: dir, Commands: commands}
	env.StdinTerminal = term.IsTerminal(int(os.Stdin.Fd()))
	env.StdoutTerminal = term.IsTerminal(int(os.Stdout.Fd()))
	env.StderrTerminal = term.IsTerminal(int(os.Stderr.Fd()))
	if w, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
		env.Width = w
	}
	env.Size = func() (columns, lines int) {
		columns, lines, _ = term.GetSize(int(os.Stdout.Fd())) // 0, 0 where it is no terminal
		return columns, lines
	}
	return Run(ctx, env)
}

func (e Env) withDefaults() Env {
	if e.Stdin == nil {
		e.Stdin = eofReader{}
	}
	if e.Stdout == nil {
		e.Stdout = io.Discard
	}
	if e.Stderr == nil {
		e.Stderr = io.Discard
	}
	e.Stderr = &lockedWriter{w: e.Stderr}
	if e.Dir == "" {
		e.Dir = "."
	}
	if e.Width <= 0 {
		e.Width = 80
	}
	if e.Size == nil {
		width := e.Width
		e.Size = func() (columns, lines int) { return width, defaultLines }
	}
	if e.HTTP == nil {
		e.HTTP = &http.Client{}
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	return e
}

// Getenv returns the last value of an environment variable, or "".
func (e Env) Getenv(name string) string {
	value := ""
	for _, kv := range e.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

// lockedWriter lets notes of a retry and the status line of what is waited for share stderr.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }
