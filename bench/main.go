package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends at once
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// Options are the flags.
type Options struct {
	Workloads  []string
	Contenders []string // parts of names; empty: all
	Rounds     int
	Scale      float64 // fraction of the rows
	Out        string
	Raw        string // samples as JSON lines; "" none
	Rehome     string // the program under test; "" builds it
	Dir        string // where clusters live; "" the temporary directory
	Keep       bool
	Fsync      bool          // as in production
	Limit      time.Duration // no round of a workload begins after it
	// LatencySeconds is for how long E measures each contender in a round, at scale 1.
	LatencySeconds int
	PeerLimit      float64 // peers that were slower than so many times the best peer in two rounds rest; 0: none rests
}

// all are the workloads in the order of the report.
func all() []Workload {
	a := DatasetA()
	few := []Copier{nativeCopier{}, nativeCopier{binary: true}, pgcopydbCopier{jobs: jobs}, dumpCopier{}}
	every := append(slices.Clone(few), nativeCopier{inPlace: true}, nativeCopier{binary: true, inPlace: true}, pgcopydbCopier{jobs: 2 * jobs}, pglogicalCopier{})
	return []Workload{
		&copyWorkload{data: a, peers: every, targets: []int{2, 3}, limited: true},
		&copyWorkload{data: DatasetB(), peers: few, targets: []int{3}, odd: true},
		&copyWorkload{data: DatasetC(), peers: few, odd: true},
		&drainWorkload{}, &latencyWorkload{},
		&verifyWorkload{data: a},
		&memoryWorkload{}, &growthWorkload{},
	}
}

func parse(args []string, errs io.Writer) (Options, error) {
	var o Options
	var workloads, contenders string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.StringVar(&workloads, "workloads", "", "only these, separated by commas (default: all)")
	fs.StringVar(&contenders, "contenders", "", "only those whose name contains one of these, separated by commas; Rehome and the floor always run")
	fs.IntVar(&o.Rounds, "rounds", enoughRounds, "how often each contender runs")
	fs.Float64Var(&o.Scale, "scale", 1, "fraction of the rows")
	fs.StringVar(&o.Out, "out", "bench/RESULTS.md", "the report")
	fs.StringVar(&o.Raw, "raw", "", "also write every sample to this file, as JSON lines")
	fs.StringVar(&o.Rehome, "rehome", "", "the program under test (default: built from this module)")
	fs.StringVar(&o.Dir, "dir", "", "where the clusters live: some 15 GB at scale 1 (default: the temporary directory)")
	fs.BoolVar(&o.Fsync, "fsync", true, "servers flush to disk, as in production; off only to try things out")
	fs.BoolVar(&o.Keep, "keep", false, "leave logs and the working directory behind")
	fs.DurationVar(&o.Limit, "limit", 0, "begin no round of a workload that would end after this time, as far as its last round tells (default: none)")
	fs.IntVar(&o.LatencySeconds, "latency-seconds", latencySeconds, "for how long E measures each contender in a round, in seconds, at scale 1")
	fs.Float64Var(&o.PeerLimit, "rest", 1.15, "a peer that took this many times as long as the best peer in two rounds rests from then on; 0: none does")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 || o.Rounds < 1 || o.Scale <= 0 || o.LatencySeconds < 1 {
		return o, fmt.Errorf("bad arguments: %s", strings.Join(args, " "))
	}
	o.Workloads, o.Contenders = split(workloads), split(contenders)
	return o, nil
}

func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(p string) bool { return p == "" })
}

// run is the program; it returns the exit code. An interrupted run writes what it has.
func run(ctx context.Context, args []string, out io.Writer) int {
	o, err := parse(args, out)
	if err != nil {
		_, _ = fmt.Fprintln(out, err)
		return 2
	}
	b, err := New(ctx, o, out)
	if err == nil {
		err = errors.Join(b.Run(ctx), b.Write())
	}
	if err != nil {
		_, _ = fmt.Fprintln(out, "bench:", err)
		return 1
	}
	return 0
}
