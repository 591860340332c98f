package replicator_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// backGates is what a way back uses of package gate.
type backGates struct{ id string }

func (backGates) InstallBack(ctx context.Context, c *pgx.Conn) error { return gate.InstallBack(ctx, c) }

func (backGates) RemoveBack(ctx context.Context, c *pgx.Conn) error { return gate.RemoveBack(ctx, c) }

func (g backGates) Heartbeat(ctx context.Context, c *pgx.Conn) error {
	return gate.Heartbeat(ctx, c, g.id)
}

// backRig is a rig whose replication is cut over.
type backRig struct {
	*rig
	forward *replicator.Engine
	back    *replicator.Back
	stop    func()      // of the way back
	clients []*pgx.Conn // one a shard
}

func (r *rig) backConfig() replicator.BackConfig {
	return replicator.BackConfig{
		Replication: r.id, Source: r.source, Slot: "rehome_" + r.id, Publication: "rehome_" + r.id, Shards: r.shards, Placement: r.place, Options: r.opts,
		Epoch: r.epoch, Pass: pass, Journal: r.jour, Gate: backGates{r.id}, Heartbeat: time.Second, Watch: 100 * time.Millisecond, SpoolMemory: r.spoolMemory, SlotPatience: r.slotPatience, ConflictPatience: 3 * time.Second,
		Logger: slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

func (r *rig) newBack() *replicator.Back {
	r.t.Helper()
	b, err := replicator.NewBack(r.backConfig())
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// runBack starts a way back as a server that takes the replication over. stop ends it at once.
func (r *rig) runBack(b *replicator.Back) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Logf("way back ended: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// newBackRig replicates, makes the way back, moves the authority to the shards, and runs the way back.
func newBackRig(t *testing.T, shards int, opts tenant.ReplicationOptions, ddl string) *backRig {
	t.Helper()
	return newRig(t, shards, opts, ddl).cutOver()
}

func (r *rig) cutOver() *backRig { return r.cutOverAfter(func() {}) }

// cutOverAfter lets something happen between the making of the way back and the fence.
func (r *rig) cutOverAfter(between func()) *backRig {
	t := r.t
	t.Helper()
	b := &backRig{rig: r}
	b.forward, _ = r.start()
	r.waitPhase(tenant.InSync)
	b.back = r.newBack()
	t.Cleanup(func() {
		if err := r.newBack().Discard(context.Background()); err != nil {
			t.Logf("discard: %v", err)
		}
	})
	if err := b.back.Prepare(within(t)); err != nil {
		t.Fatal(err)
	}
	between()
	b.closeSource()
	b.openShards()
	b.forward.SetState(r.observe(tenant.SawDecidedTarget))
	b.stop = r.runBack(b.back)
	b.waitRunning()
	for _, sh := range r.shards {
		b.clients = append(b.clients, open(t, sh.DSN))
	}
	return b
}

func (r *rig) observe(kind tenant.ObservationKind) tenant.State {
	r.t.Helper()
	st, err := r.jour.Observe(r.t.Context(), tenant.Observation{Kind: kind})
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// closeSource fences the source as a cutover does, with a marker that every shard has reached when the fence is committed.
func (b *backRig) closeSource() {
	t := b.t
	t.Helper()
	ctx := within(t)
	state, err := gate.ReadGate(ctx, b.srcDB)
	if err != nil {
		t.Fatal(err)
	}
	const attempt = "cut"
	a, err := gate.Open(ctx, gate.Config{Source: b.source, Attempt: attempt, Epoch: state.Epoch, NewURL: "https://new"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close(ctx)
	for _, step := range []func() error{
		func() error { return a.Prelock(ctx) },
		func() error { return a.Fence(ctx, time.Now().Add(patience)) },
		func() error { return a.Marker(ctx) },
		func() error { return a.CreateTriggers(ctx) },
		func() error {
			_, shards, err := b.forward.WaitMarker(ctx, attempt)
			if err == nil && len(shards) != len(b.shards) {
				t.Errorf("the marker was applied at %d of %d shards", len(shards), len(b.shards))
			}
			return err
		},
		func() error { return a.Commit(ctx) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *backRig) openShards() {
	b.t.Helper()
	for _, sh := range b.shards {
		c, err := gate.ShardSession(within(b.t), sh.DSN)
		if err != nil {
			b.t.Fatal(err)
		}
		defer func() { _ = c.Close(context.Background()) }()
		if _, err := gate.Follow(within(b.t), c, gate.State{Epoch: 2, Side: gate.SideTarget, Attempt: "cut"}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *backRig) waitRunning() {
	b.t.Helper()
	var p tenant.WayBack
	defer func() {
		if b.t.Failed() {
			b.t.Logf("way back: %+v", p)
		}
	}()
	eventually(b.t, "the way back runs", func() bool {
		p = b.back.Progress()
		return p.State == tenant.WayBackRunning && len(p.Shards) == len(b.shards) && p.Reason == ""
	})
}

func (b *backRig) waitBroken() tenant.WayBack {
	b.t.Helper()
	var p tenant.WayBack
	eventually(b.t, "the way back is broken", func() bool {
		p = b.back.Progress()
		return p.State == tenant.WayBackBroken && !strings.Contains(p.Reason, "being connected")
	})
	return p
}

// again takes the way back over as another server, with a higher epoch, after the former one's end.
func (b *backRig) again() {
	b.t.Helper()
	b.stop()
	b.epoch++
	b.back = b.newBack()
	b.stop = b.runBack(b.back)
}

// flushed waits until the way back has read all that was written at the shards so far.
func (b *backRig) flushed() {
	b.t.Helper()
	for i, sh := range b.shards {
		at := scalar[string](b.t, b.clients[i], `SELECT pg_current_wal_lsn()::text`)
		eventually(b.t, "all is read from shard "+sh.Name, func() bool {
			return scalar[bool](b.t, b.clients[i], `SELECT coalesce(bool_or(s.write_lsn >= $1::pg_lsn), false) FROM pg_stat_replication s JOIN pg_replication_slots l ON l.active_pid = s.pid WHERE l.database = current_database()`, at)
		})
	}
}

var markers struct {
	sync.Mutex
	n int
}

// settle waits until the source has all that was committed at the shards.
func (b *backRig) settle() {
	b.t.Helper()
	markers.Lock()
	markers.n++
	attempt := fmt.Sprintf("m%d", markers.n)
	markers.Unlock()
	for _, sh := range b.shards {
		if err := gate.WriteMarker(within(b.t), open(b.t, sh.DSN), attempt, gate.MarkRollback); err != nil {
			b.t.Fatal(err)
		}
	}
	pos, err := b.back.WaitMarkers(within(b.t), attempt)
	if err != nil {
		b.t.Fatalf("%v; the way back: %+v", err, b.back.Progress())
	}
	if len(pos) != len(b.shards) {
		b.t.Fatalf("positions of %d shards: %v", len(pos), pos)
	}
}

// same compares a table's rows at the source with those of all shards, or, of a reference table, of one.
func (b *backRig) same(table string, shards ...int) {
	b.t.Helper()
	if shards == nil {
		for i := range b.shards {
			shards = append(shards, i)
		}
	}
	there := []string{}
	for _, i := range shards {
		there = append(there, b.rows(open(b.t, b.shards[i].DSN), table)...)
	}
	slices.Sort(there)
	if diff := cmp.Diff(there, b.rows(b.srcDB, table)); diff != "" {
		b.t.Errorf("%s at the shards (-) and at the source (+):\n%s", table, diff)
	}
}

func (b *backRig) rows(c *pgx.Conn, table string) []string {
	b.t.Helper()
	rows, err := c.Query(b.t.Context(), `SELECT md5(t::text) || ' ' || left(t::text, 80) FROM `+table+` t`)
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Sort(out)
	return append([]string{}, out...)
}

// realmsOf lists realms that belong to a shard.
func (r *rig) realmsOf(shard, n int) []string {
	var out []string
	for i := 0; len(out) < n; i++ {
		if name := fmt.Sprintf("realm%d", i); r.place.ShardOf(name) == r.shards[shard].Name {
			out = append(out, name)
		}
	}
	return out
}
