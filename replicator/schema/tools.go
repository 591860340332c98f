package schema

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// binDirEnv names folders of Postgres binaries to look into first, separated like PATH.
const binDirEnv = "REHOME_PG_BINDIR"

// binDirs are where packages put Postgres' binaries, as globs. Debian's /usr/bin/pg_dump is a wrapper, found on PATH.
var binDirs = [...]string{
	"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/usr/libexec/postgresql*",
	"/opt/homebrew/opt/postgresql@*/bin", "/opt/homebrew/opt/libpq/bin", "/usr/local/opt/postgresql@*/bin", "/usr/local/opt/libpq/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// newestPgDump is the newest one whose archives are known to be understood; a newer one is taken only where there is none
// else.
const newestPgDump = 18

// versionTimeout bounds `pg_dump --version`. A program that has to be read from a busy disk by a busy machine may take many
// seconds; one that says nothing for so long hangs.
const versionTimeout = 30 * time.Second

var versionRE = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// Tools is a pg_dump.
type Tools struct {
	PgDump string // path
	Major  int    // its major version
}

// FindTools finds the newest pg_dump of REHOME_PG_BINDIR, the places of packages and PATH, the first of several that are as
// new; a script on PATH counts only where nothing else serves (see candidates). It refuses one that is older than the server
// (a server_version_num, e.g. 150004; 0: any): pg_dump cannot read a newer server. The error is KindRefused, code
// pg-dump-missing or pg-dump-too-old; or KindUnavailable, code pg-dump-slow, where none serves but one did not answer.
func FindTools(ctx context.Context, serverVersion int) (Tools, error) {
	programs, wrappers := candidates()
	f := finder{patience: versionTimeout}
	return f.find(ctx, serverVersion/10000, programs, wrappers)
}

// finder asks programs for their version.
type finder struct {
	patience time.Duration // with each
	slow     string        // one that could not say its version in time; ""
}

func (f *finder) find(ctx context.Context, need int, programs, wrappers []string) (Tools, error) {
	best := f.newest(ctx, Tools{}, programs)
	if best.Major == 0 || best.Major < need || best.Major > newestPgDump {
		best = f.newest(ctx, best, wrappers)
	}
	switch {
	case ctx.Err() != nil:
		return Tools{}, fmt.Errorf("look for pg_dump: %w", context.Cause(ctx))
	case best.Major < max(need, 1) && f.slow != "":
		// It may be the one that serves: nobody knows until it answers.
		return Tools{}, &tenant.Error{
			Kind: tenant.KindUnavailable, Code: "pg-dump-slow",
			Message: fmt.Sprintf("%s --version did not answer within %s", f.slow, f.patience),
			Hint:    "the machine may be overloaded; see whether the program answers, or name the folder of another in " + binDirEnv,
		}
	case best.Major == 0:
		return Tools{}, &tenant.Error{
			Kind: tenant.KindRefused, Code: "pg-dump-missing", Message: "pg_dump is not installed here",
			Hint: "install a Postgres client of version " + orNewer(need) + " or name its folder in " + binDirEnv,
		}
	case best.Major < need:
		return Tools{}, &tenant.Error{
			Kind: tenant.KindRefused, Code: "pg-dump-too-old",
			Message: fmt.Sprintf("the newest pg_dump here is %d, the source is Postgres %d", best.Major, need),
			Hint:    "install a Postgres client of version " + orNewer(need) + " or name its folder in " + binDirEnv,
		}
	}
	return best, nil
}

// newest is the best of those at paths and one that is known.
func (f *finder) newest(ctx context.Context, best Tools, paths []string) Tools {
	for _, path := range paths {
		if ctx.Err() != nil {
			break
		}
		major, err := majorVersion(ctx, path, f.patience)
		if errors.Is(err, errSlow) {
			f.slow = path
		}
		if err != nil || major == best.Major {
			continue
		}
		known, bestKnown := major <= newestPgDump, best.Major > 0 && best.Major <= newestPgDump
		if (known == bestKnown && major > best.Major) || (known && !bestKnown) {
			best = Tools{PgDump: path, Major: major}
		}
	}
	return best
}

func orNewer(major int) string {
	if major == 0 {
		return "13 or newer"
	}
	return strconv.Itoa(major) + " or newer"
}

// candidates are the programs, in the order in which they are preferred, and the wrappers: scripts on PATH, which like
// Debian's choose one of the programs and take longer to say its version than it takes to dump a small schema. A script in a
// folder that was named deliberately, or where a package put it, is a program like others.
func candidates() (programs, wrappers []string) {
	dirs := filepath.SplitList(os.Getenv(binDirEnv))
	for _, g := range binDirs {
		found, _ := filepath.Glob(g)
		dirs = append(dirs, found...)
	}
	named := len(dirs)
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	for i, d := range dirs {
		p := filepath.Join(d, "pg_dump")
		st, err := os.Stat(p)
		switch {
		case err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 || !filepath.IsAbs(p):
		case i >= named && isScript(p):
			wrappers = append(wrappers, p)
		default:
			programs = append(programs, p)
		}
	}
	return programs, wrappers
}

func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // opened for reading
	var start [2]byte
	_, err = io.ReadFull(f, start[:])
	return err == nil && string(start[:]) == "#!"
}

// errSlow says that a program could not be asked now.
var errSlow = errors.New("it did not answer")

func majorVersion(ctx context.Context, path string, patience time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = killWait // a script that is killed leaves the program that it runs, with its output
	out, err := cmd.Output()
	if ctx.Err() != nil || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		return 0, fmt.Errorf("%w: %w", errSlow, err)
	}
	if err != nil {
		return 0, err
	}
	m := versionRE.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s: unknown version", path)
	}
	return strconv.Atoi(string(m[1]))
}
