package replicator

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// histories is how many random histories TestHistories applies; REHOME_HISTORIES sets another number, REHOME_SEED the
// first history's seed.
const histories = 10000

// The inboxes' bounds in the model: small, so that pieces of open transactions and a reader that is blocked come often.
const modelGroupRows, modelInboxRows = 7, 12

// modelLane applies the groups of an inbox to a shard, as lane and pipelineRun do.
type modelLane struct {
	in   *inbox
	disk *modelShard   // surely on disk
	done []*modelShard // committed since, the last one counts

	// The target transaction that is open.
	tx   *modelShard
	g    *group
	next int
}

func (l *modelLane) shard() *modelShard {
	if n := len(l.done); n > 0 {
		return l.done[n-1]
	}
	return l.disk
}

type world struct {
	d     Dice
	h     *History
	rels  []*relation
	place tenant.Placement
	shard []Shard
	lanes []*modelLane
	s     *stream
	msgs  []pgoutput.Message
	at    int

	sets, replays, carried, fetched, pieces, restarts int
}

func newWorld(d Dice, h *History) *world {
	w := &world{d: d, h: h, rels: historyRelations()}
	n := 2 + d.IntN(2)
	for i := range n {
		name := "s" + strconv.Itoa(i)
		w.shard = append(w.shard, Shard{Name: name})
		to := (i+1)*(tenant.Buckets/n) - 1
		if i == n-1 {
			to = tenant.Buckets - 1
		}
		w.place.Ranges = append(w.place.Ranges, tenant.Range{From: i * (tenant.Buckets / n), To: to, Shard: name})
		w.lanes = append(w.lanes, &modelLane{disk: &modelShard{pos: 1, kept: map[string][][]byte{}}})
	}
	for i, txn := range h.Txns {
		commit := tenant.LSN(100 * (i + 1))
		w.msgs = append(w.msgs, pgoutput.Message{Kind: pgoutput.Begin, LSN: commit})
		for j := range txn {
			w.msgs = append(w.msgs, txn[j].message(w.rels))
		}
		w.msgs = append(w.msgs, pgoutput.Message{Kind: pgoutput.Commit, LSN: commit, EndLSN: commit + 8})
	}
	return w
}

// ack is what every shard has on disk.
func (w *world) ack() tenant.LSN {
	at := w.lanes[0].disk.pos
	for _, l := range w.lanes {
		at = min(at, l.disk.pos)
	}
	return at
}

// start begins the stream anew: what was under way is lost, and shards may lose what they had not on disk.
func (w *world) start(t *testing.T) {
	r, err := newRouter(w.place, w.shard)
	if err != nil {
		t.Fatal(err)
	}
	w.s = &stream{e: &Engine{}, router: r, rels: map[uint32]*relation{}, turn: make(chan struct{}, 1), skip: make([]bool, len(w.lanes))}
	for _, rel := range w.rels {
		w.s.rels[rel.table.OID] = rel
	}
	slowest := tenant.LSN(1 << 40)
	for i, l := range w.lanes {
		if n := len(l.done); n > 0 && w.d.IntN(3) == 0 { // a crash of the shard's server
			l.done = l.done[:w.d.IntN(n+1)]
		}
		l.in, l.tx, l.g = newInbox(), nil, nil
		l.in.groupRows, l.in.inboxRows = modelGroupRows, modelInboxRows
		w.s.lanes = append(w.s.lanes, &lane{shard: w.shard[i], in: l.in, start: l.shard().pos, gifts: newAllowance()})
		slowest = min(slowest, l.shard().pos)
	}
	from := slowest
	if w.d.IntN(2) == 0 {
		from = w.ack()
	}
	w.at = slices.IndexFunc(w.msgs, func(m pgoutput.Message) bool { return m.Kind == pgoutput.Begin && m.LSN >= from })
	if w.at < 0 {
		w.at = len(w.msgs)
	}
}

// read takes one message, unless a lane's inbox is full.
func (w *world) read(t *testing.T) bool {
	if w.at == len(w.msgs) {
		return false
	}
	m := w.msgs[w.at]
	for _, l := range w.lanes {
		if l.in.rows+2 > modelInboxRows { // a row that moves within its shard is two
			return false
		}
	}
	w.at++
	m.Old, m.New = slices.Clone(m.Old), slices.Clone(m.New)
	var err error
	if m.Kind == pgoutput.Begin {
		err = w.s.begin(t.Context(), m.LSN, time.Time{})
	} else {
		err = w.s.message(t.Context(), &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// step does one thing in a lane; false: it can do nothing just now.
func (w *world) step(t *testing.T, l *modelLane) bool {
	if l.g == nil {
		g, _, err := l.in.take(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if g == nil {
			return false
		}
		if l.tx == nil {
			l.tx = l.shard().clone()
			if !g.open && !g.ordered && len(g.changes) >= minSet && w.asSets(l, g) {
				w.commit(l, g)
				return true
			}
		} else {
			w.pieces++
		}
		l.g, l.next = g, 0
	}
	for before := l.next; l.next < len(l.g.changes); {
		ready, err := w.one(l, &l.g.changes[l.next])
		if err != nil {
			c := &l.g.changes[l.next]
			t.Fatalf("%c %s in table %d: %v", c.op, c.rel.keyText(c), c.modelTable(), err)
		}
		if !ready {
			return l.next > before
		}
		l.next++
		if w.d.IntN(3) == 0 {
			return true // others come in between
		}
	}
	g := l.g
	l.g = nil
	if !g.open {
		w.commit(l, g)
	}
	return true
}

func (w *world) asSets(l *modelLane, g *group) bool {
	w.sets++
	for _, run := range planRuns(g.changes) {
		var err error
		if run.op == 0 || run.op == opTruncate || len(run.rows) < minSet {
			for _, c := range run.rows {
				if err == nil {
					err = l.tx.one(c)
				}
			}
		} else {
			err = l.tx.set(w.d, run)
		}
		if err != nil {
			w.replays++
			l.tx = l.shard().clone()
			return false
		}
	}
	return true
}

func (w *world) commit(l *modelLane, g *group) {
	l.tx.pos = g.end
	for k := range l.tx.kept {
		if lsn, _ := strconv.ParseUint(k[:12], 10, 64); tenant.LSN(lsn) < w.ack() {
			delete(l.tx.kept, k)
		}
	}
	l.done = append(l.done, l.tx)
	l.tx, l.g = nil, nil
}

// one applies a change in order; false: it waits for another lane.
func (w *world) one(l *modelLane, c *change) (ready bool, err error) {
	if k := c.gives; k != nil {
		w.carried++
		at := l.tx.find(c.rel, c.modelTable(), c.old)
		if at < 0 {
			return false, errCount
		}
		row := l.tx.remove(c.modelTable(), at)
		var values [][]byte
		for _, i := range k.columns {
			values = append(values, row[i].Data)
		}
		if why := k.check(c.rel, values); why != "" {
			return false, errors.New(why)
		}
		if !k.self {
			l.tx.kept[keptKey(k)] = values
		}
		k.fulfil(values)
		return true, nil
	}
	if k := c.needs; k != nil {
		if k.stored {
			w.fetched++
			from := w.lanes[slices.IndexFunc(w.shard, func(s Shard) bool { return s.Name == k.from.Name })]
			values, ok := from.shard().kept[keptKey(k)]
			if !ok {
				return false, errors.New("the old shard keeps no value")
			}
			k.fulfil(values)
		}
		select {
		case <-k.done:
		default:
			return false, nil
		}
		for n, i := range k.columns {
			c.row[i] = pgoutput.Value{Kind: pgoutput.Text, Data: k.values[n]}
		}
		k.release()
	}
	return true, l.tx.one(c)
}

func keptKey(k *carry) string { return fmt.Sprintf("%012d/%d", uint64(k.lsn), k.ordinal) }

// run lets the reader and the lanes take turns at random, and restarts everything now and then, until all is applied.
func (w *world) run(t *testing.T) {
	w.start(t)
	stops := w.d.IntN(4)
	for {
		n := w.d.IntN(len(w.lanes) + 2)
		switch {
		case n < len(w.lanes):
			w.step(t, w.lanes[n])
		case n == len(w.lanes):
			for range 1 + w.d.IntN(8) {
				w.read(t)
			}
		case w.d.IntN(4) == 0:
			l := w.lanes[w.d.IntN(len(w.lanes))]
			l.disk, l.done = l.shard(), nil
		case stops > 0 && w.d.IntN(12) == 0:
			stops--
			w.restarts++
			w.start(t)
		}
		if w.at < len(w.msgs) || w.d.IntN(4) > 0 {
			if !w.stuck(t) {
				continue
			}
			t.Fatal("the lanes wait for each other")
		}
		moved := true
		for moved {
			moved = false
			for _, l := range w.lanes {
				moved = w.step(t, l) || moved
			}
		}
		for i, l := range w.lanes {
			if l.tx != nil {
				t.Fatalf("lane %d waits, though nothing more comes", i)
			}
		}
		return
	}
}

// stuck reports whether neither the reader nor any lane can go on. It tries, which is a step like any other.
func (w *world) stuck(t *testing.T) bool {
	if w.at == len(w.msgs) || w.d.IntN(8) > 0 {
		return false
	}
	if w.read(t) {
		return false
	}
	return !slices.ContainsFunc(w.lanes, func(l *modelLane) bool { return w.step(t, l) })
}

// HistoryEnv is a number from the environment.
func HistoryEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestHistories: whatever a source does, and whenever reader, lanes and shards stop, the shards end up with the source's
// rows. Routing, inboxes, grouping, the plans of statements and carries are the real ones; the shards are a model that
// refuses what Postgres refuses.
func TestHistories(t *testing.T) {
	t.Parallel()
	n, first := HistoryEnv(t, "REHOME_HISTORIES", histories), HistoryEnv(t, "REHOME_SEED", 1)
	var all world
	for i := range n {
		seed := uint64(first + i)
		d := rand.New(rand.NewPCG(seed, 0))
		h := NewHistory(d, 1+d.IntN(14))
		w := newWorld(d, h)
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("history %d (REHOME_SEED=%d REHOME_HISTORIES=1)", seed, seed)
				}
			}()
			w.run(t)
			for i, l := range w.lanes {
				if diff := cmp.Diff(h.Want(w.place, w.shard[i].Name), l.shard().state()); diff != "" {
					t.Fatalf("shard %d of %d: %s", i, len(w.lanes), diff)
				}
			}
		}()
		all.sets += w.sets
		all.replays += w.replays
		all.carried += w.carried
		all.fetched += w.fetched
		all.pieces += w.pieces
		all.restarts += w.restarts
	}
	t.Logf("%d histories: %d groups as sets, of which %d were replayed in order; %d values carried, %d read from the old shard; %d further pieces; %d restarts",
		n, all.sets, all.replays, all.carried, all.fetched, all.pieces, all.restarts)
	if n >= histories && (all.sets == 0 || all.replays == 0 || all.carried == 0 || all.fetched == 0 || all.pieces == 0) {
		t.Error("the histories did not come to everything that they are for")
	}
}
