package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Run is one contender's turn. It holds the clock and counts the CPU seconds between Begin and End of the clusters, of the
// tools that were run through it, and of the processes that it was told of. It notes the commands for the report.
type Run struct {
	Rig       *Rig
	Case      string // "A, 1 target"
	Contender string
	Round     int
	Values    map[string]float64 // further figures, by name with unit: "rows/s", "peak RSS MiB"

	names    map[string]string // connection strings, and what the report says in their place
	mu       sync.Mutex        // tools may run side by side
	tools    float64           // CPU seconds of tools that ended
	pids     []int             // processes that go on beyond the turn
	running  map[int]bool      // tools that run just now
	commands []string
	began    time.Time
	before   CPU
	wall     time.Duration
	cpu      CPU
	cleanup  []func(context.Context) error
}

// Begin starts the clock.
func (r *Run) Begin() (err error) {
	if r.before, err = r.used(); err != nil {
		return err
	}
	r.began = time.Now()
	return nil
}

// End stops the clock. A second End moves the finish line.
func (r *Run) End() error {
	wall := time.Since(r.began)
	now, err := r.used()
	if err != nil {
		return err
	}
	if r.began.IsZero() {
		return errors.New("the clock was not started")
	}
	r.wall, r.cpu = wall, now.minus(r.before)
	return nil
}

// Since is the time and CPU since Begin, for a figure beside the finish line.
func (r *Run) Since() (time.Duration, CPU, error) {
	wall := time.Since(r.began)
	now, err := r.used()
	return wall, now.minus(r.before), err
}

// Set notes a further figure.
func (r *Run) Set(name string, v float64) {
	if r.Values == nil {
		r.Values = map[string]float64{}
	}
	r.Values[name] = v
}

// Count makes the CPU of a process, which runs on its own, part of the tool's.
func (r *Run) Count(pid int) { r.pids = append(r.pids, pid) }

// Cleanup is done after the turn, the last first, whatever became of it.
func (r *Run) Cleanup(fn func(context.Context) error) { r.cleanup = append(r.cleanup, fn) }

// tidy does what was asked for with Cleanup, also when the run is interrupted.
func (r *Run) tidy(ctx context.Context) error {
	var errs []error
	for _, fn := range slices.Backward(r.cleanup) {
		errs = append(errs, fn(context.WithoutCancel(ctx)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after %s: %w", r.Contender, err)
	}
	return nil
}

// Name says what stands in the report for a connection string.
func (r *Run) Name(dsn tenant.DSN, name string) {
	if r.names == nil {
		r.names = map[string]string{}
	}
	r.names[dsn.Reveal()] = name
}

func (r *Run) used() (CPU, error) {
	cpu, err := r.Rig.CPU()
	if err != nil {
		return cpu, err
	}
	r.mu.Lock()
	cpu.Tool = r.tools
	for pid := range r.running {
		if used, err := TreeCPU(pid); err == nil { // it may be ending just now
			cpu.Tool += used
		}
	}
	r.mu.Unlock()
	for _, pid := range r.pids {
		used, err := TreeCPU(pid)
		if err != nil {
			return cpu, err
		}
		cpu.Tool += used
	}
	return cpu, nil
}

// dsnPattern finds connection strings, as far as they reach without quotes around them.
var dsnPattern = regexp.MustCompile(`postgres(ql)?://[^\s'"]+`)

// blot puts names in the place of connection strings; of those that have none, a word.
func (r *Run) blot(text string) string {
	for secret, name := range r.names {
		text = strings.ReplaceAll(text, secret, name)
	}
	return dsnPattern.ReplaceAllString(text, "$$DATABASE")
}

// Note adds a line to the commands of the report.
func (r *Run) Note(line string) {
	line = r.blot(line)
	r.mu.Lock()
	r.commands = append(r.commands, line)
	r.mu.Unlock()
}

// SQL runs statements on a session of their own and notes them.
func (r *Run) SQL(ctx context.Context, dsn tenant.DSN, statements ...string) error {
	for _, s := range statements {
		r.Note(dsn.Reveal() + ": " + s)
	}
	return Exec(ctx, dsn, statements...)
}

// Command makes a command whose environment has the server's binaries first in PATH and no other PG* variable than ours.
func (r *Run) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.Rig.Tool(program), args...) //nolint:gosec // programs of the benchmark
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "PATH=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+r.Rig.Source.BinDir()+":"+os.Getenv("PATH"), "LC_ALL=C")
	cmd.Dir = r.Rig.Dir
	// A process group of its own: what is interrupted is the run, which then ends its tools.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// Tool runs a program to its end, counts its CPU and notes the command.
func (r *Run) Tool(ctx context.Context, program string, args ...string) error {
	r.Note(shell(program, args))
	_, err := r.finish(r.Command(ctx, program, args...))
	return err
}

// Pipe runs `left | right`, counts the CPU of both and notes the command.
func (r *Run) Pipe(ctx context.Context, left, right []string) error {
	r.Note(shell(left[0], left[1:]) + " | " + shell(right[0], right[1:]))
	from, to := r.Command(ctx, left[0], left[1:]...), r.Command(ctx, right[0], right[1:]...)
	pr, pw, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	from.Stdout, to.Stdin = pw, pr
	errs := make(chan error, 1)
	go func() {
		_, err := r.finish(from)
		errs <- errors.Join(err, pw.Close())
	}()
	_, err = r.finish(to)
	return errors.Join(err, pr.Close(), <-errs)
}

// finish runs a command; the error has the end of what it said.
func (r *Run) finish(cmd *exec.Cmd) (stdout string, err error) {
	var out, said bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &said
	}
	if err = cmd.Start(); err == nil {
		pid := cmd.Process.Pid
		r.mu.Lock()
		if r.running == nil {
			r.running = map[int]bool{}
		}
		r.running[pid] = true
		r.mu.Unlock()
		err = cmd.Wait()
		r.mu.Lock()
		delete(r.running, pid)
		r.tools += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
		r.mu.Unlock()
	}
	if err != nil {
		text := strings.TrimSpace(out.String() + said.String())
		text = r.blot(text)
		return "", fmt.Errorf("%s: %w: %s", cmd.Args[0], err, text[max(0, len(text)-600):])
	}
	return out.String(), nil
}

// shell writes a command as a person would type it.
func shell(program string, args []string) string {
	words := []string{program}
	for _, a := range args {
		if strings.ContainsAny(a, " '\"()*;|&$?") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
