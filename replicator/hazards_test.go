package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// TestDeferrableKeys swaps the values of a key that may be doubled within a transaction.
func TestDeferrableKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, `CREATE TABLE items (realm_id text NOT NULL, id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int, doc json);
		ALTER TABLE items REPLICA IDENTITY FULL; INSERT INTO items SELECT 'r1', g, g FROM generate_series(1, 10) g;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `BEGIN; UPDATE items SET id = 2 WHERE n = 1; UPDATE items SET id = 1 WHERE n = 2; DELETE FROM items WHERE n = 3; COMMIT`)
	exec(t, r.srcDB, `UPDATE items SET id = 11 - id`)
	exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 100, 100)`)
	eventually(t, "the last row arrives", func() bool {
		r.waitPhase(tenant.InSync)
		return r.total(`SELECT count(*) FROM items WHERE id = 100`) == 1
	})
	r.verifyClean(e)
}

// TestChangedTypesPause changes types at the source in ways that the shards' old types would take, and round.
func TestChangedTypesPause(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, `CREATE TABLE items (realm_id text NOT NULL, id int PRIMARY KEY, price numeric(10,2), ratio real);`)
	r.asOwner()
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	for i, c := range []struct{ column, now string }{{"price", "numeric(12,4)"}, {"ratio", "double precision"}} {
		alter := fmt.Sprintf(`ALTER TABLE items ALTER %s TYPE %s`, c.column, c.now)
		exec(t, r.srcDB, alter)
		exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', $1, 1.2345, 0.123456789012)`, i)
		r.waitPhase(tenant.Paused)
		if st := r.jour.phase(); !strings.Contains(st.Reason, "another type for "+c.column) {
			t.Fatalf("paused for %q", st.Reason)
		}
		stop()
		exec(t, open(t, r.shards[0].DSN), alter)
		r.resume()
		_, stop = r.start()
		r.waitPhase(tenant.InSync)
		eventually(t, "the row of the new type arrives", func() bool {
			return r.total(`SELECT count(*) FROM items WHERE id = $1 AND price = 1.2345`, i) == 1
		})
	}
}

// TestLimitsOfTheServers sets, for both sides, the limits that hosted databases set for everybody.
func TestLimitsOfTheServers(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1}, itemsDDL+`CREATE TABLE other (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
		INSERT INTO other SELECT 'r' || g, g FROM generate_series(1, 100) g;`)
	limit := func(dsn tenant.DSN) {
		c := open(t, dsn)
		for _, s := range []string{
			"idle_in_transaction_session_timeout = '200ms'", "statement_timeout = '2s'", "idle_session_timeout = '3s'",
			"default_transaction_read_only = on", "default_transaction_isolation = 'serializable'",
		} {
			exec(t, c, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET `+strings.ReplaceAll(s, "'", "''")+`', current_database()); END $$`)
		}
	}
	limit(r.source)
	for _, sh := range r.shards {
		limit(sh.DSN)
	}
	// A session of ours has them for the moment between its beginning and its first statement, so that none is shorter than a busy
	// machine's moments. While the copy waits at the first table's end, the session that holds the snapshot is idle in a transaction.
	r.jour.slow = 700
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `UPDATE items SET n = 3`)
	waitTicks(t, 4000)
	r.verifyClean(e)
	r.jour.mu.Lock()
	defer r.jour.mu.Unlock()
	for _, n := range r.jour.notes {
		if strings.HasPrefix(n, "retry") {
			t.Error(n)
		}
	}
}

// TestKeysOfExtensionTypes has keys whose operators are not in pg_catalog.
func TestKeysOfExtensionTypes(t *testing.T) {
	t.Parallel()
	const setup = `CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;`
	r := newRig(t, 1, tenant.ReplicationOptions{Reference: []string{"public.people", "public.paths"}}, setup+`
		CREATE DOMAIN mail AS ext.citext CHECK (value <> '');
		CREATE TABLE people (email mail PRIMARY KEY, n int);
		CREATE TABLE paths (path ext.ltree PRIMARY KEY, n int);
		INSERT INTO people SELECT 'Person' || g || '@x', g FROM generate_series(1, 50) g;
		INSERT INTO paths SELECT ('a.b' || g)::ext.ltree, g FROM generate_series(1, 50) g;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `UPDATE people SET n = n + 1`)
	exec(t, r.srcDB, `UPDATE people SET email = 'PERSON7@x' WHERE n = 8`)
	exec(t, r.srcDB, `UPDATE paths SET n = n + 1`)
	exec(t, r.srcDB, `DELETE FROM paths WHERE n < 10`)
	exec(t, r.srcDB, `INSERT INTO paths VALUES ('z', 0)`)
	eventually(t, "the last row arrives", func() bool {
		r.waitPhase(tenant.InSync)
		return r.total(`SELECT count(*) FROM paths WHERE n = 0`) == 1
	})
	r.verifyClean(e)
}

// TestNothingIsAcknowledgedBeforeItIsOnDisk restarts the engine while a shard still has the last commits in its buffers
// only, and then lets that shard lose them.
func TestNothingIsAcknowledgedBeforeItIsOnDisk(t *testing.T) {
	t.Parallel()
	dst := pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: map[string]string{"wal_writer_delay": "10s", "bgwriter_delay": "10s"}})
	r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
	r.shards[0].DSN = pgcluster.NewDatabase(t, dst)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	lost := false
	for i := 0; i < 5 && !lost; i++ {
		exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', $1, 1)`, 20000+i)
		eventually(t, "the row arrives", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = $1`, 20000+i) == 1 })
		stop()
		var e *replicator.Engine
		e, stop = r.start()
		eventually(t, "it streams and acknowledges", func() bool {
			return len(e.Progress().Shards) == 1 && scalar[int](t, r.srcDB, `SELECT count(*)::int FROM pg_stat_replication WHERE application_name = $1 AND flush_lsn IS NOT NULL`, "rehome-stream-"+r.id) == 1
		})
		if err := dst.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := dst.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		lost = r.total(`SELECT count(*) FROM items WHERE id = $1`, 20000+i) == 0
		verifyWhenBack(t, r, e)
	}
	if !lost {
		t.Log("the shard never lost a commit, so this showed nothing")
	}
}

// TestCopyOfAStalledWorkerIsEnded takes over from a worker that stands still in the middle of a copy, with its sessions open.
func TestCopyOfAStalledWorkerIsEnded(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, itemsDDL+`CREATE TABLE other (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));`)
	r.jour.first = make(chan struct{})
	first := r.jour.first
	_, stop := r.start()
	<-first
	stop()
	c := openAs(t, r.shards[0].DSN, "rehome-copy-"+r.id)
	exec(t, c, `BEGIN`)
	exec(t, c, `SELECT 1 FROM rehome.applier FOR SHARE`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
}

// fenced is a journal that refuses a worker whose epoch is not the last one, as the control database does. Its hook runs
// at each step.
type fenced struct {
	*memory
	rig   *rig
	epoch int64
	hook  func(step string)
}

func (f *fenced) Observe(ctx context.Context, o tenant.Observation) (tenant.State, error) {
	f.mu.Lock()
	newer := f.rig.epoch > f.epoch
	f.mu.Unlock()
	if newer {
		return tenant.State{}, replicator.ErrFenced
	}
	return f.memory.Observe(ctx, o)
}

func (f *fenced) Note(ctx context.Context, event string, data any) {
	if m, ok := data.(map[string]any); ok && f.hook != nil {
		f.hook(fmt.Sprint(m["step"]))
	}
	f.memory.Note(ctx, event, data)
}

// startHooked starts an engine whose steps are told to hook, and returns what its Run returned.
func (r *rig) startHooked(hook func(step string)) (done chan error, stop func()) {
	r.t.Helper()
	r.jour.mu.Lock()
	r.epoch++
	f := &fenced{memory: r.jour, rig: r, epoch: r.epoch, hook: hook}
	r.jour.mu.Unlock()
	cfg := r.config()
	cfg.Journal = f
	e, err := replicator.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		done <- e.Run(ctx)
		close(ended)
	}()
	stop = func() { cancel(); <-ended }
	r.t.Cleanup(stop)
	return done, stop
}

// TestStalledPreparationTouchesNothing lets a worker stand still just before it makes its slot, until another has long
// made another and streams.
func TestStalledPreparationTouchesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	reached, goOn := make(chan struct{}), make(chan struct{})
	done, _ := r.startHooked(func(step string) {
		if step == "creating publication and slot" {
			close(reached)
			<-goOn
		}
	})
	<-reached
	r.startHooked(nil)
	r.waitPhase(tenant.InSync)
	slot := `SELECT restart_lsn::text || catalog_xmin::text FROM pg_replication_slots WHERE slot_name = $1`
	publication := `SELECT oid::int FROM pg_publication WHERE pubname = $1`
	before, pub := scalar[string](t, r.srcDB, slot, "rehome_"+r.id), scalar[int](t, r.srcDB, publication, "rehome_"+r.id)
	close(goOn)
	if err := <-done; !errors.Is(err, replicator.ErrFenced) {
		t.Errorf("the stalled worker ended with %v", err)
	}
	if now := scalar[int](t, r.srcDB, publication, "rehome_"+r.id); now != pub {
		t.Error("the stalled worker made the publication anew")
	}
	exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 30000, 1)`)
	eventually(t, "the stream goes on", func() bool {
		r.waitPhase(tenant.InSync)
		return r.total(`SELECT count(*) FROM items WHERE id = 30000`) == 1
	})
	_ = before
}

// TestPartitionThatComesBeforeTheSlot makes a partition after the source was described and before its snapshot.
func TestPartitionThatComesBeforeTheSlot(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, `CREATE TABLE log (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
		CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (100); INSERT INTO log SELECT 'r' || g, g FROM generate_series(1, 50) g;`)
	made := false
	r.startHooked(func(step string) {
		if step == "creating publication and slot" && !made {
			made = true
			exec(t, r.srcDB, `CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (100) TO (200); INSERT INTO log VALUES ('r1', 150)`)
		}
	})
	r.waitPhase(tenant.InSync)
	if n := r.total(`SELECT count(*) FROM log`); n != 51 {
		t.Errorf("%d rows, want 51", n)
	}
}

// TestPartitionThatComesBeforeASecondSnapshot makes it while the copy is interrupted: a loud stop.
func TestPartitionThatComesBeforeASecondSnapshot(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, itemsDDL+`CREATE TABLE log (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
		CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (100);`)
	first := make(chan struct{})
	r.jour.first = first
	_, stop := r.start()
	<-first
	stop()
	exec(t, r.srcDB, `CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (100) TO (200); INSERT INTO log VALUES ('r1', 150)`)
	r.start()
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "partitions of table public.log changed") {
		t.Errorf("paused for %q", st.Reason)
	}
}

// TestMarkerOfAShardThatHasIt loses the lanes between a marker's arrival at one shard and at the other.
func TestMarkerOfAShardThatHasIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	blocker := open(t, r.shards[1].DSN)
	exec(t, blocker, `BEGIN`)
	exec(t, blocker, `LOCK TABLE items IN EXCLUSIVE MODE`)
	exec(t, r.srcDB, `UPDATE items SET n = 8`)
	if err := gate.WriteMarker(t.Context(), r.srcDB, "attempt-1", "cutover"); err != nil {
		t.Fatal(err)
	}
	shard0 := open(t, r.shards[0].DSN)
	eventually(t, "the first shard has the marker", func() bool {
		return scalar[bool](t, shard0, `SELECT max(lsn) >= $1::pg_lsn FROM rehome.progress`, scalar[string](t, r.srcDB, `SELECT pg_current_wal_lsn()::text`)) ||
			scalar[int](t, shard0, `SELECT count(*)::int FROM items WHERE n = 8`) > 0
	})
	waitTicks(t, 300)
	stop()
	exec(t, blocker, `ROLLBACK`)
	e, _ := r.start()
	_, pos, err := e.WaitMarker(within(t), "attempt-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(pos) != 2 {
		t.Errorf("positions: %v", pos)
	}
}

// TestTruncates truncates what refers to each other, a partition tree, and one of two tables whose copies are of
// different positions.
func TestTruncates(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE a (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id));
		CREATE TABLE b (realm_id text NOT NULL, id int NOT NULL, a int, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, a) REFERENCES a);
		CREATE TABLE log (realm_id text NOT NULL, id int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
		CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (1000);
		INSERT INTO a SELECT 'r' || g % 7, g FROM generate_series(1, 50) g; INSERT INTO b SELECT realm_id, id, id FROM a;`
	t.Run("together", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 2, tenant.ReplicationOptions{}, strings.Replace(ddl, "GENERATED ALWAYS AS IDENTITY", "NOT NULL", 1)+`INSERT INTO log SELECT 'r' || g, g FROM generate_series(1, 50) g;`)
		e, _ := r.start()
		r.waitPhase(tenant.InSync)
		exec(t, r.srcDB, `BEGIN; TRUNCATE a CASCADE; TRUNCATE log RESTART IDENTITY; INSERT INTO a VALUES ('r1', 1); COMMIT`)
		exec(t, r.srcDB, `INSERT INTO log VALUES ('r5', 77)`)
		eventually(t, "the last row arrives", func() bool {
			r.waitPhase(tenant.InSync)
			return r.total(`SELECT count(*) FROM log WHERE id = 77`) == 1
		})
		r.verifyClean(e)
	})
	t.Run("apart", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, strings.Split(ddl, "CREATE TABLE log")[0]+`INSERT INTO a SELECT 'r' || g % 7, g FROM generate_series(1, 5000) g;`)
		first := make(chan struct{})
		r.jour.first = first
		_, stop := r.start()
		<-first
		stop() // the copy's sessions hold locks that a TRUNCATE waits for
		exec(t, r.srcDB, `BEGIN; TRUNCATE a CASCADE; INSERT INTO a VALUES ('r1', 1); INSERT INTO b VALUES ('r1', 1, 1); COMMIT`)
		e, _ := r.start()
		r.waitPhase(tenant.InSync)
		r.verifyClean(e)
	})
}

// TestIdentitiesThatAreGeneratedAnew gives rows new values of a column that no UPDATE may set.
func TestIdentitiesThatAreGeneratedAnew(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2} {
		r := newRig(t, shards, tenant.ReplicationOptions{}, `CREATE TABLE items (realm_id text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, n int, big text, PRIMARY KEY (realm_id, id));
			CREATE TABLE whole (realm_id text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, n int, big text); ALTER TABLE whole REPLICA IDENTITY FULL;
			ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
			INSERT INTO items (realm_id, n) SELECT 'r' || g, g FROM generate_series(1, 20) g;
			INSERT INTO whole (realm_id, n, big) SELECT 'r' || g, g, repeat('x', 5000) FROM generate_series(1, 20) g;`)
		e, _ := r.start()
		r.waitPhase(tenant.InSync)
		exec(t, r.srcDB, `UPDATE items SET id = DEFAULT WHERE n % 2 = 0; UPDATE items SET n = n + 1; UPDATE whole SET id = DEFAULT, n = 0 WHERE n % 2 = 0`)
		exec(t, r.srcDB, `INSERT INTO items (realm_id, n) VALUES ('r1', 1000)`)
		eventually(t, "the last row arrives", func() bool {
			r.waitPhase(tenant.InSync)
			return r.total(`SELECT count(*) FROM items WHERE n = 1000`) == 1
		})
		r.verifyClean(e)
	}
}
