package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// StartStandby makes a physical standby of a running cluster, with a slot of its own at it, and starts it. Roles and
// passwords are the primary's. Settings are added to the primary's.
func StartStandby(ctx context.Context, primary *Cluster, slot string, settings map[string]string) (*Cluster, error) {
	dir, err := makeDir("", primary.user)
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: primary.opts, dir: dir, password: primary.password, user: primary.user, standby: true}
	c.opts.Dir, c.opts.Settings = "", settings
	if err := c.fromBackup(ctx, primary, slot); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := c.startOnFreePort(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

// StartStandbyT starts a standby for one test and removes it at the test's end.
func StartStandbyT(t testing.TB, primary *Cluster, slot string, settings map[string]string) *Cluster {
	t.Helper()
	c, err := StartStandby(t.Context(), primary, slot, settings)
	if err != nil {
		t.Fatalf("start a standby: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *Cluster) fromBackup(ctx context.Context, primary *Cluster, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	passFile := filepath.Join(c.dir, "pass") // the standby reads it again at every connection
	if err := c.writeFile(passFile, fmt.Sprintf("127.0.0.1:%d:*:%s:%s\n", primary.port, c.opts.Superuser, c.password)); err != nil {
		return err
	}
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=disable passfile=%s", primary.port, c.opts.Superuser, passFile)
	out, err := runToEnd(ctx, c.user, c.dir, filepath.Join(c.BinDir(), "pg_basebackup"), "--pgdata", c.data(), "--dbname", source,
		"--write-recovery-conf", "--create-slot", "--slot", slot, "--checkpoint", "fast", "--no-sync")
	if err != nil {
		return fmt.Errorf("back up the primary: %w: %s", err, strings.TrimSpace(out))
	}
	// Before 17 the backup's connection does not name a database, which only the synchronisation of slots needs.
	var b strings.Builder
	b.WriteString("\nunix_socket_directories = '" + c.socketDir() + "'\n")
	for name, value := range c.opts.Settings {
		b.WriteString(name + " = '" + strings.ReplaceAll(value, "'", "''") + "'\n")
	}
	b.WriteString("primary_conninfo = 'host=127.0.0.1 port=" + strconv.Itoa(primary.port) + " user=" + c.opts.Superuser + " dbname=postgres sslmode=disable passfile=" + passFile + "'\n")
	settings := b.String()
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf"} { // the last line of the last file wins
		conf := filepath.Join(c.data(), name)
		old, err := os.ReadFile(conf)
		if err != nil {
			return fmt.Errorf("read the standby's configuration: %w", err)
		}
		if err := c.writeFile(conf, string(old)+settings); err != nil {
			return err
		}
	}
	return nil
}

// Promote makes a standby a server of its own, on a new timeline.
func (c *Cluster) Promote(ctx context.Context) error {
	return c.exec(ctx, "SELECT pg_promote(true, 60)")
}
