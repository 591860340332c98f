package cutover_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// write is an accepted write and when it was under way.
type write struct {
	id, realm  string
	side       int // -1: the source, else the shard's index
	start, end time.Time
}

// load writes to the source and to every shard all the time, whatever they answer, and keeps what was accepted.
type load struct {
	mu       sync.Mutex
	accepted []write
	problems []string
	marks    []time.Time // each begins a move of the authority
	stop     context.CancelFunc
	wg       sync.WaitGroup
}

func (w *world) load(t *testing.T) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel}
	run := func(side int, dsn tenant.DSN, realm string) {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				conn, err := pgx.Connect(ctx, dsn.Reveal())
				for err == nil && ctx.Err() == nil {
					id := fmt.Sprintf("%d/%s/%s", side, realm, rand.Text())
					wr := write{id: id, realm: realm, side: side, start: time.Now()}
					_, err = conn.Exec(context.WithoutCancel(ctx), `INSERT INTO entries VALUES ($1, $2)`, id, realm)
					wr.end = time.Now()
					l.mu.Lock()
					if err == nil {
						l.accepted = append(l.accepted, wr)
					} else if !gate.IsFenced(err) && ctx.Err() == nil {
						l.problems = append(l.problems, fmt.Sprintf("side %d: %v", side, err))
					}
					l.mu.Unlock()
					pause := 6 * time.Millisecond // the machine is shared: what applies and decodes them works as much again
					if gate.IsFenced(err) {
						err = nil
					}
					select {
					case <-ctx.Done():
					case <-time.After(pause):
					}
				}
				if conn != nil {
					_ = conn.Close(context.WithoutCancel(ctx))
				}
			}
		})
	}
	for i := range 3 {
		run(-1, w.job.Source, fmt.Sprintf("realm%d", i))
	}
	for i, s := range w.job.Shards {
		run(i, s.DSN, w.realmOf(i))
	}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

// realmOf finds a realm that lives on the shard.
func (w *world) realmOf(shard int) string {
	for i := 0; ; i++ {
		if r := fmt.Sprintf("mine%d", i); tenant.Bucket(r)%len(w.job.Shards) == shard {
			return r
		}
	}
}

// moves notes that a move of the authority begins: whatever was accepted before has been accepted at one side.
func (l *load) moves() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, time.Now())
}

// more waits for writes that began from now on and are accepted at the side.
func (l *load) more(t *testing.T, target bool) {
	t.Helper()
	before := l.count(target)
	eventually(t, fmt.Sprintf("more writes, at the target: %v", target), func() bool { return l.count(target) > before+20 })
}

// checkOneSide: with every move one side ends before the other begins. If a write of each side began after one of the
// other had been accepted, both were open.
func (l *load) checkOneSide(t *testing.T) {
	t.Helper()
	bounds := append([]time.Time{{}}, l.marks...)
	bounds = append(bounds, time.Now())
	for i, from := range bounds[:len(bounds)-1] {
		var firstEnd, lastStart [2]time.Time // by side: the source, the shards
		for _, a := range l.accepted {
			if a.start.Before(from) || a.end.After(bounds[i+1]) {
				continue
			}
			side := min(a.side+1, 1)
			if firstEnd[side].IsZero() || a.end.Before(firstEnd[side]) {
				firstEnd[side] = a.end
			}
			if a.start.After(lastStart[side]) {
				lastStart[side] = a.start
			}
		}
		after := func(x, y int) bool { return !firstEnd[y].IsZero() && lastStart[x].After(firstEnd[y]) }
		if after(0, 1) && after(1, 0) {
			t.Fatalf("both sides were open during move %d: the source accepted a write %s after a shard did, a shard %s after the source did",
				i, lastStart[0].Sub(firstEnd[1]), lastStart[1].Sub(firstEnd[0]))
		}
	}
}

// check ends the load and checks the promises: never both open, nothing acknowledged is missing, all sides agree with
// the gate.
func (w *world) check(t *testing.T, l *load, want gate.Side) {
	t.Helper()
	ctx := t.Context()
	l.stop()
	l.wg.Wait()
	src := connect(t, w.job.Source)
	state, err := gate.ReadGate(ctx, src)
	must(t, err)
	if want != "" && state.Side != want {
		t.Errorf("the gate says %+v, want side %s", state, want)
	}
	l.checkOneSide(t)
	have := map[string]bool{}
	collect := func(conn *pgx.Conn) {
		rows, err := conn.Query(ctx, `SELECT id FROM entries`)
		must(t, err)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		for _, id := range ids {
			have[id] = true
		}
	}
	accepts := func(conn *pgx.Conn) bool {
		_, err := conn.Exec(ctx, `INSERT INTO entries VALUES ('probe' || random(), 'x')`)
		if err != nil && !gate.IsFenced(err) {
			t.Fatalf("a write failed, and not by the fence: %v", err)
		}
		return err == nil
	}
	if got := accepts(src); got != (state.Side == gate.SideSource) {
		t.Errorf("the gate says %s, and the source accepts writes: %v", state.Side, got)
	}
	for _, s := range w.job.Shards {
		conn := connect(t, s.DSN)
		if got := accepts(conn); got != (state.Side == gate.SideTarget) {
			t.Errorf("the gate says %s, and %s accepts writes: %v", state.Side, s.Name, got)
		}
		if state.Side == gate.SideTarget {
			collect(conn)
		}
	}
	if state.Side == gate.SideSource {
		collect(src)
	}
	missing, bySide := 0, map[bool]int{}
	for _, a := range l.accepted {
		bySide[a.side < 0]++
		if !have[a.id] {
			missing++
		}
	}
	if missing > 0 || len(l.accepted) == 0 {
		t.Errorf("%d of %d acknowledged writes are missing on the %s", missing, len(l.accepted), state.Side)
	}
	if len(l.problems) > 20 {
		t.Errorf("%d problems of clients, the first: %s", len(l.problems), l.problems[0])
	}
	t.Logf("gate (%d, %s); accepted at the source %d, at the shards %d", state.Epoch, state.Side, bySide[true], bySide[false])
}
