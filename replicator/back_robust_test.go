package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/catdiff"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// scribble writes to a shard's own realms until it is stopped; it returns what stops it.
func (b *backRig) scribble(shard int) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	realm := b.realmsOf(shard, 1)[0]
	dsn := b.shards[shard].DSN
	go func() {
		var c *pgx.Conn
		for i := 0; ctx.Err() == nil; i++ {
			if c == nil || c.IsClosed() {
				var err error
				if c, err = pgx.Connect(ctx, dsn.Reveal()); err != nil {
					continue // the server restarts
				}
			}
			_, err := c.Exec(ctx, fmt.Sprintf(`BEGIN; INSERT INTO items (realm_id, id, n, big) VALUES ('%[1]s', %[2]d, 0, repeat('b', %[3]d)); UPDATE items SET n = n + 1 WHERE realm_id = '%[1]s' AND id > %[2]d - 50;
				DELETE FROM items WHERE realm_id = '%[1]s' AND id = %[2]d - 20; COMMIT`, realm, 100_000+i, rand.IntN(5000)), pgx.QueryExecModeSimpleProtocol)
			if err != nil && ctx.Err() == nil && !c.IsClosed() {
				done <- err
				return
			}
		}
		if c != nil {
			_ = c.Close(context.Background())
		}
		done <- nil
	}()
	return func() {
		b.t.Helper()
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("a client of shard %d: %v", shard, err)
		}
	}
}

// TestBackKilled ends the way back again and again while clients write: by its server's end, and by that of its sessions at
// either side.
func TestBackKilled(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL)
	stops := []func(){b.scribble(0), b.scribble(1)}
	for i := range 12 {
		waitTicks(t, 20+rand.IntN(150))
		switch i % 3 {
		case 0:
			b.again()
		case 1:
			exec(t, b.srcDB, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rehome-lane-%'`)
		default:
			exec(t, b.clients[i%2], `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active`)
		}
	}
	for _, stop := range stops {
		stop()
	}
	b.settle()
	b.same("items")
	if n := scalar[int](t, b.srcDB, `SELECT count(*) FROM items WHERE id > 100000`); n < 20 {
		t.Errorf("only %d rows were written", n)
	}
}

// TestBackServersRestart restarts the source and the shards' server, at once and without a word, while clients write.
func TestBackServersRestart(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	settings := map[string]string{"fsync": "on", "wal_level": "logical"}
	source, shard := pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: settings}), pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: settings})
	r := newRigOn(t, source, 1, backOptions, backDDL)
	r.shards[0].DSN = pgcluster.NewDatabase(t, shard)
	b := r.cutOver()
	stop := b.scribble(0)
	for _, c := range []*pgcluster.Cluster{source, shard, source} {
		waitTicks(t, 300)
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the way back runs again", func() bool {
			p := b.back.Progress()
			return p.State == tenant.WayBackRunning && p.Reason == ""
		})
	}
	stop()
	b.srcDB = open(t, b.source)
	b.settle()
	b.same("items")
}

// TestBackIsNoLoop writes on both sides of a cutover, in transactions small and large, and wants neither direction to bring
// anything back, and both to come to rest.
func TestBackIsNoLoop(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, backOptions, backDDL)
	small := func(dsn tenant.DSN) { // transactions are streamed before their end
		exec(t, r.srcDB, `SELECT 1`)
		c := open(t, dsn)
		exec(t, c, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''64kB''', current_database()); END $$`)
	}
	small(r.source)
	for _, sh := range r.shards {
		small(sh.DSN)
	}
	b := r.cutOverAfter(func() { // while both slots are there
		exec(t, r.srcDB, `INSERT INTO items (realm_id, id, n, big) SELECT 'r' || (g % 20), g, 1, repeat('q', 500) FROM generate_series(10000, 13000) g`)
		exec(t, r.srcDB, `UPDATE items SET n = n + 1`)
	})
	b.settle()
	for i, c := range b.clients {
		exec(t, c, `INSERT INTO items (realm_id, id, n, big) SELECT $1, g, 1, repeat('q', 500) FROM generate_series(20000, 23000) g`, b.realmsOf(i, 1)[0])
		exec(t, c, `UPDATE items SET n = n + 1 WHERE id < 11000`)
		exec(t, c, `DELETE FROM items WHERE id BETWEEN 12000 AND 12100`)
	}
	b.settle()
	b.same("items")
	b.same("logs")
	if n := r.total(`SELECT coalesce(sum(stream_txns), 0)::bigint FROM pg_stat_replication_slots s JOIN pg_replication_slots USING (slot_name) WHERE database = current_database()`); n == 0 {
		t.Error("no transaction was streamed before its end")
	}
	before, rows := b.forward.Progress(), r.total(`SELECT count(*) FROM items`)
	records := func() int64 {
		return scalar[int64](t, b.srcDB, `SELECT sum(s)::bigint FROM (SELECT max(seq) AS s FROM rehome.progress GROUP BY replication) x`) + r.total(`SELECT max(seq) FROM rehome.progress`)
	}
	seq := records()
	const ms = 6000 // more than a lane waits before it records where it is
	waitTicks(t, ms)
	if after := b.forward.Progress(); after.AppliedRows != before.AppliedRows {
		t.Errorf("the forward stream brought %d rows back", after.AppliedRows-before.AppliedRows)
	}
	if now := r.total(`SELECT count(*) FROM items`); now != rows {
		t.Errorf("rows at the shards became %d, were %d", now, rows)
	}
	// Each direction's heartbeats let its own lanes record where they are, every few seconds; nothing answers to that.
	if grew := records() - seq; grew > 8 {
		t.Errorf("%d records of progress while nothing was written", grew)
	}
	if b.jour.noted("alarm") {
		t.Errorf("alarms: %v", b.jour.notes)
	}
	b.same("items")
	for i, c := range b.clients { // the slots go on though nothing is written
		at := scalar[string](t, c, `SELECT pg_current_wal_lsn()::text`)
		eventually(t, "an idle slot advances", func() bool {
			return scalar[bool](t, c, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, at, fmt.Sprintf("rehome_%s_back_%d", b.id, i))
		})
	}
}

// TestForwardAfterTheCutover: what others write at the source is told of and left out while the target has the authority,
// and applied again from a rollback on.
func TestForwardAfterTheCutover(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL)
	slip := func(id int) { // past the fence
		exec(t, b.srcDB, fmt.Sprintf(`BEGIN; SET LOCAL rehome.pass = '%s'; INSERT INTO items (realm_id, id, n) VALUES ('r1', %d, 1); COMMIT`, pass.Reveal(), id), pgx.QueryExecModeSimpleProtocol)
	}
	slip(50_001)
	eventually(t, "an alarm", func() bool { return b.jour.noted("alarm", "source-written", "items") })
	b.forward.SetState(b.observe(tenant.AskedRollback))
	exec(t, b.clients[0], `INSERT INTO items (realm_id, id, n) VALUES ($1, 60001, 1)`, b.realmsOf(0, 1)[0])
	b.settle()
	slip(50_002)
	eventually(t, "the forward stream applies again", func() bool { return b.total(`SELECT count(*) FROM items WHERE id = 50002`) == 1 })
	if n := b.total(`SELECT count(*) FROM items WHERE id IN (50001, 60001)`); n != 1 {
		t.Errorf("%d rows at the shards, want the one that was written there only", n)
	}
}

// TestBackOwnerWithoutRights has at the source a role that owns the tables and is no superuser: it may not quiet triggers.
func TestBackOwnerWithoutRights(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, PRIMARY KEY (realm_id, id));
		CREATE TABLE parts (realm_id text NOT NULL, id bigint NOT NULL, item bigint, UNIQUE (realm_id, id) DEFERRABLE, PRIMARY KEY (realm_id, id));`
	t.Run("without triggers", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 2, tenant.ReplicationOptions{}, ddl)
		r.asOwner()
		b := r.cutOver()
		for i, c := range b.clients {
			exec(t, c, `INSERT INTO items SELECT $1, g, g FROM generate_series(1, 50) g`, b.realmsOf(i, 1)[0])
			exec(t, c, `UPDATE items SET n = n + 1; DELETE FROM items WHERE id % 3 = 0; INSERT INTO parts SELECT realm_id, id, id FROM items`, pgx.QueryExecModeSimpleProtocol)
		}
		b.settle()
		b.same("items")
		b.same("parts")
		b.again()
		exec(t, b.clients[0], `TRUNCATE parts`)
		b.settle()
		b.same("parts")
	})
	t.Run("with a foreign key", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{}, ddl+`ALTER TABLE parts ADD FOREIGN KEY (realm_id, item) REFERENCES items;`)
		r.asOwner()
		r.start()
		r.waitPhase(tenant.InSync)
		err := r.newBack().Prepare(within(t))
		te, ok := errors.AsType[*tenant.Error](err)
		if !ok || te.Code != "no-way-back" || te.Hint == "" {
			t.Errorf("prepared a way back that cannot be: %v", err)
		}
		if err := r.newBack().Discard(within(t)); err != nil {
			t.Error(err)
		}
	})
}

// TestBackDiscardLeavesNothing compares both sides' catalogues from before with those of after, also when it is made twice,
// or half of it is missing.
func TestBackDiscardLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, backOptions, backDDL+`CREATE TABLE days (realm_id text NOT NULL, at int NOT NULL) PARTITION BY RANGE (at); CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (50);
		CREATE TABLE quiet (realm_id text PRIMARY KEY); ALTER TABLE quiet REPLICA IDENTITY NOTHING;`)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop() // what it writes of its progress is no matter here
	exec(t, open(t, r.shards[0].DSN), `ALTER TABLE logs REPLICA IDENTITY DEFAULT; ALTER TABLE quiet REPLICA IDENTITY NOTHING`)
	take := func() (out []catdiff.Snapshot) {
		for _, dsn := range []tenant.DSN{r.source, r.shards[0].DSN, r.shards[1].DSN} {
			s, err := catdiff.Take(t.Context(), open(t, dsn))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return out
	}
	before := take()
	none := func(what string) {
		t.Helper()
		for i, now := range take() {
			if diff := catdiff.Diff(before[i], now); diff != "" {
				t.Errorf("%s: side %d has changed:\n%s", what, i, diff)
			}
		}
	}
	b := r.newBack()
	for range 2 {
		if err := b.Prepare(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.total(`SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != 2 {
		t.Errorf("%d slots at the shards", n)
	}
	for range 2 {
		if err := b.Discard(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	none("made twice and dropped twice")
	if err := b.Prepare(within(t)); err != nil {
		t.Fatal(err)
	}
	exec(t, open(t, r.shards[1].DSN), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
	exec(t, r.srcDB, `DROP TABLE rehome.back`)
	r.epoch++
	if err := r.newBack().Discard(within(t)); err != nil {
		t.Fatal(err)
	}
	none("dropped by another server, some of it gone")
	if err := b.Prepare(within(t)); err != nil {
		t.Fatal(err)
	}
	r.epoch++
	next := r.newBack()
	if err := next.Prepare(within(t)); err != nil {
		t.Fatal(err)
	}
	for name, fn := range map[string]func(context.Context) error{"prepare": b.Prepare, "discard": b.Discard, "run": b.Run} {
		if err := fn(within(t)); !errors.Is(err, replicator.ErrFenced) {
			t.Errorf("%s by a former owner: %v", name, err)
		}
	}
	if err := next.Discard(within(t)); err != nil {
		t.Fatal(err)
	}
	none("dropped after a former owner came back")
}

// TestBackNamesWhoIsInTheWay of a shard's slot.
func TestBackNamesWhoIsInTheWay(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	shard := pgcluster.StartT(t, pgcluster.Options{})
	r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
	r.shards[0].DSN = pgcluster.NewDatabase(t, shard)
	r.start()
	r.waitPhase(tenant.InSync)
	other := openAs(t, pgcluster.NewDatabase(t, shard), "a report of others")
	exec(t, other, `CREATE TABLE x (); BEGIN; INSERT INTO x DEFAULT VALUES`, pgx.QueryExecModeSimpleProtocol)
	r.slotPatience = 4e9
	err := r.newBack().Prepare(within(t))
	if err == nil || !strings.Contains(err.Error(), "a report of others") || strings.Contains(err.Error(), "at the source") {
		t.Errorf("prepared beside an open transaction: %v", err)
	}
	exec(t, other, `ROLLBACK`)
	b := r.newBack()
	if err := b.Prepare(within(t)); err != nil {
		t.Error(err)
	}
	if err := b.Discard(within(t)); err != nil {
		t.Error(err)
	}
}
