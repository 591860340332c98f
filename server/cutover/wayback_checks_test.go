package cutover_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

func (w *world) dryRun(t *testing.T, noWayBack bool) []tenant.Finding {
	t.Helper()
	rep, err := w.coordinator(t, nil).Run(t.Context(), w.job, w.stream, cutover.Attempt{DryRun: true, NoWayBack: noWayBack})
	must(t, err)
	return rep.Findings
}

func find(list []tenant.Finding, code string) *tenant.Finding {
	if i := slices.IndexFunc(list, func(f tenant.Finding) bool { return f.Code == code }); i >= 0 {
		return &list[i]
	}
	return nil
}

// wants reports findings that are not there, or not as they should be: code=severity.
func wants(t *testing.T, list []tenant.Finding, want map[string]tenant.Severity) {
	t.Helper()
	for code, severity := range want {
		if f := find(list, code); f == nil || f.Severity != severity || f.Remedy == "" {
			t.Errorf("want %s (%s) with a remedy, got %+v in %+v", code, severity, f, list)
		}
	}
}

// A shard whose server cannot be read from refuses the cutover, unless no way back is wanted.
func TestShardsThatCannotBeReadFrom(t *testing.T) {
	t.Parallel()
	poor := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{
		"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "1", "max_slot_wal_keep_size": "1GB", "max_prepared_transactions": "2",
	}})
	w := newWorld(t, 1)
	ctx := t.Context()
	admin := pgcluster.NewDatabase(t, poor)
	root := connect(t, admin)
	dsn := asOwner(t, admin)
	conn := connect(t, dsn)
	exec(t, conn, strings.Split(schemaSQL, "INSERT")[0])
	must(t, gate.InstallShard(ctx, conn, pass))
	_, err := gate.FenceShardTables(ctx, conn)
	must(t, err)
	exec(t, root, "REVOKE CREATE ON DATABASE "+root.Config().Database+" FROM "+conn.Config().User)
	w.job.Shards[0].DSN = dsn

	list := w.dryRun(t, false)
	wants(t, list, map[string]tenant.Severity{
		"no-way-back-wal-level": tenant.Blocking, "no-way-back-role": tenant.Blocking, "way-back-slot-wal-limit": tenant.Warning, "way-back-schema-changes": tenant.Warning,
	})
	if !tenant.Blocks(list) {
		t.Error("the cutover would begin")
	}
	if list := w.dryRun(t, true); tenant.Blocks(list) || find(list, "way-back-slot-wal-limit") != nil || !find(list, "no-way-back-wal-level").Accepted {
		t.Errorf("without a way back: %+v", list)
	}

	exec(t, root, "ALTER ROLE "+conn.Config().User+" REPLICATION")
	wants(t, w.dryRun(t, false), map[string]tenant.Severity{"no-way-back-slots": tenant.Blocking})
	exec(t, root, "CREATE TABLE foreigner (id int)")
	exec(t, root, "BEGIN; CREATE TABLE prepared (id int); PREPARE TRANSACTION 'somebody'")
	eventually(t, "the finding", func() bool { return find(w.dryRun(t, false), "no-way-back-prepared-transaction") != nil })
	wants(t, w.dryRun(t, false), map[string]tenant.Severity{"no-way-back-owner": tenant.Blocking})
	exec(t, root, "ROLLBACK PREPARED 'somebody'")
}

// Shards share the slots of their server, and what an earlier way back left counts as free.
func TestSlotsOfSeveralShards(t *testing.T) {
	t.Parallel()
	small := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"max_replication_slots": "3"}})
	w := newWorld(t, 2)
	ctx := t.Context()
	for i := range w.job.Shards {
		w.job.Shards[i].DSN = pgcluster.NewDatabase(t, small)
		conn := connect(t, w.job.Shards[i].DSN)
		exec(t, conn, strings.Split(schemaSQL, "INSERT")[0])
		must(t, gate.InstallShard(ctx, conn, pass))
		_, err := gate.FenceShardTables(ctx, conn)
		must(t, err)
	}
	wants(t, w.dryRun(t, false), map[string]tenant.Severity{"way-back-slots": tenant.Warning, "way-back-schema-changes": tenant.Notice})
	conn := connect(t, w.job.Shards[0].DSN)
	exec(t, conn, "SELECT pg_create_physical_replication_slot('rehome_"+w.job.Replication+"_back_0'), pg_create_physical_replication_slot('rehome_"+w.job.Replication+"_back_1')")
	if list := w.dryRun(t, false); find(list, "no-way-back-slots") != nil {
		t.Errorf("slots that are replaced count: %+v", list)
	}
	exec(t, conn, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
	exec(t, conn, "SELECT pg_create_physical_replication_slot('one'), pg_create_physical_replication_slot('two')")
	list := w.dryRun(t, false)
	wants(t, list, map[string]tenant.Severity{"no-way-back-slots": tenant.Blocking})
	if f := find(list, "no-way-back-slots"); f.Object != "shard eu-1, eu-2" {
		t.Errorf("the finding names %s", f.Object)
	}

	// Whoever holds a slot's creation up is named with pid and query, in whatever database.
	other := connect(t, pgcluster.NewDatabase(t, small))
	exec(t, other, "BEGIN; CREATE TABLE held_up (id int)")
	eventually(t, "the finding", func() bool { return find(w.dryRun(t, false), "way-back-long-transaction") != nil })
	f := find(w.dryRun(t, false), "way-back-long-transaction")
	if !strings.Contains(f.Message, "held_up") || !strings.Contains(f.Message, "idle in transaction") || !strings.Contains(f.Object, "pid ") {
		t.Errorf("the transaction is named as %+v", f)
	}
}

// What the source's own tables have against being written to again by our role.
func TestSourceThatCannotBeWrittenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	conn := connect(t, w.job.Source)
	if list := w.dryRun(t, false); hasFinding(list, "no-way-back") {
		t.Fatalf("without foreign keys and triggers: %+v", list)
	}
	exec(t, conn, `
		CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER always BEFORE INSERT ON orders_2026 FOR EACH ROW EXECUTE FUNCTION quiet(); ALTER TABLE orders_2026 ENABLE ALWAYS TRIGGER always;
		ALTER TABLE entries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		ALTER TABLE entries ADD COLUMN parent text, ADD CONSTRAINT above FOREIGN KEY (parent) REFERENCES entries (id), ADD COLUMN email text CONSTRAINT one_email UNIQUE;`)
	list := w.dryRun(t, false)
	wants(t, list, map[string]tenant.Severity{"no-way-back": tenant.Blocking, "no-way-back-trigger": tenant.Blocking, "no-way-back-row-security": tenant.Blocking})
	if find(list, "way-back-foreign-key-unchecked") != nil || find(list, "way-back-unique-per-shard") != nil {
		t.Errorf("constraints that the shards have: %+v", list)
	}
	accepted := w.job.Accept
	w.job.Accept = append(slices.Clone(accepted), "constraint-without-realm:public.entries.above", "constraint-without-realm:public.one_email", "trigger-always:public.orders_2026.always")
	list = w.dryRun(t, false)
	wants(t, list, map[string]tenant.Severity{"way-back-foreign-key-unchecked": tenant.Warning, "way-back-unique-per-shard": tenant.Warning})
	if find(list, "no-way-back-trigger") != nil {
		t.Errorf("a trigger that was accepted refuses: %+v", list)
	}
	if list := w.dryRun(t, true); tenant.Blocks(list) {
		t.Errorf("--no-way-back does not wave through: %+v", list)
	}
	// Accepted by name it is the same as --no-way-back.
	w.job.Accept = append(w.job.Accept, "no-way-back:source", "no-way-back-row-security:public.entries")
	if list := w.dryRun(t, false); tenant.Blocks(list) {
		t.Errorf("accepted by name: %+v", list)
	}

	// The checks of a deferrable unique key and triggers of Rehome's own need no replica role.
	exec(t, conn, `ALTER TABLE entries DROP CONSTRAINT above, DROP CONSTRAINT one_email, NO FORCE ROW LEVEL SECURITY; DROP TRIGGER always ON orders_2026;
		ALTER TABLE entries ADD CONSTRAINT late UNIQUE (email) DEFERRABLE;
		CREATE TRIGGER rehome_truncated_abc AFTER TRUNCATE ON orders_2026 FOR EACH STATEMENT EXECUTE FUNCTION rehome.note_truncation();
		ALTER TABLE orders_2026 ENABLE ALWAYS TRIGGER rehome_truncated_abc`)
	w.job.Accept = accepted
	if list := w.dryRun(t, false); tenant.Blocks(list) {
		t.Errorf("nothing is in the way of writing back: %+v", list)
	}
	exec(t, conn, `CREATE RULE double AS ON DELETE TO entries DO ALSO NOTIFY gone`)
	wants(t, w.dryRun(t, false), map[string]tenant.Severity{"no-way-back": tenant.Blocking})
}
