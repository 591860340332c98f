package pgcluster

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestScratch: clusters are copies of one template, but have data, an identifier and settings of their own.
func TestScratch(t *testing.T) { // not parallel: it sets the process's environment
	user, err := serverUser()
	if err != nil {
		t.Fatal(err)
	}
	scratch, err := tempDir(temporaryDirs(), user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(scratch); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(ScratchEnv, scratch)

	seen := map[string]bool{}
	for _, opts := range []Options{{}, {}, {Fsync: true}, {Superuser: "other"}, {InitArgs: []string{"--wal-segsize=1"}}} {
		c, err := Start(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Remove() })
		if !strings.HasPrefix(c.Dir(), scratch) {
			t.Errorf("%+v: lives in %s", opts, c.Dir())
		}
		if err := c.Restart(t.Context()); err != nil { // which reads what the first start wrote
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), c.DSN("postgres").Reveal())
		if err != nil {
			t.Fatal(err)
		}
		var id, user, fsync string
		if _, err := conn.Exec(t.Context(), "CREATE TABLE mine (a int)"); err != nil {
			t.Fatal(err)
		}
		const sql = "SELECT system_identifier::text, current_user::text, current_setting('fsync') FROM pg_control_system()"
		if err := conn.QueryRow(t.Context(), sql).Scan(&id, &user, &fsync); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if seen[id] || id == "" {
			t.Errorf("%+v: the identifier %q is another's", opts, id)
		}
		seen[id] = true
		if want := map[bool]string{true: "on", false: "off"}[opts.Fsync]; fsync != want {
			t.Errorf("%+v: fsync is %s", opts, fsync)
		}
		if want := cmp.Or(opts.Superuser, "rehome_admin"); user != want {
			t.Errorf("the superuser is %s, want %s", user, want)
		}
		if _, err := pgx.Connect(t.Context(), c.DSNAs(user, "wrong", "postgres").Reveal()); err == nil || !strings.Contains(err.Error(), "28P01") {
			t.Errorf("%+v: a wrong password gives %v, want 28P01", opts, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(scratch, "making-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if made, _ := filepath.Glob(filepath.Join(scratch, "template-*")); len(made) != 3 {
		t.Errorf("templates: %v, want one for each way of making them", made)
	}
}

// TestScratchOfOnesOwn: it may be named relatively, killed runs' clusters are swept there, and an error names the variable.
func TestScratchOfOnesOwn(t *testing.T) { // not parallel: it sets the process's environment
	user, err := serverUser()
	if err != nil {
		t.Fatal(err)
	}
	base, err := tempDir(temporaryDirs(), user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	killed := filepath.Join(base, "mine", fmt.Sprintf("%s%d-1", dirPrefix, math.MaxInt32)) // above any system's pid_max
	if err := os.MkdirAll(killed, 0o755); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * sweepAfter)
	if err := os.Chtimes(killed, long, long); err != nil {
		t.Fatal(err)
	}

	t.Setenv(ScratchEnv, "mine")
	c, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Remove() })
	if want := filepath.Join(base, "mine"); filepath.Dir(c.Dir()) != want {
		t.Errorf("lives in %s, want in %s", c.Dir(), want)
	}
	if _, err := os.Stat(killed); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a killed run's cluster is left: %v", err)
	}

	t.Setenv(ScratchEnv, "missing")
	if _, err := Start(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), ScratchEnv+"="+filepath.Join(base, "missing")) {
		t.Errorf("%v, want an error that names %s", err, ScratchEnv)
	}
}
