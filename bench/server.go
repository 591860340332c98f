package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// startWithin bounds what a server needs to migrate its control database and listen.
	startWithin = time.Minute
	// stopWithin bounds an orderly stop; then it is killed.
	stopWithin = 10 * time.Second
	controlDB  = "rehome"
)

// Server is a Rehome installation of one turn: a fresh control database, a server as a child process, a shard on each target,
// and a logical database TargetDB over them. The program is the one that people run, driven by its command line.
type Server struct {
	rig     *Rig
	dir     string
	url     string
	mail    string
	environ []string
	cmd     *exec.Cmd
	log     *os.File
	ended   chan struct{}
	run     *Run      // whose turn it is
	owner   *Run      // who started it
	watch   *pgx.Conn // at the control database; used by one goroutine at a time
	repl    string    // the replication that was started
	targets int
}

// StartServer starts an installation for a turn, outside of its clock; the turn counts the server's CPU as the tool's and removes
// the installation at its end.
func StartServer(ctx context.Context, r *Run, targets ...*pgcluster.Cluster) (s *Server, err error) {
	s = &Server{rig: r.Rig, run: r, owner: r, ended: make(chan struct{}), targets: len(targets)}
	if s.dir, err = os.MkdirTemp(r.Rig.Dir, "installation-"); err != nil {
		return nil, fmt.Errorf("make a working directory: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	s.url, s.mail = "http://"+addr, filepath.Join(s.dir, "mail")
	control := r.Rig.Control.DSN(controlDB)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "REHOME_") && !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "PATH=") {
			s.environ = append(s.environ, kv)
		}
	}
	// The tools that the server starts are those of the clusters' version, as for the peers.
	s.environ = append(s.environ, "PATH="+r.Rig.Source.BinDir()+":"+os.Getenv("PATH"), "REHOME_DATABASE_URL="+control.Reveal(), "REHOME_SECRET=a secret of the benchmark, long enough for all",
		"REHOME_URL="+s.url, "REHOME_LISTEN="+addr, "REHOME_EMAIL_URL=file://"+s.mail, "NO_COLOR=1")
	if bin := os.Getenv(pgcluster.BinDirEnv); bin != "" {
		s.environ = append(s.environ, pgcluster.BinDirEnv+"="+bin)
	}
	if err := DropDatabase(ctx, r.Rig.Control, controlDB); err != nil {
		return nil, err
	}
	if err := CreateDatabase(ctx, r.Rig.Control, controlDB); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	r.Cleanup(s.remove)
	r.Count(s.cmd.Process.Pid)
	for i, c := range targets {
		if _, err := s.CLI(ctx, "add-shard", fmt.Sprintf("s%d", i+1), c.DSN("postgres").Reveal()); err != nil {
			return nil, err
		}
	}
	_, err = s.CLI(ctx, "create", TargetDB, "--owner", "owner@example.com")
	return s, err
}

func (s *Server) start(ctx context.Context) (err error) {
	if _, err := s.CLI(ctx, "init", "--email", "ops@example.com"); err != nil {
		return err
	}
	if s.log, err = os.Create(filepath.Join(s.dir, "server.log")); err != nil {
		return fmt.Errorf("make the server's log: %w", err)
	}
	cmd := exec.Command(s.rig.Rehome, "server") //nolint:gosec,noctx // the program under test, which remove ends in order
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.environ, s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	s.cmd = cmd
	go func() {
		defer close(s.ended)
		_ = cmd.Wait() // how it ended is in its log
	}()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	err = eventually(ctx, startWithin, "the server is ready", func(ctx context.Context) (bool, error) {
		select {
		case <-s.ended:
			return false, fmt.Errorf("the server ended: %s", s.LogTail())
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return false, fmt.Errorf("ask the server: %w", err)
		}
		res, err := hc.Do(req)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return res.StatusCode == http.StatusOK, res.Body.Close()
	})
	if err != nil {
		return errors.Join(err, s.remove(context.WithoutCancel(ctx)))
	}
	return nil
}

// Use makes the server part of another turn: its CPU and what it is asked to do are counted there from now on. The turn that
// started it still removes it.
func (s *Server) Use(r *Run) {
	s.run = r
	r.Count(s.Pid())
}

// Pid is the server's process.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// URL is the logical database's address.
func (s *Server) URL() string { return s.url + "/" + TargetDB }

// PeakRSS is the most memory that the server has held, in MiB.
func (s *Server) PeakRSS() (float64, error) { return PeakRSS(s.Pid()) }

// LogTail is the end of the server's log.
func (s *Server) LogTail() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "server.log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// CLI runs a command of the command line and returns what it printed. Its CPU is counted.
func (s *Server) CLI(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.rig.Rehome, args...) //nolint:gosec // the program under test
	cmd.Dir, cmd.Env = s.dir, s.environ
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := s.run.finish(cmd)
	if err != nil {
		return "", fmt.Errorf("rehome %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return out, nil
}

// CLIJSON runs a command and decodes its answer.
func CLIJSON[T any](ctx context.Context, s *Server, args ...string) (v T, err error) {
	out, err := s.CLI(ctx, append(args, "-o", "json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("rehome %s: its answer is no JSON: %w", args[0], err)
	}
	return v, nil
}

// Approve asks for the code of a command and returns the arguments that carry it. That is a person's time, not the program's.
func (s *Server) Approve(ctx context.Context, args ...string) ([]string, error) {
	ch, err := CLIJSON[api.Challenge](ctx, s, append(args, "--request-otp")...)
	if err != nil {
		return nil, err
	}
	var code string
	err = eventually(ctx, startWithin, "the code is in the mailbox", func(context.Context) (bool, error) {
		mails, err := otp.ReadMailbox(s.mail)
		if err != nil {
			return false, fmt.Errorf("read the mailbox: %w", err)
		}
		for _, m := range mails {
			if m.Challenge == ch.ID {
				code = m.Code
			}
		}
		return code != "", nil
	})
	return append(args, "--otp-id", ch.ID, "--otp", code), err
}

// Replicate starts the replication of a source database; more are the arguments that say how its rows are routed. It returns when the
// server has accepted it. begin, if not nil, is called when the code is there and just before the command that carries it.
func (s *Server) Replicate(ctx context.Context, source tenant.DSN, begin func() error, more ...string) error {
	args := append([]string{"start-replication", "--from", source.Reveal(), "--to", s.URL()}, more...)
	s.run.Note(shell("rehome", append(append([]string{}, "start-replication", "--from", source.Reveal(), "--to", "$REHOME/"+TargetDB), more...)))
	approved, err := s.Approve(ctx, args...)
	if err != nil {
		return err
	}
	if begin != nil {
		if err := begin(); err != nil {
			return err
		}
	}
	r, err := CLIJSON[api.Replication](ctx, s, approved...)
	if err != nil {
		return err
	}
	s.repl = r.ID
	return nil
}

// Phase is where the replication stands, from the control database: that costs the server nothing. A pause is an error with
// its reason.
func (s *Server) Phase(ctx context.Context) (tenant.Phase, error) {
	if s.watch == nil {
		c, err := pgx.Connect(ctx, s.rig.Control.DSN(controlDB).Reveal())
		if err != nil {
			return "", fmt.Errorf("connect to the control database: %w", err)
		}
		s.watch = c
	}
	var phase, reason string
	err := s.watch.QueryRow(ctx, `SELECT phase, coalesce(state->>'reason', '') FROM rehome_control.replications WHERE id = $1`, s.repl).Scan(&phase, &reason)
	switch {
	case err != nil:
		return "", fmt.Errorf("read the phase: %w", err)
	case tenant.Phase(phase) == tenant.Paused:
		return tenant.Paused, fmt.Errorf("the replication paused: %s", reason)
	}
	return tenant.Phase(phase), nil
}

// WaitPhase waits until the replication is in one of the phases.
func (s *Server) WaitPhase(ctx context.Context, want ...tenant.Phase) error {
	return eventually(ctx, turnWithin, fmt.Sprint("phase ", want), func(ctx context.Context) (bool, error) {
		phase, err := s.Phase(ctx)
		return slices.Contains(want, phase), err
	})
}

// remove takes the replication back, ends the server and drops its databases.
func (s *Server) remove(ctx context.Context) error {
	s.run = s.owner
	var errs []error
	if s.repl != "" {
		if _, err := s.CLI(ctx, "cancel-replication", s.repl, "--yes"); err != nil {
			errs = append(errs, err)
		}
	}
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(stopWithin):
			_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
			<-s.ended
		}
		errs = append(errs, s.log.Close())
	}
	if s.watch != nil {
		_ = s.watch.Close(ctx)
	}
	errs = append(errs, DropDatabase(ctx, s.rig.Control, controlDB))
	for _, c := range s.rig.Targets[:s.targets] {
		errs = append(errs, DropDatabase(ctx, c, TargetDB))
	}
	return errors.Join(errs...)
}
