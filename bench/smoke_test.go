package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
		// Of the packages that the tests compiled already: with other flags all that there are would be compiled once more.
		if err := buildRehome(context.Background(), program, "-ldflags=-s -w"); err != nil {
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

// smoke runs a benchmark with few rows and returns its report: everybody who is there has a figure in every case, which means that
// what they copied was compared and equal, and the report has a row of each that is wanted, and the parts.
func smoke(t *testing.T, targets int, known []Workload, want map[string][]string, parts []string, more ...string) (*Bench, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "RESULTS.md")
	o, err := parse(append([]string{"-scale", fmt.Sprint(smokeScale), "-rounds", "1", "-fsync=false", "-rehome", program, "-out", out}, more...), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	b, err := newBench(t.Context(), o, &said, targets, known)
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
	for _, part := range append([]string{"Aims", "Machine", "Datasets", "Commands"}, parts...) {
		if !strings.Contains(report, "\n## "+part) {
			t.Errorf("the report has no part %q", part)
		}
	}
	if at := strings.Index(report, "postgres://"); at >= 0 {
		t.Errorf("the report has a connection string: …%s", strings.SplitN(report[max(0, at-60):], ":", 2)[0])
	}
	for _, c := range b.Rig.clusters() {
		if exists(c.Dir()) {
			t.Errorf("%s is left behind", c.Dir())
		}
	}
	return b, report
}

// smokeScale is the fraction of the rows in a smoke test.
const smokeScale = 0.002

// TestSmoke runs what every workload is made of, once: the clusters, a copy by Rehome and others, a backlog that is drained, a
// verification at rest and under load, the report and its aims. TestSmokeOfAll, which is long, runs everything.
func TestSmoke(t *testing.T) {
	t.Parallel()
	a := DatasetA()
	known := []Workload{
		&copyWorkload{data: a, peers: []Copier{nativeCopier{}, dumpCopier{}}},
		&drainWorkload{only: "inserts"}, &verifyWorkload{data: a}, &memoryWorkload{},
	}
	large := drainCase(smallBacklogs(smokeScale)[1])
	copied := copyCase("A", 1)
	want := map[string][]string{
		copied:       {rehomeName, floorName, nativeCopier{}.Name()},
		large:        {nativeName, streamName, rehomeShards(1)},
		verifyAtRest: {rehomeName, digestName}, verifyLoaded: {rehomeName, digestName},
	}
	b, report := smoke(t, 1, known, want, []string{"A: ", "D: ", "F: ", "G: "}, "-contenders", "indexes after,streaming")
	// Whoever did not run is named with the reason, and each aim says of how many rounds it is.
	for _, line := range []string{
		"| " + copied + " | " + dumpCopier{}.Name() + " | not asked for |", "| " + large + " | " + binaryName + " | not asked for |",
		"| 1 of 1 | ", "met (n = 1)", "to one shard; to native with streaming ",
	} {
		if !strings.Contains(report, line) {
			t.Errorf("the report does not have %q", line)
		}
	}
	// The commands are those that ran.
	for _, line := range []string{
		"$TARGET1: CREATE SUBSCRIPTION \"d_text\" CONNECTION '$SOURCE' PUBLICATION bench WITH (slot_name = \"d_text\")\n",
		"$TARGET1: ALTER SUBSCRIPTION \"d_text\" DISABLE\n# the source has written the backlog\n$TARGET1: ALTER SUBSCRIPTION \"d_text\" ENABLE\n```",
		"rehome start-replication --from '$SOURCE' --to '$REHOME/d1' --include 'public.*'\n",
		"rehome pause-replication --db d1\n# the source has written the backlog\nrehome resume-replication --db d1\n```",
		"**" + large + ": " + backlogName + "**\n\n```\n$SOURCE: INSERT INTO bulk SELECT ", "-- $1 = 1000, $2 = 2000\n",
		"$SOURCE and $TARGET1, at once: SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM \"documents\" t\n",
	} {
		if !strings.Contains(report, line) {
			t.Errorf("the report does not have %q", line)
		}
	}
	if _, commands, _ := strings.Cut(report, "\n## Commands\n"); strings.Contains(commands, "…") {
		t.Errorf("the commands are not those that ran:\n%s", commands)
	}
	if got := b.Results.Spread(verifyLoaded, rehomeName, Value(loadReached)); got.Median <= 0 {
		t.Errorf("verified under a load of %v", got)
	}
}

// TestSmokeOfAll runs the whole benchmark, with the peers that are there.
func TestSmokeOfAll(t *testing.T) {
	t.Parallel()
	if os.Getenv("REHOME_LONG") == "" {
		return // a minute of CPU time: make long runs it
	}
	want := map[string][]string{
		copyCase("A", 1): {rehomeName, floorName, nativeCopier{}.Name(), nativeCopier{inPlace: true}.Name(), dumpCopier{}.Name()},
		copyCase("A", 2): {rehomeName}, copyCase("A", 3): {rehomeName},
		copyCase("B", 1): {rehomeName, floorName, nativeCopier{}.Name(), dumpCopier{}.Name()},
		copyCase("C", 1): {rehomeName, floorName, nativeCopier{}.Name(), dumpCopier{}.Name()},
		verifyAtRest:     {rehomeName, digestName}, verifyLoaded: {rehomeName, digestName},
	}
	for _, l := range append(smallBacklogs(smokeScale), tpcbBacklog(smokeScale)) {
		want[drainCase(l)] = []string{nativeName, readerName, decoderName, rehomeShards(1)}
	}
	want[latencyCase] = []string{nativeName, rehomeShards(1)}
	for _, l := range limits {
		want[limitsCase] = append(want[limitsCase], l.name)
	}
	b, report := smoke(t, targetsMax, all(), want, []string{"A: ", "B: ", "C: ", "D: ", "E: ", "F: ", "G: ", "growth: "})
	// Whoever did not run is named with the reason.
	for _, c := range []Copier{pgcopydbCopier{jobs: jobs}, pglogicalCopier{}} {
		if len(b.Results.Good(copyCase("A", 1), c.Name())) == 0 && !strings.Contains(report, "| "+copyCase("A", 1)+" | "+c.Name()+" |") {
			t.Errorf("the report does not say why %s did not run", c.Name())
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
	one := pgcluster.StartT(t, pgcluster.Options{}) // which is source and target: a third of the work
	b.Rig = &Rig{Dir: t.TempDir(), Source: one, Control: one, Targets: []*pgcluster.Cluster{one}}
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
