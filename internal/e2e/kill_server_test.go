package e2e

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/server/supervisor"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// killChild makes this test binary a server that can be stopped at any step: its value is a killConfig.
const killChild = "REHOME_E2E_KILL_SERVER"

// killConfig is what such a server must know.
type killConfig struct {
	Name, Control, Secret string
	Key                   ed25519.PrivateKey
}

// serveKilled is the part of `rehome server` that works on replications, as a process that can be killed. It reads
// "at STEP" and "go" from its standard input and says "reached STEP" when a coordinator stands there and waits for "go".
// It ends with its parent.
func serveKilled(raw string) int {
	var conf killConfig
	fail := func(err error) int {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.Unmarshal([]byte(raw), &conf); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pool, err := pgxpool.New(ctx, conf.Control)
	if err != nil {
		return fail(err)
	}
	defer pool.Close()
	box, err := seal.New(tenant.Secret(conf.Secret))
	if err != nil {
		return fail(err)
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("server", conf.Name)
	var mu sync.Mutex
	var at string
	goOn := make(chan struct{}, 1)
	say := func(text string) { _, _ = io.WriteString(os.Stdout, text+"\n") }
	crash := func(step string) error {
		mu.Lock()
		hit := at == step
		if hit {
			at = ""
		}
		mu.Unlock()
		if hit {
			say("reached " + step)
			<-goOn
		}
		return nil
	}
	go func() { // ends with the process
		defer cancel()
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			word, step, _ := strings.Cut(in.Text(), " ")
			mu.Lock()
			at = step
			mu.Unlock()
			if word == "go" {
				select {
				case goOn <- struct{}{}:
				default:
				}
			}
			if word == "at" {
				select { // of a former stop that came to nothing
				case <-goOn:
				default:
				}
				say("armed")
			}
		}
	}()
	s := supervisor.New(supervisor.Config{
		Pool: pool, Seal: box, Catalogue: shard.New(pool, box, logger), Log: progress.NewLog(pool, "inst", "https://own.example"),
		Signer: cutover.Signer{Installation: "inst", Key: conf.Key}, Server: conf.Name, Logger: logger, Crash: crash,
	})
	if err := s.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// killServer is such a process, as its parent sees it.
type killServer struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	said  chan string
	log   *os.File
	alive bool
}

func (r *killRig) startServer(name string) *killServer {
	r.t.Helper()
	raw, err := json.Marshal(killConfig{Name: name, Control: r.controlDSN.Reveal(), Secret: r.secret, Key: r.key})
	r.must(err)
	self, err := os.Executable()
	r.must(err)
	s := &killServer{name: name, said: make(chan string, 16), alive: true}
	s.log, err = os.OpenFile(filepath.Join(r.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	r.must(err)
	s.cmd = exec.Command(self)
	s.cmd.Env = append(os.Environ(), killChild+"="+string(raw), "TMPDIR="+r.dir) // it is killed, and leaves temporary files behind
	s.cmd.Stderr = s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.in, err = s.cmd.StdinPipe()
	r.must(err)
	out, err := s.cmd.StdoutPipe()
	r.must(err)
	r.must(s.cmd.Start())
	go func() { // ends with the process
		defer close(s.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.said <- lines.Text()
		}
	}()
	return s
}

func (s *killServer) tell(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text+"\n"); err != nil {
		t.Errorf("tell server %s %q: %v", s.name, text, err)
	}
}

// disarm lets no later attempt stop.
func (s *killServer) disarm(t *testing.T) {
	t.Helper()
	if s.alive {
		s.tell(t, "at nothing")
	}
}

func (s *killServer) signal(sig syscall.Signal) { _ = s.cmd.Process.Signal(sig) }

// kill ends the process as a power cut does: the system closes its sockets, nothing else is done.
func (s *killServer) kill() {
	if !s.alive {
		return
	}
	s.alive = false
	s.signal(syscall.SIGKILL)
	_ = s.in.Close()
	_ = s.cmd.Wait()
	_ = s.log.Close()
}
