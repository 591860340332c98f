package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// Names of workload F in the samples.
const (
	verifyAtRest   = "F, at rest"
	verifyLoaded   = "F, under load"
	digestName     = "SELECT count(*), sum(hash) over both sides"
	verifiedRows   = "rows"
	afterPrepareDB = "bench_F"
)

// verifyWorkload compares dataset A with a copy of it that Rehome keeps in step: at rest, and while pgbench writes to the source.
type verifyWorkload struct{ data *Dataset }

func (w *verifyWorkload) ID() string { return "F" }

// Prepare makes a database of its own: the load changes it.
func (w *verifyWorkload) Prepare(ctx context.Context, b *Bench) error {
	if err := w.data.Load(ctx, b); err != nil {
		return err
	}
	options := ""
	if w.data.source.Version() >= 15 {
		options = " STRATEGY file_copy" // else 15 and later write all of it to the log
	}
	return Exec(ctx, b.Rig.Source.DSN("postgres"), "CREATE DATABASE "+tenant.QuoteIdent(afterPrepareDB)+" TEMPLATE "+tenant.QuoteIdent(w.data.dbName())+options)
}

func (w *verifyWorkload) Round(ctx context.Context, b *Bench, round int) error {
	source, target := b.Rig.Source.DSN(afterPrepareDB), b.Rig.Targets[0]
	return b.Hold(ctx, verifyAtRest, rehomeName, round, func(ctx context.Context, hold *Run) error {
		hold.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, target, TargetDB) })
		s, err := StartServer(ctx, hold, target)
		if err != nil {
			return err
		}
		if err := s.Replicate(ctx, source, nil, w.data.Realm...); err != nil {
			return err
		}
		if err := s.WaitPhase(ctx, tenant.InSync); err != nil {
			return err
		}
		if err := w.both(ctx, b, round, s, nil); err != nil {
			return err
		}
		return b.Hold(ctx, verifyLoaded, rehomeName, round, func(ctx context.Context, _ *Run) error {
			load, err := startLoad(ctx, b.Rig.Source, afterPrepareDB)
			if err != nil {
				return err
			}
			return errors.Join(w.both(ctx, b, round, s, load), load.stop(ctx))
		})
	})
}

// both lets the two contenders have their turn, in an order that changes from round to round; at rest, or under a load.
func (w *verifyWorkload) both(ctx context.Context, b *Bench, round int, s *Server, load *sourceLoad) error {
	inCase := verifyAtRest
	turns := map[string]func(context.Context, *Run) error{
		rehomeName: func(ctx context.Context, r *Run) error { return w.verify(ctx, r, s) },
		digestName: func(ctx context.Context, r *Run) error {
			return w.digest(ctx, r, b.Rig.Source.DSN(afterPrepareDB), b.Rig.Targets[0].DSN(TargetDB))
		},
	}
	if load != nil {
		inCase = verifyLoaded
		for name, turn := range turns {
			turns[name] = load.during(turn)
		}
	}
	for _, name := range Rotate([]string{rehomeName, digestName}, round) {
		if err := b.Turn(ctx, inCase, name, round, turns[name], nil); err != nil {
			return err
		}
	}
	return nil
}

func (w *verifyWorkload) verify(ctx context.Context, r *Run, s *Server) error {
	s.Use(r)
	if err := r.Begin(); err != nil {
		return err
	}
	r.Note("rehome verify")
	v, err := CLIJSON[tenant.Verification](ctx, s, "verify")
	if err != nil {
		return err
	}
	if err := r.End(); err != nil {
		return err
	}
	if !v.Clean || v.Rows < w.data.Rows() {
		return fmt.Errorf("the verification found %d rows of %d, clean: %t", v.Rows, w.data.Rows(), v.Clean)
	}
	r.Set(verifiedRows, float64(v.Rows))
	return nil
}

// digest reads every table on one session at each side, both at once.
func (w *verifyWorkload) digest(ctx context.Context, r *Run, source, target tenant.DSN) error {
	if err := r.Begin(); err != nil {
		return err
	}
	for _, t := range w.data.Tables {
		r.Note("$SOURCE and $TARGET1, at once: " + digestSQL(t))
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, dsn := range []tenant.DSN{source, target} {
		g.Go(func() error {
			c, err := pgx.Connect(ctx, dsn.Reveal())
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			defer c.Close(context.WithoutCancel(ctx))
			for _, t := range w.data.Tables {
				var d Digest
				if err := c.QueryRow(ctx, digestSQL(t)).Scan(&d.Rows, &d.Sum); err != nil {
					return fmt.Errorf("read table %s: %w", t, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return r.End()
}

// Report implements Workload.
func (w *verifyWorkload) Report(r *Results) []Section {
	s := Section{
		Title: "F: verification of A",
		Text:  fmt.Sprintf("`rehome verify` compares every row at one position. The measure is `%s` of every table, on one session at each side, both at once. Under load: pgbench's TPC-B at the source, which is asked for %d transactions a second; load txn/s is what it committed meanwhile.", digestSQL("t"), loadPerSecond),
		Head:  []string{"", "contender", ">wall s", ">x measure", ">CPU tool", ">source", ">target", ">load txn/s", ">n"},
	}
	for _, inCase := range []string{verifyAtRest, verifyLoaded} {
		for _, name := range []string{rehomeName, digestName} {
			wall := r.Spread(inCase, name, Wall)
			if wall.N == 0 {
				continue
			}
			cpu, loaded := func(f Figure) string { return r.Spread(inCase, name, f).Middle() }, ""
			if inCase == verifyLoaded {
				loaded = r.Spread(inCase, name, Value(loadReached)).String()
			}
			s.Rows = append(s.Rows, []string{
				inCase, name, wall.String(), r.Ratio(inCase, name, Wall, inCase, digestName, Wall).String(),
				cpu(func(s Sample) float64 { return s.CPU.Tool + s.CPU.Control }), cpu(func(s Sample) float64 { return s.CPU.Source }), cpu(func(s Sample) float64 { return s.CPU.Targets }), loaded, fmt.Sprint(wall.N),
			})
		}
	}
	return []Section{s}
}

// Aims implements Workload.
func (w *verifyWorkload) Aims(r *Results) []Aim {
	return []Aim{{
		What: "verify A at rest", Bound: "≤ 1.5 × reading both sides side by side", Limit: 1.5,
		Measured: r.Ratio(verifyAtRest, rehomeName, Wall, verifyAtRest, digestName, Wall),
	}}
}
