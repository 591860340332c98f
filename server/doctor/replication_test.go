package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// A replication's life, with faults injected at each stage.
func TestReplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.replicate()
	slot := "rehome_" + w.id
	w.finds()

	// In sync, with its worker.
	w.at(w.shard(), `ALTER TABLE items DISABLE TRIGGER rehome_fence`)
	w.fixes([]string{"shard-fence"})
	w.at(w.shard(), `DROP TRIGGER rehome_fence ON items`)
	w.fixes([]string{"shard-fence"})
	w.at(w.shard(), `DROP TABLE rehome.gate`)
	w.fixes([]string{"shard-gate-missing"})
	w.at(w.shard(), `INSERT INTO rehome.applier VALUES ('stranger0001', 1)`)
	w.finds("applier-unknown")
	w.at(w.shard(), `DELETE FROM rehome.applier WHERE replication = 'stranger0001'`)
	w.at(w.shard(), `UPDATE rehome.gate SET side = 'target'; ALTER TABLE items DISABLE TRIGGER rehome_fence`)
	w.finds("both-open")
	w.at(w.shard(), `UPDATE rehome.gate SET side = 'closed'; ALTER TABLE items ENABLE ALWAYS TRIGGER rehome_fence`)
	w.at(w.source, `CREATE TRIGGER rehome_fence BEFORE INSERT ON items FOR EACH STATEMENT EXECUTE FUNCTION rehome.fence()`)
	w.finds("source-fence-closed")
	w.at(w.source, `DROP TRIGGER rehome_fence ON items`)
	w.at(w.source, `SELECT pg_create_logical_replication_slot('rehome_stranger', 'pgoutput')`)
	w.fixes([]string{"slot-orphan"}, "slot-orphan") // never dropped
	w.at(w.source, `SELECT pg_drop_replication_slot('rehome_stranger')`)
	w.finds()

	// Slots of ways back.
	w.at(w.shard(), `SELECT pg_create_logical_replication_slot('rehome_stranger_back_0', 'pgoutput')`)
	w.finds("way-back-orphan")
	w.at(w.shard(), `SELECT pg_drop_replication_slot('rehome_stranger_back_0'), pg_create_logical_replication_slot('`+slot+`_back_0', 'pgoutput')`)
	w.fixes([]string{"way-back-left"}, "way-back-left") // the worker's own
	w.at(w.shard(), `SELECT pg_drop_replication_slot('`+slot+`_back_0')`)
	w.finds()

	// Without a worker.
	stop()
	w.control(`UPDATE rehome_control.leases SET expires_at = now() - interval '1 minute'`)
	w.finds("lease-expired", "slot-inactive")
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "paused", "resume": "in_sync"}', phase = 'paused'`)
	w.control(`UPDATE rehome_control.leases SET expires_at = now() + interval '1 hour'`)
	w.finds()
	w.at(w.shard(), `UPDATE rehome.applier SET epoch = epoch + 100`)
	w.finds("epoch-ahead")
	w.at(w.shard(), `UPDATE rehome.applier SET epoch = epoch - 100; CREATE TABLE kept AS TABLE rehome.progress; UPDATE rehome.progress SET lsn = '0/1'`)
	w.finds("shard-behind-slot", "shard-fence") // the new table is open
	w.at(w.shard(), `DELETE FROM rehome.progress`)
	w.finds("progress-missing", "shard-fence")
	w.at(w.shard(), `INSERT INTO rehome.progress TABLE kept; DROP TABLE kept`)
	w.control(`UPDATE rehome_control.replications SET source_identity = jsonb_set(source_identity, '{system_identifier}', '"1"')`)
	w.finds("source-other-server")
	w.control(`UPDATE rehome_control.replications SET source_identity = source_identity - 'system_identifier'`)
	w.control(`UPDATE rehome_control.replications SET source_dsn_sealed = $1`, w.box.Seal("source-dsn", "postgres://u:hidden@127.0.0.1:1/x"))
	if r := w.finds("source-unreachable"); strings.Contains(r.Findings[0].Message, "hidden") {
		t.Errorf("a password is in %q", r.Findings[0].Message)
	}
	w.control(`UPDATE rehome_control.replications SET source_dsn_sealed = $1`, w.box.Seal("source-dsn", w.source.Reveal()))
	w.at(w.source, `ALTER PUBLICATION `+slot+` RENAME TO hidden`)
	w.finds("publication-missing")
	w.at(w.source, `ALTER PUBLICATION hidden RENAME TO `+slot)
	w.at(w.source, `ALTER TABLE rehome.gate RENAME TO hidden`)
	w.finds("gate-missing")
	w.at(w.source, `ALTER TABLE rehome.hidden RENAME TO gate`)
	w.finds()

	// An attempt that nobody ended, and then one that was decided and followed by nobody.
	w.attempt("a1", w.gate(w.source).Epoch)
	w.control(`UPDATE rehome_control.cutovers SET started_at = now()`)
	w.finds() // it may be under way
	w.control(`UPDATE rehome_control.cutovers SET started_at = now() - interval '1 hour'`)
	w.fixes([]string{"cutover-unfinished"})
	e := w.gate(w.source).Epoch
	w.attempt("a2", e)
	w.decide("a2", e)
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "paused", "resume": "cut_over"}'`)
	w.fixes([]string{"cutover-unfinished", "shard-closed"})
	if s := w.gate(w.shard()); s.Side != gate.SideTarget || s.Epoch != e+1 {
		t.Errorf("the shard did not follow: %+v", s)
	}
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "paused", "resume": "in_sync"}'`)
	w.finds("gate-against-phase")
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "paused", "resume": "cut_over"}'`)
	w.at(w.source, `ALTER EVENT TRIGGER rehome_fence_ddl_end DISABLE; ALTER TABLE items DISABLE TRIGGER rehome_fence; ALTER EVENT TRIGGER rehome_fence_ddl_end ENABLE ALWAYS`)
	w.fixes([]string{"source-fence-open"})
	w.control(`UPDATE rehome_control.cutovers SET outcome = 'target', certificate = NULL WHERE attempt = 'a2'`)
	w.finds("certificate-missing")
	w.control(`UPDATE rehome_control.cutovers SET certificate = '{}' WHERE attempt = 'a2'`)
	w.at(w.source, `SELECT pg_drop_replication_slot('`+slot+`')`)
	w.finds("slot-missing")
	w.at(w.source, `SELECT pg_create_logical_replication_slot('`+slot+`', 'pgoutput')`)

	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "cut_over"}', phase = 'cut_over'`)
	w.finds("shard-behind-slot", "slot-inactive", "way-back-missing") // the slot was made anew above
	w.at(w.shard(), `SELECT pg_create_logical_replication_slot('`+slot+`_back_0', 'pgoutput')`)
	w.finds("shard-behind-slot", "slot-inactive", "way-back-inactive", "way-back-missing") // at the other shard

	// Completed, and nothing cleaned up.
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "completed"}', phase = 'completed', ended_at = now()`)
	w.fixes([]string{"changes-left", "progress-left", "publication-left", "schema-left", "slot-left", "way-back-left"})
	if s := w.gate(w.source); s.Side != gate.SideTarget {
		t.Errorf("the source is not fenced any more: %+v", s)
	}
	if _, err := w.catalogue.Placement(t.Context(), w.database); err != nil {
		t.Error(err)
	}
}

// A cancelled replication whose clean-up was lost; beside it another one of the same source needs what is there.
func TestCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_ = w.replicate()
	const id = "cancelled001"
	w.record(id, tenant.Cancelled)
	w.at(w.source, `CREATE UNIQUE INDEX rehome_ident_1 ON items (id); CREATE PUBLICATION rehome_`+id+` FOR TABLE items`)
	w.at(w.source, `SELECT pg_create_logical_replication_slot('rehome_`+id+`', 'pgoutput')`)
	w.control(`INSERT INTO rehome_control.source_changes (replication, ordinal, object, description, do_sql, undo_sql)
		VALUES ($1, 1, 'public.items', 'unique index', '', 'DROP INDEX CONCURRENTLY IF EXISTS public.rehome_ident_1')`, id)
	w.fixes([]string{"publication-left", "slot-left"})
	if w.ask(w.source, `SELECT (to_regclass('rehome.gate') IS NOT NULL AND to_regclass('rehome_ident_1') IS NOT NULL AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'rehome_`+w.id+`'))::text`) != "true" {
		t.Error("what the other replication needs was taken")
	}
}

func TestCancelledAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.replicate()
	stop()
	w.at(w.source, `CREATE UNIQUE INDEX rehome_ident_1 ON items (id)`)
	w.control(`UPDATE rehome_control.replications SET state = '{"phase": "cancelled"}', phase = 'cancelled', ended_at = now()`)
	w.fixes([]string{"changes-left", "publication-left", "schema-left", "slot-left"}, "index-left")
	w.control(`INSERT INTO rehome_control.source_changes (replication, ordinal, object, description, do_sql, undo_sql)
		VALUES ($1, 2, 'public.items', 'unique index', '', 'DROP INDEX CONCURRENTLY IF EXISTS public.rehome_ident_1')`, w.id)
	w.fixes([]string{"changes-left"})
	if w.ask(w.source, `SELECT (to_regnamespace('rehome') IS NULL AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database()))::text`) != "true" {
		t.Error("the source is not as it was")
	}
}

func (w *world) gate(dsn tenant.DSN) gate.State {
	w.t.Helper()
	conn, err := gate.SourceSession(w.t.Context(), dsn)
	w.must(err)
	defer func() { w.must(conn.Close(w.t.Context())) }()
	s, err := gate.ReadGate(w.t.Context(), conn)
	w.must(err)
	return s
}

// attempt records an attempt to cut over that has no outcome and is old.
func (w *world) attempt(id string, epoch int64) {
	w.t.Helper()
	w.control(`INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms, started_at)
		VALUES ($1, $2, 'cutover', $3, 'intent', 5000, now() - interval '1 hour')`, id, w.id, epoch)
}

// decide commits the decision for the target at the source, and does nothing more.
func (w *world) decide(id string, epoch int64) {
	w.t.Helper()
	ctx := w.t.Context()
	a, err := gate.Open(ctx, gate.Config{Source: w.source, Attempt: id, Epoch: epoch, NewURL: "https://own.test/x"})
	w.must(err)
	defer a.Close(ctx)
	w.must(a.Prelock(ctx))
	w.must(a.Fence(ctx, time.Now().Add(patience)))
	w.must(a.CreateTriggers(ctx))
	w.must(a.Commit(ctx))
}
