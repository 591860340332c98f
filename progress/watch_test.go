package progress_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/progress"
)

func TestWatchResumesAndEnds(t *testing.T) {
	t.Parallel()
	for _, listening := range []bool{false, true} {
		name := "polling"
		if listening {
			name = "listening"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, pool := newLog(t)
			ctx, cancel := context.WithCancel(t.Context())
			var group errgroup.Group
			if listening {
				group.Go(func() error { return l.Run(ctx) })
			}
			for range 3 {
				mustAppend(t, l, pool, entry("r1", "e", nil))
			}
			enough := errors.New("enough")
			var seen []int64
			var count, all atomic.Int64
			group.Go(func() error {
				err := l.Watch(ctx, "r1", 1, func(e progress.Event) error {
					seen = append(seen, e.Sequence)
					count.Add(1)
					if e.Sequence == 5 {
						return enough
					}
					return nil
				})
				if !errors.Is(err, enough) {
					t.Errorf("watch ended with %v", err)
				}
				return nil
			})
			group.Go(func() error {
				err := l.WatchAll(ctx, 0, func(progress.Stored) error { all.Add(1); return nil })
				if !errors.Is(err, context.Canceled) {
					t.Errorf("watch ended with %v", err)
				}
				return nil
			})
			eventually(t, "the past is seen", func() bool { return count.Load() == 2 })
			mustAppend(t, l, pool, entry("r2", "other", nil))
			mustAppend(t, l, pool, entry("r1", "e", nil))
			mustAppend(t, l, pool, entry("r1", "e", nil))
			eventually(t, "the news is seen", func() bool { return count.Load() == 4 && all.Load() == 6 })
			cancel()
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
			if len(seen) != 4 || seen[0] != 2 || seen[3] != 5 {
				t.Errorf("seen %v", seen)
			}
		})
	}
}

// The listening connection may die; watchers go on by polling, and it comes back.
func TestWatchSurvivesTheListenersEnd(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { return l.Run(ctx) })
	var last atomic.Int64
	group.Go(func() error {
		_ = l.Watch(ctx, "r1", 0, func(e progress.Event) error { last.Store(e.Sequence); return nil }) // ends with ctx
		return nil
	})
	listeners := func() (n int) {
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "it listens", func() bool { return listeners() == 1 })
	_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'`)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, pool, entry("r1", "e", nil))
	eventually(t, "the event is seen", func() bool { return last.Load() == 1 })
	eventually(t, "it listens again", func() bool { return listeners() == 1 })
	began := time.Now()
	mustAppend(t, l, pool, entry("r1", "e", nil))
	eventually(t, "the next event is seen", func() bool { return last.Load() == 2 })
	t.Logf("seen after %s", time.Since(began))
	cancel()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
