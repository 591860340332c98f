package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// node is one of several servers of an installation, kept running as an init system would: when it ends, it is started
// again, unless it was taken down on purpose.
type node struct {
	*installation
	name string
	done chan struct{}
	end  context.CancelFunc

	mu     sync.Mutex
	pid    int  // 0: not running
	down   bool // on purpose
	starts int
	ended  []string // how it ended by itself after it had begun to serve
}

// keepNode starts a server and keeps it. Its log goes to dir, which outlives the test when it fails.
func keepNode(t *testing.T, name, dir string, inst *installation) *node {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	n := &node{installation: inst, name: name, done: make(chan struct{}), end: end}
	n.extra = append(n.extra, "REHOME_SERVER_NAME="+name)
	var err error
	if n.log, err = os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		t.Fatal(err)
	}
	go n.keep(ctx)
	t.Cleanup(func() {
		end()
		n.signal(syscall.SIGKILL)
		<-n.done
		_ = n.log.Close()
	})
	return n
}

// laterServer prepares a further server of an installation, which answers at an address of its own.
func laterServer(t *testing.T, first *installation, control tenant.DSN, extra ...string) *installation {
	t.Helper()
	port := freePort(t)
	return &installation{
		t: t, control: control, dir: t.TempDir(), mail: first.mail, port: port, url: "http://127.0.0.1:" + strconv.Itoa(port), public: first.url, extra: extra,
	}
}

func (n *node) keep(ctx context.Context) {
	defer close(n.done)
	// The server gets SIGKILL when the thread that forked it ends: it must not outlive a test that is cut off.
	runtime.LockOSThread()
	for ctx.Err() == nil {
		n.mu.Lock()
		if n.down {
			n.mu.Unlock()
			n.pause(ctx)
			continue
		}
		began := fileSize(n.log)
		cmd := n.command()
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		err := cmd.Start()
		if err == nil {
			n.pid = cmd.Process.Pid
			n.starts++
		}
		n.mu.Unlock()
		if err == nil {
			err = cmd.Wait()
		}
		n.mu.Lock()
		n.pid = 0
		if !n.down && ctx.Err() == nil {
			if said := n.logSince(began); strings.Contains(said, "serving") {
				n.ended = append(n.ended, fmt.Sprintf("%v: %s", err, lastLine(said)))
			}
		}
		n.mu.Unlock()
		n.pause(ctx)
	}
}

func (n *node) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(200 * time.Millisecond):
	}
}

func (n *node) signal(sig syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid != 0 {
		_ = syscall.Kill(n.pid, sig)
	}
}

func (n *node) process() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pid
}

// takeDown ends the server with a signal and keeps it down; it reports whether it ended in time.
func (n *node) takeDown(sig syscall.Signal, within time.Duration) bool {
	n.mu.Lock()
	n.down = true
	n.mu.Unlock()
	n.signal(sig)
	deadline := time.Now().Add(within)
	for n.process() != 0 {
		if time.Now().After(deadline) {
			n.signal(syscall.SIGKILL)
			return false
		}
		n.pause(context.Background())
	}
	return true
}

func (n *node) letUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// endedByItself says how the server ended without being told to.
func (n *node) endedByItself() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.ended...)
}

func (n *node) logSince(at int64) string {
	raw, err := os.ReadFile(n.log.Name())
	if err != nil || int64(len(raw)) < at {
		return ""
	}
	return string(raw[at:])
}

func fileSize(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// procFigures are a process' own figures; zero when it is not there.
type procFigures struct{ rssMiB, fds int }

func figuresOf(pid int) (f procFigures) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return f
	}
	for line := range strings.Lines(string(raw)) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(w[1])
			f.rssMiB = kb / 1024
		}
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		f.fds = len(fds)
	}
	return f
}
