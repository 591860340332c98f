package pgcluster

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// firstPort and lastPort lie below the usual range of ephemeral ports (32768 and up on Linux), so that no outgoing
	// connection takes the port of a server that is just being restarted.
	firstPort, lastPort = 15000, 31999
	// socketPathMax is what a socket address holds on the narrowest system (macOS: 104 bytes with the final zero).
	socketPathMax = 103
	// sweepAfter spares the directories of clusters that are just being started by others.
	sweepAfter = 2 * time.Minute
	dirPrefix  = "rehome-pg-"
)

var errPortTaken = errors.New("port is taken")

// runAs is the account that the server runs under when we are root.
type runAs struct{ uid, gid uint32 }

// serverUser is nil unless we are root.
func serverUser() (*runAs, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // no other account is needed
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read the id of user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read the group of user %s: %w", name, err)
		}
		return &runAs{uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("postgres refuses to run as root, and there is neither a user postgres nor nobody; run as another user")
}

// makeDir makes the cluster's directory, owned by whom the server runs as.
func makeDir(dir string, as *runAs) (string, error) {
	if dir == "" {
		bases := temporaryDirs()
		sweep(bases[0])
		scratch, err := scratchDir()
		if err != nil {
			return "", err
		}
		if scratch != "" {
			sweep(scratch)
			bases = []string{scratch}
		}
		made, err := tempDir(bases, as)
		if err != nil && scratch != "" {
			return "", fmt.Errorf("use %s=%s, which the account that Postgres runs under must be able to enter: %w", ScratchEnv, scratch, err)
		}
		if err != nil {
			return "", fmt.Errorf("%w; TMPDIR names another", err)
		}
		dir = made
	} else {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("make the cluster's directory: %w", err)
		}
		dir = abs
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the server's account must reach it
			return "", fmt.Errorf("make the cluster's directory: %w", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			return "", fmt.Errorf("the cluster's directory %s is not empty: %w", dir, errors.Join(err, os.ErrExist))
		}
		if as != nil && !reachable(dir) {
			return "", fmt.Errorf("the account that Postgres runs under cannot enter %s: %w", dir, os.ErrPermission)
		}
	}
	if as != nil {
		if err := os.Chown(dir, int(as.uid), int(as.gid)); err != nil {
			return "", fmt.Errorf("give the cluster's directory away: %w", err)
		}
	}
	return dir, nil
}

// temporaryDirs are the places for a cluster, the first that its account can reach.
func temporaryDirs() []string { return []string{os.TempDir(), "/tmp", "/var/tmp"} }

// tempDir makes a directory in the first of several that the server's account can reach: TMPDIR may be root's own.
func tempDir(bases []string, as *runAs) (string, error) {
	pattern := fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())
	for _, base := range bases {
		if as != nil && !reachable(base) {
			continue
		}
		dir, err := os.MkdirTemp(base, pattern)
		if err != nil {
			return "", fmt.Errorf("make the cluster's directory: %w", err)
		}
		return dir, nil
	}
	return "", fmt.Errorf("no temporary directory that another user than root can enter: %w", os.ErrPermission)
}

// reachable reports whether everyone may enter a directory and all that are above it.
func reachable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// sweep removes directories of clusters whose process is gone without having tidied up.
func sweep(base string) {
	found, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range found {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || alive(pid) || alive(postmasterPid(filepath.Join(dir, "data"))) {
			continue
		}
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < sweepAfter {
			continue
		}
		_ = os.RemoveAll(dir) // another process may be sweeping too
	}
}

func alive(pid int) bool {
	return pid > 0 && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// freePort returns a port that was free a moment ago.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1) //nolint:gosec // a port is no secret
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("look for a free port: %w", err)
		}
		return port, nil
	}
	return 0, fmt.Errorf("look for a free port: %w", last)
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// socketDir is the cluster's directory, or none where its path is too long for a socket.
func (c *Cluster) socketDir() string {
	if len(c.dir)+len("/.s.PGSQL.65535") > socketPathMax || strings.ContainsAny(c.dir, `,"`) {
		return ""
	}
	return c.dir
}

func (c *Cluster) writeFile(path, content string) error {
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if c.user != nil {
		if err := os.Chown(path, int(c.user.uid), int(c.user.gid)); err != nil {
			return fmt.Errorf("give %s away: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// postmaster.pid's lines: the pid is the first, the state ("starting", "ready", …) the eighth; see miscadmin.h,
// LOCK_FILE_LINE_PM_STATUS. pg_ctl waits in the same way.
const statusLine = 7

func pidFile(data string) []string {
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return nil
	}
	return strings.Split(string(b), "\n")
}

func postmasterPid(data string) int {
	lines := pidFile(data)
	if len(lines) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return 0
	}
	return pid
}

// ready reports whether the server with that pid accepts connections. A file of an earlier, killed server names
// another pid.
func (c *Cluster) ready(pid int) bool {
	lines := pidFile(c.data())
	if len(lines) <= statusLine || strings.TrimSpace(lines[0]) != strconv.Itoa(pid) {
		return false
	}
	status := strings.TrimSpace(lines[statusLine])
	return status == "ready" || (c.standby && status == "standby")
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// logSince is what the server logged after an offset, at most 8 KB.
func (c *Cluster) logSince(offset int64) string {
	f, err := os.Open(c.LogFile())
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // opened for reading
	b, err := io.ReadAll(io.NewSectionReader(f, offset, 8<<10))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
