package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// program is Rehome, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "rehome-bench-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a directory of the tests
		program = filepath.Join(dir, "rehome")
		if err := buildRehome(context.Background(), program); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// thief copies with the floor's means and loses one row.
type thief struct{}

func (thief) Name() string { return "thief" }

func (thief) Missing(context.Context, *Rig) string { return "" }

func (thief) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	return errors.Join(floorCopier{}.Copy(ctx, r, d, targets), Exec(ctx, targets[0].DSN(TargetDB), "DELETE FROM items WHERE id = 77"))
}

// forgetful copies with the floor's means and forgets an index.
type forgetful struct{}

func (forgetful) Name() string { return "forgetful" }

func (forgetful) Missing(context.Context, *Rig) string { return "" }

func (forgetful) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	return errors.Join(floorCopier{}.Copy(ctx, r, d, targets), Exec(ctx, targets[0].DSN(TargetDB), "DROP INDEX items_created"))
}

// TestSmoke runs the whole benchmark with few rows: everybody who is there has a figure in every case, which means that what they
// copied was compared and equal, and the report has a row of each. With REHOME_LONG it also runs the peers that must be installed.
func TestSmoke(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "RESULTS.md")
	args := []string{"-scale", "0.002", "-rounds", "1", "-fsync=false", "-rehome", program, "-out", out}
	if os.Getenv("REHOME_LONG") == "" {
		args = append(args, "-contenders", "native,pg_dump,pg_recvlogical")
	}
	o, err := parse(args, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	b, err := New(t.Context(), o, &said)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(b.Run(t.Context()), b.Write())
	t.Logf("\n%s", said.String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	report := string(raw)
	for _, s := range b.Results.Samples {
		if s.Failed != "" {
			t.Errorf("%s, %s has no figure: %s", s.Case, s.Contender, s.Failed)
		}
	}
	want := map[string][]string{
		copyCase("A", 1): {rehomeName, floorName, nativeCopier{}.Name(), nativeCopier{inPlace: true}.Name(), dumpCopier{}.Name()},
		copyCase("A", 2): {rehomeName}, copyCase("A", 3): {rehomeName},
		copyCase("B", 1): {rehomeName, floorName, nativeCopier{}.Name(), dumpCopier{}.Name()},
		copyCase("C", 1): {rehomeName, floorName, nativeCopier{}.Name(), dumpCopier{}.Name()},
		verifyAtRest:     {rehomeName, digestName}, verifyLoaded: {rehomeName, digestName},
	}
	for _, l := range append(smallBacklogs(o.Scale), tpcbBacklog(o.Scale)) {
		want[drainCase(l)] = []string{nativeName, readerName, rehomeShards(1)}
	}
	want[latencyCase] = []string{nativeName, rehomeShards(1)}
	for _, l := range limits {
		want[limitsCase] = append(want[limitsCase], l.name)
	}
	for inCase, names := range want {
		for _, name := range names {
			if len(b.Results.Good(inCase, name)) != 1 {
				t.Errorf("%s, %s: no figure", inCase, name)
			}
			if !strings.Contains(report, "| "+name+" |") {
				t.Errorf("the report has no row of %s", name)
			}
		}
	}
	// Whoever did not run is named with the reason.
	for _, c := range []Copier{pgcopydbCopier{jobs: jobs}, pglogicalCopier{}} {
		if len(b.Results.Good(copyCase("A", 1), c.Name())) == 0 && !strings.Contains(report, "| "+copyCase("A", 1)+" | "+c.Name()+" |") {
			t.Errorf("the report does not say why %s did not run", c.Name())
		}
	}
	for _, letter := range []string{"A: ", "B: ", "C: ", "D: ", "E: ", "F: ", "G: ", "growth: ", "Aims", "Machine", "Datasets", "Commands"} {
		if !strings.Contains(report, "\n## "+letter) {
			t.Errorf("the report has no part %q", letter)
		}
	}
	if at := strings.Index(report, "postgres://"); at >= 0 {
		t.Errorf("the report has a connection string: …%s", strings.SplitN(report[max(0, at-60):], ":", 2)[0])
	}
	for _, c := range append([]*pgcluster.Cluster{b.Rig.Source, b.Rig.Control}, b.Rig.Targets...) {
		if exists(c.Dir()) {
			t.Errorf("%s is left behind", c.Dir())
		}
	}
}

// TestWhoLosesSomethingHasNoFigure also shows that the clean-up leaves nothing for the next turn, whatever happened.
func TestWhoLosesSomethingHasNoFigure(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-scale", "0.002", "-rounds", "1", "-rehome", program, "-out", filepath.Join(t.TempDir(), "RESULTS.md")}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bench{Options: o, Results: &Results{}, out: &bytes.Buffer{}}
	b.Rig = &Rig{Dir: t.TempDir(), Source: pgcluster.StartT(t, pgcluster.Options{}), Control: pgcluster.StartT(t, pgcluster.Options{})}
	b.Rig.Targets = []*pgcluster.Cluster{pgcluster.StartT(t, pgcluster.Options{})}
	w := &copyWorkload{data: DatasetB()}
	if err := w.Prepare(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	inCase := copyCase("B", 1)
	for _, c := range []Copier{thief{}, forgetful{}, floorCopier{}} {
		if err := w.turn(t.Context(), b, 1, copyTurn{c, 1}); err != nil {
			t.Fatal(err)
		}
	}
	for name, why := range map[string]string{"thief": "the data differ: table items has 9999 rows", "forgetful": "the schema differs"} {
		if got := b.Results.Failures(inCase, name); len(got) != 1 || !strings.Contains(got[0], why) {
			t.Errorf("%s: %q, want %q", name, got, why)
		}
		if len(b.Results.Good(inCase, name)) != 0 {
			t.Errorf("%s has a figure", name)
		}
	}
	s, ok := b.Results.Good(inCase, floorName)[1]
	if !ok {
		t.Fatalf("the floor has no figure: %v", b.Results.Failures(inCase, floorName))
	}
	if s.CPU.Tool <= 0 || s.CPU.Source < 0 || s.CPU.Targets < 0 || s.Seconds <= 0 {
		t.Errorf("the floor's figures: %+v", s)
	}
	if there, err := Scalar[bool](t.Context(), b.Rig.Targets[0].DSN("postgres"), `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, TargetDB); err != nil || there {
		t.Errorf("the database of the last turn is left: %t, %v", there, err)
	}
}

func TestNoSecretIsNoted(t *testing.T) {
	t.Parallel()
	r := &Run{}
	dsn := tenant.DSN("postgres://u:geheim@127.0.0.1:5432/db?sslmode=disable")
	r.Name(dsn, "$SOURCE")
	r.Note("psql '" + dsn.Reveal() + "' 'postgresql://somebody:else@h/x'")
	if got := r.commands[0]; got != "psql '$SOURCE' '$DATABASE'" {
		t.Errorf("noted %s", got)
	}
}
