package replicator_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// copySome runs an engine until n more units are copied, and kills it.
func (r *rig) copySome(n int) {
	r.t.Helper()
	_, stop := r.start()
	defer stop()
	want := r.jour.copiedUnits() + n
	eventually(r.t, fmt.Sprintf("%d units are copied", want), func() bool {
		if st := r.jour.phase(); st.Phase != tenant.Created && st.Phase != tenant.Preparing && st.Phase != tenant.Copying {
			r.t.Fatalf("the copy ended before it could be interrupted: %s %s", st.Phase, st.Reason)
		}
		return r.jour.copiedUnits() >= want
	})
}

// atShards counts something at each shard.
func (r *rig) atShards(sql string, args ...any) []int64 {
	r.t.Helper()
	out := make([]int64, len(r.shards))
	r.asking.Lock()
	defer r.asking.Unlock()
	for i, sh := range r.shards {
		out[i] = scalar[int64](r.t, r.asker(sh.DSN), sql, args...)
	}
	return out
}

const familyDDL = `CREATE TABLE parents (realm_id text NOT NULL, id bigint NOT NULL, pad text, PRIMARY KEY (realm_id, id));
	CREATE TABLE children (realm_id text NOT NULL, id bigint NOT NULL, parent bigint, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, parent) REFERENCES parents);
	COMMENT ON CONSTRAINT children_realm_id_parent_fkey ON children IS 'kept';
	CREATE MATERIALIZED VIEW sizes AS SELECT count(*) AS n FROM parents;
	INSERT INTO parents SELECT 'r' || (g & 15), g, repeat('x', 100) FROM generate_series(1, 1000) g;
	INSERT INTO children SELECT realm_id, id, id FROM parents;`

// TestForeignKeysOverAnInterruptedCopy copies a child later than its parent, with a parent that came in between, and
// kills the engine while the foreign key waits.
func TestForeignKeysOverAnInterruptedCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1}, familyDDL)
	first := make(chan struct{})
	r.jour.first = first
	_, stop := r.start()
	<-first // the larger one, the parents
	exec(t, r.srcDB, `INSERT INTO parents SELECT 'r' || (g & 15), g FROM generate_series(2001, 2100) g; INSERT INTO children SELECT realm_id, id, id FROM parents WHERE id > 2000`)
	stop()
	const keys = `SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated`
	seen := false
	for range 50 {
		e, stop := r.start()
		eventually(t, "the phase goes on", func() bool {
			st := r.jour.phase().Phase
			seen = seen || e.Progress().Phase == tenant.CatchingUp && r.total(keys) == 0
			return st == tenant.CatchingUp || st == tenant.InSync || st == tenant.Paused
		})
		stop()
		if r.jour.phase().Phase != tenant.Copying {
			break
		}
	}
	for i := range 3 { // killed while it waits
		_, stop := r.start()
		waitTicks(t, 100*(i+1))
		stop()
	}
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for i, n := range r.atShards(keys) {
		if n != 1 {
			t.Errorf("in sync, but shard %d has %d foreign keys", i, n)
		}
	}
	if n := r.total(`SELECT count(*) FROM rehome.ddl_later`); n != 0 {
		t.Errorf("%d items still wait", n)
	}
	if n := r.total(`SELECT count(*) FROM pg_description WHERE description = 'kept'`); n != 2 {
		t.Errorf("%d of 2 comments on the foreign key", n)
	}
	if !seen {
		t.Log("the foreign key was there as soon as the replication caught up")
	}
	r.verifyClean(e)
}

// TestUniqueValuesOverAnInterruptedCopy moves a unique value from a chunk that is copied to one that is not.
func TestUniqueValuesOverAnInterruptedCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, ChunkBytes: 16 << 10}, `CREATE TABLE things (id int NOT NULL, realm_id text NOT NULL, name text NOT NULL, PRIMARY KEY (id, realm_id));
		CREATE UNIQUE INDEX things_name ON things (realm_id, name);
		CREATE UNIQUE INDEX things_both ON things (name, id);
		INSERT INTO things SELECT g, 'r' || (g & 7), 'name ' || g || repeat('x', 40) FROM generate_series(1, 3000) g;`)
	r.jour.slow = 100
	r.copySome(2)
	// Whatever chunks are done: values go from each row to one far away, so that some are twice in the copies.
	exec(t, r.srcDB, `BEGIN; CREATE TEMP TABLE was ON COMMIT DROP AS SELECT * FROM things WHERE id % 10 = 8;
		UPDATE things SET name = 'away ' || id WHERE id % 10 = 8;
		UPDATE things t SET name = w.name FROM was w WHERE t.id = 3008 - w.id + 0 AND t.realm_id = w.realm_id; COMMIT`)
	r.jour.mu.Lock()
	r.jour.slow = 0
	r.jour.mu.Unlock()
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for i, n := range r.atShards(`SELECT count(*) FROM pg_index WHERE indrelid = 'things'::regclass AND indisunique AND indisvalid`) {
		if n != 3 {
			t.Errorf("shard %d has %d of 3 unique indexes", i, n)
		}
	}
	r.verifyClean(e)
}

const bulkDDL = `CREATE TABLE big (id bigint NOT NULL, realm_id text NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, realm_id));
	INSERT INTO big SELECT g, 'r' || (g & 15), 0, repeat('x', 100) FROM generate_series(1, 6000) g; ANALYZE big;`

// TestChunkThatOnlyOneShardHas kills the engine between the commits of one chunk at two shards.
func TestChunkThatOnlyOneShardHas(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, ChunkBytes: 64 << 10}, bulkDDL)
	r.copySome(2)
	blocker := open(t, r.shards[1].DSN)
	exec(t, blocker, `BEGIN`)
	exec(t, blocker, `LOCK TABLE rehome.chunks IN SHARE MODE`) // reading goes on, the note of a chunk does not
	_, stop := r.start()
	const halves = `SELECT count(*) FROM rehome.chunks WHERE watermark IS NOT NULL`
	eventually(t, "the first shard has a chunk that the second does not", func() bool {
		n := r.atShards(halves)
		return n[0] > n[1]
	})
	stop()
	exec(t, blocker, `ROLLBACK`)
	exec(t, r.srcDB, `UPDATE big SET id = 5000000 - id WHERE id % 3 = 0; UPDATE big SET id = id - 5000000 WHERE id > 4999000; DELETE FROM big WHERE id % 5 = 1`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
	p := e.Progress()
	chunks := scalar[int64](t, open(t, r.shards[0].DSN), `SELECT count(*) FROM rehome.chunks`)
	if one := p.BytesDone / chunks; p.BytesAgain < one/2 || p.BytesAgain > one*3 { // the one that was cut off before comes on top
		t.Errorf("copied again %d bytes (%d rows), a chunk has about %d", p.BytesAgain, p.RowsAgain, one)
	}
}

// TestServersRestartWhileCopying restarts the source, and then a shard, in the middle of a chunked copy.
func TestServersRestartWhileCopying(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	dst := pgcluster.StartT(t, pgcluster.Options{Fsync: true})
	r := newRigOn(t, src, 2, chunkOptions(), chunksDDL)
	r.shards[1].DSN = pgcluster.NewDatabase(t, dst)
	r.jour.slow = 60
	e, _ := r.start()
	more := func(n int) {
		want := r.jour.copiedUnits() + n
		eventually(t, "chunks are copied", func() bool { return r.jour.copiedUnits() >= want })
		if st := r.jour.phase(); st.Phase != tenant.Copying {
			t.Fatalf("no longer copying: %s %s", st.Phase, st.Reason)
		}
	}
	more(5)
	if err := src.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.srcDB = open(t, r.source)
	exec(t, r.srcDB, `UPDATE ints SET id = -id * 1000 WHERE id > 2900 AND id < 2950; DELETE FROM log WHERE id % 9 = 0; INSERT INTO parents VALUES ('r1', 777777); INSERT INTO children VALUES (777777, 'r1', 777777)`)
	more(5)
	if err := dst.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := dst.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, r.srcDB, `UPDATE uuids SET n = n + 1; UPDATE texts SET n = 3; UPDATE children SET id = -id WHERE id % 11 = 0`)
	more(3)
	r.jour.mu.Lock()
	r.jour.slow = 0
	r.jour.mu.Unlock()
	r.waitPhase(tenant.InSync)
	verifyWhenBack(t, r, e)
	r.onceEach()
}

// TestLargeValueThatChangedItsChunk cannot be applied when the source does not send it, and says so.
func TestLargeValueThatChangedItsChunk(t *testing.T) {
	t.Parallel()
	for identity, fine := range map[string]bool{"USING INDEX big_pkey": false, "FULL": true} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1, ChunkBytes: 128 << 10}, bulkDDL+`ALTER TABLE big REPLICA IDENTITY `+identity+`;
				ALTER TABLE big ALTER pad SET STORAGE EXTERNAL; UPDATE big SET pad = repeat('y', 4000) WHERE id % 100 = 0; DELETE FROM big WHERE id % 100 = 51`)
			r.jour.slow = 50
			r.copySome(2)
			exec(t, r.srcDB, `UPDATE big SET id = 6051 - id WHERE id % 100 = 0`)
			r.jour.mu.Lock()
			r.jour.slow = 0
			r.jour.mu.Unlock()
			e, _ := r.start()
			if fine {
				r.waitPhase(tenant.InSync)
				r.verifyClean(e)
				return
			}
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, "changed its key while the interrupted copy stood still") || st.Remedy == "" {
				t.Errorf("paused for %q, remedy %q", st.Reason, st.Remedy)
			}
		})
	}
}

// TestProgressOfAChunkedCopy looks at the figures all the time, over an interruption.
func TestProgressOfAChunkedCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 2, ChunkBytes: 32 << 10}, bulkDDL)
	r.jour.slow = 30
	r.copySome(5)
	// One chunk of each worker may be at one shard only, and is copied again.
	before := r.atShards(`SELECT coalesce(sum(bytes), 0) - 2 * coalesce(max(bytes), 0) FROM rehome.chunks`)[0]
	e, _ := r.start()
	var last tenant.Progress
	eventually(t, "the copy ends", func() bool {
		p := e.Progress()
		if p.Percent > 100 || p.RowsDone > p.RowsTotal || p.BytesDone > p.BytesTotal {
			t.Fatalf("beyond the end: %+v", p)
		}
		if p.Phase == tenant.Copying && p.Step == "copying" && p.BytesDone > 0 {
			if p.BytesDone < before {
				t.Fatalf("%d bytes are done, of which %d were before the interruption", p.BytesDone, before)
			}
			if p.Percent == 100 && p.RowsDone < 6000 {
				t.Fatalf("100%% before the end: %+v", p)
			}
			last = p
		}
		return p.Phase == tenant.CatchingUp || p.Phase == tenant.InSync
	})
	if last.BytesTotal == 0 {
		t.Error("no progress was seen")
	}
	r.waitPhase(tenant.InSync)
	if p := e.Progress(); p.Percent != 100 || p.RowsDone != 6000 || p.RowsTotal != 6000 {
		t.Errorf("at the end: %+v", p)
	}
	r.verifyClean(e)
}
