package snapshot

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const largeTable = `INSERT INTO t SELECT g, g % 50, repeat('v', 1000) FROM generate_series(1, 20000) g`

// stall makes one target's COPY wait, until release, so that the source's is in its midst.
func (b *bench) stall(target int, counters *Counters) (release func()) {
	b.t.Helper()
	blocker := connect(b.t, b.dsns[target])
	run(b.t, blocker, `BEGIN; LOCK TABLE t`)
	return func() {
		for start := time.Now(); counters.Bytes.Load() < BufferSize; {
			if time.Since(start) > 20*time.Second || b.t.Context().Err() != nil {
				b.t.Error("the copy does not begin")
				break
			}
			pause(b.t.Context())
		}
		run(b.t, blocker, `ROLLBACK`)
	}
}

// pause is the time between two polls.
func pause(ctx context.Context) {
	timer := time.NewTimer(time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// start runs a copy that stalls.
func (b *bench) start(ctx context.Context, s Spec) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := CopyLeaf(ctx, s)
		done <- err
	}()
	return done
}

func (b *bench) wait(done chan error) error {
	b.t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		b.t.Fatal("the copy hangs")
		return nil
	}
}

func TestBrokenSessions(t *testing.T) {
	t.Parallel()
	terminate := func(pid func(*bench) uint32) func(*bench) {
		return func(b *bench) { run(b.t, b.admin, `SELECT pg_terminate_backend($1)`, int32(pid(b))) }
	}
	for _, tt := range []struct {
		name string
		act  func(*bench)
		want string
	}{
		{"source ends", terminate(func(b *bench) uint32 { return b.source.PgConn().PID() }), "source: "},
		{"stalled target ends", terminate(func(b *bench) uint32 { return b.targets[1].PgConn().PID() }), "target 1: "},
		{"other target ends", terminate(func(b *bench) uint32 { return b.targets[0].PgConn().PID() }), "target 0: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 3, `CREATE TABLE t (id int, realm int, v text)`)
			run(t, b.admin, largeTable)
			var counters Counters
			s := b.spec("t", "realm", false)
			s.Counters = &counters
			release := b.stall(1, &counters)
			done := b.start(t.Context(), s)
			waitFor(t, &counters)
			tt.act(b)
			release()
			if err := b.wait(done); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "public.t") {
				t.Errorf("got error %v, want one of %s", err, tt.want)
			}
			b.nothingCommitted("t")
		})
	}
}

// waitFor waits until the source's COPY is in its midst.
func waitFor(t *testing.T, counters *Counters) {
	t.Helper()
	for start := time.Now(); counters.Bytes.Load() < BufferSize; pause(t.Context()) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("the copy does not begin")
		}
	}
}

func TestCancelWhileStalled(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3, `CREATE TABLE t (id int, realm int, v text)`)
	run(t, b.admin, largeTable)
	var counters Counters
	s := b.spec("t", "realm", false)
	s.Counters = &counters
	release := b.stall(1, &counters)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := b.start(ctx, s)
	waitFor(t, &counters)
	why := errors.New("paused")
	cancel(why)
	began := time.Now()
	err := b.wait(done) // the target stays stalled: its connection is cut after the grace
	if !errors.Is(err, why) {
		t.Error(err)
	}
	if took := time.Since(began); took > failGrace+5*time.Second {
		t.Errorf("it took %v", took)
	}
	release()
	b.nothingCommitted("t")
}

func TestTargetRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3, `CREATE TABLE t (id int, realm int, v text)`)
	run(t, b.admin, largeTable)
	run(t, b.targets[2], `ALTER TABLE t ADD CHECK (id < 300)`)
	_, err := CopyLeaf(t.Context(), b.spec("t", "realm", false))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "23514" || !strings.Contains(err.Error(), "target 2") {
		t.Error(err)
	}
	b.nothingCommitted("t")
}

func TestBadSpecs(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2, `CREATE TABLE t (id int, realm date)`)
	if _, err := CopyLeaf(t.Context(), b.spec("t", "realm", false)); err == nil || !strings.Contains(err.Error(), "realm key") {
		t.Errorf("a realm key of type date: %v", err)
	}
	b.nothingCommitted("t")
	run(t, b.source, `ROLLBACK`)
	if _, err := CopyLeaf(t.Context(), b.spec("t", "none", false)); err == nil {
		t.Error("a realm key that is no column was taken")
	}
}
