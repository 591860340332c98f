package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	watchTick = 250 * time.Millisecond
	// watchLook bounds one look at a server that may be down.
	watchLook = 3 * time.Second
)

// seen is what the watcher last saw, directly and not through the servers.
type seen struct {
	phase     tenant.Phase
	reason    string
	blocked   string
	epoch     int64
	least     tenant.LSN // applied at every shard
	head      tenant.LSN // of the source
	copied    int64      // bytes
	lagMillis float64
	trouble   string // why it cannot see
}

// watcher looks at all that is there, four times a second.
type watcher struct {
	r     *tortureRig
	out   *os.File
	began time.Time
	conns map[string]*pgx.Conn

	mu    sync.Mutex
	last  seen
	moved time.Time // when something went on
	lsns  map[string]tenant.LSN
	still time.Duration
	rss   int
	slot  int64
	wrong string
}

func newWatcher(r *tortureRig) *watcher {
	out, err := os.Create(filepath.Join(r.dir, "torture.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = out.Close() })
	return &watcher{r: r, out: out, began: time.Now(), moved: time.Now(), conns: map[string]*pgx.Conn{}, lsns: map[string]tenant.LSN{}}
}

func (w *watcher) log(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = fmt.Fprintf(w.out, "%s %7.2f %s\n", time.Now().Format(time.TimeOnly), time.Since(w.began).Seconds(), line)
}

func (w *watcher) now() seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// problem is why the run has failed already; "" if it has not.
func (w *watcher) problem() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong
}

func (w *watcher) tick(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(watchTick / 5):
	}
}

func (w *watcher) run(ctx context.Context) {
	defer func() {
		for _, c := range w.conns {
			_ = c.Close(context.WithoutCancel(ctx))
		}
	}()
	t := time.NewTicker(watchTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.look(ctx)
		}
	}
}

// ask reads one row; a server that is down is asked again the next time.
func (w *watcher) ask(ctx context.Context, name string, dsn tenant.DSN, sql string, into ...any) error {
	ctx, cancel := context.WithTimeout(ctx, watchLook)
	defer cancel()
	c := w.conns[name]
	var err error
	if c == nil || c.IsClosed() {
		if c, err = pgx.Connect(ctx, dsn.Reveal()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		w.conns[name] = c
	}
	if err := c.QueryRow(ctx, sql).Scan(into...); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (w *watcher) look(ctx context.Context) {
	s := w.now()
	was := s
	s.trouble = ""
	fail := func(err error) {
		if err != nil {
			s.trouble = err.Error()
		}
	}
	var state, progress []byte
	err := w.ask(ctx, "control", w.r.control, `SELECT state, coalesce(progress, '{}'), coalesce((SELECT epoch FROM rehome_control.leases WHERE resource = 'replication:' || id), 0) FROM rehome_control.replications`, &state, &progress, &s.epoch)
	if err == nil {
		var st tenant.State
		var p tenant.Progress
		_ = json.Unmarshal(state, &st)
		_ = json.Unmarshal(progress, &p)
		s.phase, s.reason, s.blocked, s.copied, s.lagMillis = st.Phase, st.Reason, p.Blocked, p.BytesDone, p.LagMillis
	}
	fail(err)
	var slot int64
	err = w.ask(ctx, "source", w.r.src, `SELECT pg_current_wal_insert_lsn()::text, coalesce((SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), min(restart_lsn)) FROM pg_replication_slots WHERE database = current_database()), 0)::bigint`, &s.head, &slot)
	fail(err)
	moved := s.phase != was.phase || s.copied != was.copied
	for name, c := range w.r.shards {
		var at tenant.LSN
		if err := w.ask(ctx, name, c.DSN("db"), `SELECT coalesce((SELECT lsn FROM rehome.progress ORDER BY seq DESC LIMIT 1), '0/0')::text`, &at); err != nil {
			fail(err)
			continue
		}
		moved = moved || at > w.lsns[name]
		w.lsns[name] = at
	}
	s.least = 0
	if len(w.lsns) == len(w.r.shards) {
		for _, at := range w.lsns {
			if s.least == 0 || at < s.least {
				s.least = at
			}
		}
	}
	if s.phase != was.phase {
		w.log(fmt.Sprintf("phase %s %s", s.phase, s.reason))
	}
	// A change of a table that is not copied yet pauses, when the copy loses its snapshot: that is for a person to decide.
	if s.phase == tenant.CatchingUp || s.phase == tenant.InSync || os.Getenv("REHOME_TORTURE_DDL_IN_COPY") != "" {
		w.r.load.AllowDDL()
	}
	if s.epoch != was.epoch {
		w.log(fmt.Sprintf("lease epoch %d", s.epoch))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = s
	w.slot = max(w.slot, slot)
	for _, n := range w.r.nodes {
		w.rss = max(w.rss, figuresOf(n.process()).rssMiB)
	}
	if moved {
		w.moved = time.Now()
	}
	w.still = max(w.still, time.Since(w.moved))
	if s.phase == tenant.Paused && w.wrong == "" {
		w.wrong = "paused, and somebody would have to resume it: " + s.reason
	}
}
