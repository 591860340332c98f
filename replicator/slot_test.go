package replicator_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// pausedFor waits for the loud stop and checks what it says.
func (r *rig) pausedFor(reason, remedy string) {
	r.t.Helper()
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, reason) || !strings.Contains(st.Remedy, remedy) {
		r.t.Errorf("paused for %q, remedy %q; want %q, %q", st.Reason, st.Remedy, reason, remedy)
	}
}

// dropSlot drops the replication's slot as soon as nobody reads it.
func (r *rig) dropSlot() {
	r.t.Helper()
	eventually(r.t, "the slot is dropped", func() bool {
		_, err := r.srcDB.Exec(r.t.Context(), `SELECT pg_drop_replication_slot($1)`, "rehome_"+r.id)
		return err == nil
	})
}

// noted says whether an event with all of these words was written.
func (m *memory) noted(words ...string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.notes {
		all := true
		for _, w := range words {
			all = all && strings.Contains(n, w)
		}
		if all {
			return true
		}
	}
	return false
}

// TestSlotMadeAnew: somebody dropped the slot and made one of the same name.
func TestSlotMadeAnew(t *testing.T) {
	t.Parallel()
	t.Run("ahead", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
		_, stop := r.start()
		r.waitPhase(tenant.InSync)
		stop()
		r.dropSlot()
		exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 9000, 1)`)
		exec(t, r.srcDB, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, "rehome_"+r.id)
		r.start()
		r.pausedFor("was acknowledged up to", "cancel the replication and start it again")
	})
	t.Run("behind", func(t *testing.T) {
		t.Parallel()
		// A copy of an older slot: what it still has includes all that is missing, so the stream goes on, and nothing that
		// the shards have is applied again.
		r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
		exec(t, r.srcDB, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, "older_"+r.id)
		t.Cleanup(func() { exec(t, r.srcDB, `SELECT pg_drop_replication_slot($1)`, "older_"+r.id) })
		_, stop := r.start()
		r.waitPhase(tenant.InSync)
		exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 9000, 1); UPDATE items SET n = n + 1`)
		eventually(t, "the shards have it", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = 9000`) == 1 })
		stop()
		r.dropSlot()
		exec(t, r.srcDB, `UPDATE items SET n = n + 1`)
		exec(t, r.srcDB, `SELECT pg_copy_logical_replication_slot($1, $2)`, "older_"+r.id, "rehome_"+r.id)
		e, _ := r.start()
		verifyWhenBack(t, r, e)
	})
	t.Run("of another kind", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
		_, stop := r.start()
		r.waitPhase(tenant.InSync)
		stop()
		r.dropSlot()
		exec(t, r.srcDB, `SELECT pg_create_logical_replication_slot($1, 'test_decoding')`, "rehome_"+r.id)
		r.start()
		r.pausedFor("made anew by others", "cancel")
	})
	t.Run("while the copy waits", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
		r.ownShards()
		r.throttle = tenant.Throttle{Query: "SELECT true"}
		e, _ := r.start()
		waitThrottled(t, e, "operator's query")
		r.dropSlot()
		r.pausedFor("is gone from the source", "cancel")
	})
}

// TestAnotherServer: the address leads to a server that is not the one the replication began with.
func TestAnotherServer(t *testing.T) {
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, itemsDDL)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	// Before its rows are looked at: it has the same slot and the same tables.
	other := pgcluster.StartT(t, pgcluster.Options{})
	was := r.source
	r.source = pgcluster.NewDatabase(t, other)
	c := open(t, r.source)
	exec(t, c, itemsDDL)
	exec(t, c, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, "rehome_"+r.id)
	_, stop = r.start()
	r.pausedFor("another server now", "cancel")
	stop()
	r.source = was // what is cleaned up
}

// TestPromotedStandby: the source failed over; its standby goes on on another timeline.
func TestPromotedStandby(t *testing.T) {
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, itemsDDL)
	standby := pgcluster.StartStandbyT(t, src, "replica", nil)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	was := r.source
	cfg, err := pgx.ParseConfig(was.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	r.source = standby.DSN(cfg.Database)
	_, stop = r.start()
	r.pausedFor("timeline 2 now", "every transaction of the former one")
	stop()
	r.source = was
}

// smallWAL is a source that keeps little WAL, in small segments.
func smallWAL(t *testing.T) *pgcluster.Cluster {
	t.Helper()
	return pgcluster.StartT(t, pgcluster.Options{
		InitArgs: []string{"--wal-segsize=1"},
		Settings: map[string]string{"max_slot_wal_keep_size": "24MB", "min_wal_size": "2MB", "max_wal_size": "8MB", "checkpoint_timeout": "1h", "wal_keep_size": "0"},
	})
}

// writeWAL makes the source write about so many megabytes of WAL in another database, as it would for others.
func writeWAL(t *testing.T, c *pgx.Conn, mb int) {
	t.Helper()
	for range mb {
		exec(t, c, `SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000))`)
	}
}

// TestSlotLostDuringTheCopy: the source takes the slot's WAL away while the copy waits. It is foretold, and then a stop.
func TestSlotLostDuringTheCopy(t *testing.T) {
	t.Parallel()
	src := smallWAL(t)
	r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, itemsDDL)
	r.ownShards()
	r.throttle = tenant.Throttle{Query: "SELECT true", MaxSlotWAL: 4_000_000}
	e, _ := r.start()
	p := waitThrottled(t, e, "operator's query")
	if p.Care.SlotLimit != 24<<20 || p.Care.SlotStatus != "reserved" || p.Care.SlotSafe <= 0 {
		t.Errorf("at first: %+v", p.Care)
	}
	writer := open(t, src.DSN("postgres"))
	eventually(t, "the loss is foretold", func() bool {
		writeWAL(t, writer, 1)
		waitTicks(t, 400)
		p = e.Progress()
		return p.Care.SlotLostSeconds >= 0 && p.Care.SlotLostSeconds < 30*60 && strings.Contains(p.Care.Warning, "loses its WAL")
	})
	t.Logf("%s (%.0f s, %.0f B/s)", p.Care.Warning, p.Care.SlotLostSeconds, p.Care.WALRate)
	if p.Care.WALRate < 100_000 || p.SlotWAL < 1_000_000 || p.SlotWAL > 24<<20 {
		t.Errorf("WAL rate %.0f B/s, slot WAL %d", p.Care.WALRate, p.SlotWAL)
	}
	if !r.jour.noted("alarm", "slot-in-danger") || !r.jour.noted("alarm", "slot-wal-high") {
		t.Errorf("no alarms among %q", r.jour.notes)
	}
	writeWAL(t, writer, 30)
	exec(t, writer, `CHECKPOINT`)
	r.pausedFor("removed WAL that slot", "raise max_slot_wal_keep_size")
}

// TestSlotLostWhileNobodyWorks: the same while no server works on the replication.
func TestSlotLostWhileNobodyWorks(t *testing.T) {
	t.Parallel()
	src := smallWAL(t)
	r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, itemsDDL)
	e, stop := r.start()
	r.waitPhase(tenant.InSync)
	if p := e.Progress(); p.Care.SlotLostSeconds != -1 {
		t.Errorf("a loss is foretold on an idle source: %+v", p.Care)
	}
	stop()
	writer := open(t, src.DSN("postgres"))
	writeWAL(t, writer, 40)
	exec(t, writer, `CHECKPOINT`)
	if st := scalar[string](t, r.srcDB, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1`, "rehome_"+r.id); st != "lost" {
		t.Fatalf("wal_status %s", st)
	}
	r.start()
	r.pausedFor("removed WAL that slot", "raise max_slot_wal_keep_size")
}

// TestSlotWaitsForATransaction: an open transaction is in the way of the slot; it is shown, and named at the time-out.
func TestSlotWaitsForATransaction(t *testing.T) {
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, itemsDDL)
	r.slotPatience = 6 * time.Second
	blocker := openAs(t, r.source, "nightly-report")
	exec(t, blocker, `BEGIN; UPDATE items SET n = 1 WHERE id = 1`)
	pid := scalar[int](t, blocker, `SELECT pg_backend_pid()`)
	e, stop := r.start()
	eventually(t, "the blocker is shown", func() bool { return strings.Contains(e.Progress().Blocked, "nightly-report") })
	r.waitPhase(tenant.Paused)
	st := r.jour.phase()
	for _, want := range []string{"within 6s", "pid " + strconv.Itoa(pid), "nightly-report", "open for 00:0", "query: SELECT pg_backend_pid()"} {
		if !strings.Contains(st.Reason, want) {
			t.Errorf("no %q in %q", want, st.Reason)
		}
	}
	if !strings.Contains(st.Remedy, "resume-replication") {
		t.Errorf("remedy %q", st.Remedy)
	}
	stop()
	exec(t, blocker, `COMMIT`)
	r.resume()
	e, _ = r.start()
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
}
