package main

import (
	"context"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// TestLoadThatEndsIsNoLoad: what was measured beside a pgbench that does not run any more has no figure, and one that cannot run is
// no load from the start.
func TestLoadThatEndsIsNoLoad(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const db = "loaded"
	at := pgcluster.StartT(t, pgcluster.Options{})
	if err := CreateDatabase(ctx, at, db); err != nil {
		t.Fatal(err)
	}
	if err := Exec(ctx, at.DSN(db), tpcbSchema, "INSERT INTO pgbench_branches VALUES (1, 0)"); err != nil {
		t.Fatal(err)
	}
	l, err := startLoad(ctx, at, db)
	if err != nil {
		t.Fatal(err)
	}
	r := &Run{}
	wait := func(ctx context.Context, _ *Run) error {
		before, err := l.committed(ctx)
		if err != nil {
			return err
		}
		return poll(ctx, loadBegins, pollEvery, "more is committed", func() (bool, error) {
			n, err := l.committed(ctx)
			return n > before, err
		})
	}
	if err := l.during(wait)(ctx, r); err != nil {
		t.Error(err)
	}
	if r.Values[loadReached] <= 0 {
		t.Errorf("the load reached %v", r.Values)
	}
	if err := l.stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}

	const ended = "pgbench ended before it was stopped"
	if l, err = startLoad(ctx, at, db); err != nil {
		t.Fatal(err)
	}
	killed := func(ctx context.Context, _ *Run) error {
		err := Exec(ctx, at.DSN("postgres"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'")
		<-l.done
		return err
	}
	if err := l.during(killed)(ctx, r); err == nil || !strings.Contains(err.Error(), ended) {
		t.Errorf("a turn whose load was killed: %v", err)
	}
	if err := l.stop(ctx); err == nil || !strings.Contains(err.Error(), ended) {
		t.Errorf("stop of what was killed: %v", err)
	}

	if err := Exec(ctx, at.DSN(db), "DROP TABLE pgbench_tellers"); err != nil {
		t.Fatal(err)
	}
	if _, err := startLoad(ctx, at, db); err == nil || !strings.Contains(err.Error(), ended) || !strings.Contains(err.Error(), "pgbench_tellers") {
		t.Errorf("a load that cannot run: %v", err)
	}
}
