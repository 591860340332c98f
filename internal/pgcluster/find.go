package pgcluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// BinDirEnv names the environment variable with further folders of Postgres binaries, separated like PATH.
const BinDirEnv = "REHOME_PG_BINDIR"

// ErrNoPostgres says that no Postgres server binaries were found; the message says what to install.
var ErrNoPostgres = errors.New("no Postgres server found (initdb, postgres); install it: " +
	"`apt-get install postgresql` on Debian or Ubuntu, `dnf install postgresql-server` on Fedora, " +
	"`brew install postgresql` on macOS; or name its folder of binaries in " + BinDirEnv)

// Install is one installed version of Postgres.
type Install struct {
	Version int    // major version: 15
	BinDir  string // the folder that holds initdb and postgres
}

// usualPlaces are where packagers put versions side by side.
var usualPlaces = [...]string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // packages of the PGDG for RPM
	"/usr/local/pgsql/bin",      // built from source
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
}

// Find lists the installed versions, newest first: the folders of REHOME_PG_BINDIR, the one that pg_config names, the
// usual places of packages, and PATH. It returns ErrNoPostgres when there is none.
func Find() ([]Install, error) {
	dirs := filepath.SplitList(os.Getenv(BinDirEnv))
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range usualPlaces {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for Postgres in %s: %w", pattern, err)
		}
		dirs = append(dirs, found...)
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(initdb); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}

	seen := map[string]bool{}
	var installs []Install
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		if seen[dir] {
			continue
		}
		seen[dir] = true
		if version, err := serverVersion(dir); err == nil {
			installs = append(installs, Install{Version: version, BinDir: dir})
		}
	}
	if len(installs) == 0 {
		return nil, ErrNoPostgres
	}
	slices.SortStableFunc(installs, func(a, b Install) int { return cmp.Compare(b.Version, a.Version) })
	return installs, nil
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// serverVersion is the major version of the server in a folder of binaries.
func serverVersion(dir string) (int, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return 0, fmt.Errorf("look for initdb: %w", err)
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output() //nolint:gosec // the folder is the operator's own choice
	if err != nil {
		return 0, fmt.Errorf("ask postgres for its version: %w", err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%q does not name a version", strings.TrimSpace(string(out)))
	}
	return strconv.Atoi(string(m[1]))
}
