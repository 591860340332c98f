package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// Measures of the load under which F verifies.
const (
	loadPerSecond = 300 // transactions of pgbench's TPC-B a second that are asked for
	loadClients   = 4
	loadAtMost    = 10 * time.Minute
	loadBegins    = 30 * time.Second
	loadReached   = "load txn/s" // that were committed
)

// sourceLoad is pgbench, which writes to a database until it is stopped.
type sourceLoad struct {
	cancel context.CancelFunc
	watch  *pgx.Conn
	done   chan struct{}
	err    error // how pgbench ended; after done
	said   strings.Builder
}

// startLoad starts pgbench against a database with the tables of TPC-B. It returns when a first transaction is committed.
func startLoad(ctx context.Context, at *pgcluster.Cluster, database string) (l *sourceLoad, err error) {
	watch, err := dial(ctx, at.DSN(database))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = watch.Close(context.WithoutCancel(ctx))
		}
	}()
	l = &sourceLoad{watch: watch, done: make(chan struct{})}
	// At a smaller scale many of the accounts that it chooses are not there: it then updates none.
	var branches string
	if err := watch.QueryRow(ctx, "SELECT count(*)::text FROM pgbench_branches").Scan(&branches); err != nil {
		return nil, fmt.Errorf("count the branches: %w", err)
	}
	before, err := l.committed(ctx)
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx)) // stop ends it
	l.cancel = cancel
	cmd, clean, err := pgbenchCommand(run, at, database, "", true, "-n", "-c", fmt.Sprint(loadClients), "-R", fmt.Sprint(loadPerSecond), "-T", fmt.Sprintf("%.0f", loadAtMost.Seconds()), "-s", branches, "-b", "tpcb-like")
	if err != nil {
		cancel()
		return nil, err
	}
	cmd.Stderr = &l.said
	if err := cmd.Start(); err != nil {
		cancel()
		clean()
		return nil, fmt.Errorf("start pgbench: %w", err)
	}
	go func() {
		defer close(l.done)
		defer clean()
		l.err = cmd.Wait()
	}()
	err = poll(ctx, loadBegins, pollEvery, "pgbench commits", func() (bool, error) {
		if err := l.ended(); err != nil {
			return false, err
		}
		n, err := l.committed(ctx)
		return n > before, err
	})
	if err != nil {
		cancel()
		<-l.done
		return nil, err
	}
	return l, nil
}

// committed is how many transactions the history has.
func (l *sourceLoad) committed(ctx context.Context) (n int64, err error) {
	if err := l.watch.QueryRow(ctx, "SELECT count(*) FROM pgbench_history").Scan(&n); err != nil {
		return 0, fmt.Errorf("count the transactions of the load: %w", err)
	}
	return n, nil
}

// ended is an error if pgbench does not run any more, which only stop may end.
func (l *sourceLoad) ended() error {
	select {
	case <-l.done:
		text := strings.TrimSpace(l.said.String())
		return errors.Join(errors.New("pgbench ended before it was stopped"), l.err, errors.New(text[max(0, len(text)-600):]))
	default:
		return nil
	}
}

// during makes a turn one under load: it notes the transactions per second that were committed meanwhile, and without pgbench at its
// end it has no figure.
func (l *sourceLoad) during(turn func(context.Context, *Run) error) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		before, err := l.committed(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := turn(ctx, r); err != nil {
			return errors.Join(err, l.ended())
		}
		after, err := l.committed(ctx)
		if err != nil {
			return err
		}
		r.Set(loadReached, float64(after-before)/time.Since(began).Seconds())
		return l.ended()
	}
}

// stop ends pgbench; an error says that it had ended before.
func (l *sourceLoad) stop(ctx context.Context) error {
	early := l.ended()
	l.cancel()
	<-l.done // how it ended now is our doing
	return errors.Join(early, l.watch.Close(context.WithoutCancel(ctx)))
}
