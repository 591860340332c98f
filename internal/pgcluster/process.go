package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// killTimeout bounds the wait for killed processes: one that hangs in the kernel (a dead disk) must not hold us for ever.
const killTimeout = 10 * time.Second

// process is a running postmaster. done is closed when it has ended and was waited for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once
}

// launch starts the server; its output goes to the log file.
func (c *Cluster) launch() (*process, error) {
	log, err := os.OpenFile(c.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	cmd := exec.Command(filepath.Join(c.BinDir(), "postgres"), "-D", c.data(), "-p", strconv.Itoa(c.port)) //nolint:gosec // binaries that Find found
	cmd.Dir = c.dir
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	// SIGQUIT is Postgres' immediate shutdown: the postmaster ends its children too.
	cmd.SysProcAttr = processAttributes(c.user, syscall.SIGQUIT)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The parent's death signal is sent when the *thread* that forked ends, not the process (prctl(2)). This goroutine
		// keeps its thread until the server has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		err = errors.Join(err, log.Close())
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports whether the postmaster was waited for: its pid may be another process's by now.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop asks for a fast shutdown and waits.
func (p *process) stop(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop postgres: %w", err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("stop postgres: %w", context.Cause(ctx))
	}
}

// quit is Postgres' immediate shutdown: nothing is written, but the server's shared memory is given back, which a killed
// one leaves to the system for ever.
func (p *process) quit() {
	if p.ended() {
		return
	}
	timeout := time.NewTimer(killTimeout)
	defer timeout.Stop()
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err == nil {
		select {
		case <-p.done:
			return
		case <-timeout.C:
		}
	}
	p.kill()
}

// kill ends the postmaster and its children with SIGKILL and waits until all are gone.
func (p *process) kill() {
	p.once.Do(func() {
		if p.ended() {
			return
		}
		// A stopped postmaster cannot fork while its children are listed. One that ends just now is not signalled by its pid:
		// Process knows whether it was waited for.
		if err := p.cmd.Process.Signal(syscall.SIGSTOP); errors.Is(err, os.ErrProcessDone) {
			return
		}
		children := childrenOf(p.pid())
		for _, child := range children {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		_ = p.cmd.Process.Kill()
		<-p.done
		// Shared memory must have no user left, or the next start refuses.
		tick := time.NewTicker(time.Millisecond) // SIGKILL needs no more than the end of a system call
		defer tick.Stop()
		deadline := time.Now().Add(killTimeout)
		for _, child := range children {
			for alive(child) && !zombie(child) && time.Now().Before(deadline) {
				<-tick.C
			}
		}
	})
	<-p.done
}

// runToEnd runs a program as the server's account and returns what it said.
func runToEnd(ctx context.Context, as *runAs, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // binaries that Find found
	cmd.Dir = dir
	cmd.Env = environment()
	cmd.SysProcAttr = processAttributes(as, 0) // it ends by itself; this goroutine may change threads meanwhile
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// environment is what the server gets: no PG* variable of ours, messages in English (they are matched above).
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "LD_LIBRARY_PATH=" + os.Getenv("LD_LIBRARY_PATH")}
}
