package replicator_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// wideDDL makes about 8 MB of rows.
const wideDDL = `CREATE TABLE wide (realm_id text NOT NULL, id bigint NOT NULL, v text NOT NULL, PRIMARY KEY (realm_id, id));
	ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
	INSERT INTO wide SELECT 'r' || (g % 20), g, repeat('x', 4000) FROM generate_series(1, 2000) g;`

// ownShards puts the shards on a server of their own: a copy that waits keeps its transactions there open, and another
// test's slot would wait for them.
func (r *rig) ownShards() {
	c := pgcluster.StartT(r.t, pgcluster.Options{})
	for i := range r.shards {
		r.shards[i].DSN = pgcluster.NewDatabase(r.t, c)
	}
}

func waitThrottled(t *testing.T, e *replicator.Engine, want string) tenant.Progress {
	t.Helper()
	var p tenant.Progress
	eventually(t, "throttled: "+want, func() bool {
		p = e.Progress()
		return p.Throttled != "" && strings.Contains(p.Throttled, want)
	})
	return p
}

func TestQueryHoldsTheCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Exclude: []string{"public.busy"}}, wideDDL+`CREATE TABLE busy (n int); INSERT INTO busy VALUES (1);`)
	r.ownShards()
	r.throttle = tenant.Throttle{Query: "SELECT n FROM public.busy -- how busy;"}
	e, stop := r.start()
	p := waitThrottled(t, e, "operator's query says so (n is 1)")
	if p.RowsDone != 0 || p.Phase != tenant.Copying || p.Care == nil || p.Care.Since == nil {
		t.Errorf("while held: %d rows, phase %s, care %+v", p.RowsDone, p.Phase, p.Care)
	}
	stop() // a hold must not keep the engine from stopping; the next owner holds again
	e, _ = r.start()
	waitThrottled(t, e, "operator's query")
	exec(t, r.srcDB, `UPDATE busy SET n = 0`)
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
	if p := e.Progress(); p.Throttled != "" || p.Care.CheckError != "" {
		t.Errorf("afterwards: %q, %q", p.Throttled, p.Care.CheckError)
	}
}

// TestQueryHoldsAVerification: it waits between tables, while the stream goes on.
func TestQueryHoldsAVerification(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{Exclude: []string{"public.busy"}}, itemsDDL+`CREATE TABLE busy (n int); INSERT INTO busy VALUES (0);`)
	r.throttle = tenant.Throttle{Query: "SELECT n > 0 FROM public.busy"}
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `UPDATE busy SET n = 1`)
	done := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := e.Verify(ctx, replicator.VerifyOptions{})
		done <- err
	}()
	waitThrottled(t, e, "operator's query")
	exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 9000, 1)`)
	eventually(t, "the stream goes on", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = 9000`) == 1 })
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	exec(t, r.srcDB, `UPDATE busy SET n = 0`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestQueriesThatDoHarm: the operator's query reads one value and no more, whatever it is.
func TestQueriesThatDoHarm(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{Exclude: []string{"public.busy"}}, itemsDDL+`CREATE TABLE busy (n int); INSERT INTO busy VALUES (1);
		CREATE FUNCTION write() RETURNS int LANGUAGE sql AS 'UPDATE public.busy SET n = n + 100 RETURNING n';`)
	r.ownShards()
	r.throttle = tenant.Throttle{Query: "SELECT pg_sleep(60) IS NULL"} // holds, since it takes too long
	e, _ := r.start()
	waitThrottled(t, e, "took longer than")
	// What is wrong with a query does not hold the copy: this does, so that the source is looked at meanwhile.
	holder := open(t, r.source)
	exec(t, holder, "BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
	for query, want := range map[string]string{
		"DELETE FROM public.busy":                                 "42601",
		"SELECT 1; DELETE FROM public.busy":                       "42601",
		"SELECT 1) AS x; DELETE FROM public.busy; SELECT (1":      "42601",
		"WITH d AS (DELETE FROM public.busy RETURNING n) TABLE d": "0A000",
		"SELECT public.write()":                                   "25006",
		"SELECT n, n AS m FROM public.busy":                       "one column",
		"SELECT 'text'":                                           "a boolean or a number",
		"SELECT nowhere":                                          "42703",
	} {
		e.SetThrottle(tenant.Throttle{Query: "SELECT false"})
		eventually(t, "nothing is wrong before: "+query, func() bool { return e.Progress().Care.CheckError == "" })
		e.SetThrottle(tenant.Throttle{Query: query})
		eventually(t, query, func() bool { return strings.Contains(e.Progress().Care.CheckError, want) })
	}
	if n := scalar[int](t, r.srcDB, `SELECT n FROM busy`); n != 1 {
		t.Errorf("the table was written: %d", n)
	}
	exec(t, holder, "ROLLBACK")
	e.SetThrottle(tenant.Throttle{Off: true})
	r.waitPhase(tenant.InSync)
}

func TestRateOfTheCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, wideDDL)
	const rate = 1 << 20
	r.ownShards()
	r.throttle = tenant.Throttle{MaxRate: rate}
	e, _ := r.start()
	eventually(t, "the copy begins", func() bool { return e.Progress().BytesDone > 0 })
	began, from := time.Now(), e.Progress().BytesDone
	waitTicks(t, 2500)
	took, read := time.Since(began).Seconds(), e.Progress().BytesDone-from
	// A piece and the burst may be ahead of the rate; the half is to see that it flows at all.
	if low, high := int64(took*rate/2), int64(took*rate)+rate/4+3*(64<<10); read < low || read > high {
		t.Errorf("%d bytes in %.1f s, want %d to %d", read, took, low, high)
	}
	if p := e.Progress(); p.Phase != tenant.Copying {
		t.Errorf("phase %s, although 5 MB are left", p.Phase)
	}
	lifted := time.Now()
	e.SetThrottle(tenant.Throttle{})
	eventually(t, "the copy is done", func() bool { return r.jour.phase().Phase != tenant.Copying })
	if d := time.Since(lifted); d > 4*time.Second {
		t.Errorf("the rest took %s at full speed", d)
	}
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
}

// TestCopyJobsWhileRunning counts the sessions at the source that read tables.
func TestCopyJobsWhileRunning(t *testing.T) {
	t.Parallel()
	var ddl strings.Builder
	for i := range 6 {
		fmt.Fprintf(&ddl, `CREATE TABLE w%d (realm_id text NOT NULL, id bigint NOT NULL, v text, PRIMARY KEY (realm_id, id));
			INSERT INTO w%d SELECT 'r' || g, g, repeat('x', 500) FROM generate_series(1, 2000) g;`, i, i)
	}
	r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, ddl.String())
	r.ownShards()
	r.throttle = tenant.Throttle{MaxRate: 20_000}
	e, _ := r.start()
	readers := func() int {
		return scalar[int](t, r.srcDB, `SELECT count(*)::int FROM pg_stat_activity WHERE application_name = $1`, "rehome-copy-"+r.id)
	}
	eventually(t, "one reader", func() bool { return readers() == 1 })
	e.SetThrottle(tenant.Throttle{MaxRate: 20_000, CopyJobs: 4})
	eventually(t, "four readers", func() bool { return readers() == 4 })
	if n := e.Progress().Care.CopyJobs; n != 4 {
		t.Errorf("shows %d jobs", n)
	}
	e.SetThrottle(tenant.Throttle{})
	r.waitPhase(tenant.InSync)
	r.verifyClean(e)
}

// TestLaggingStandbyHoldsTheCopy: a standby that does not replay for a while is behind; the copy waits for it.
func TestLaggingStandbyHoldsTheCopy(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	standby := pgcluster.StartStandbyT(t, src, "replica", nil)
	sb := open(t, standby.DSN("postgres"))
	exec(t, sb, `SELECT pg_wal_replay_pause()`)
	for name, set := range map[string]tenant.Throttle{
		"is":         {MaxLagBytes: 1 << 20},
		"s behind":   {MaxLagSeconds: 1, MaxRate: 50_000}, // so slow that the copy is not over before a second of lag was seen
		"holds back": {MaxSlotWAL: 1 << 20},
	} {
		r := newRigOn(t, src, 1, tenant.ReplicationOptions{}, wideDDL)
		if name == "holds back" {
			// What a standby has received its slot lets go of; one that is stopped is not connected. A logical one that
			// reads nothing is both.
			holdLogicalSlot(t, r)
			exec(t, r.srcDB, `INSERT INTO wide SELECT 'r', g, repeat('y', 4000) FROM generate_series(10001, 11000) g`)
		}
		r.ownShards()
		r.throttle = set
		e, stop := r.start()
		p := waitThrottled(t, e, name)
		if p.RowsDone != 0 && name != "s behind" { // how long somebody has been behind is known only after a while
			t.Errorf("%s: %d rows were copied before the first look", name, p.RowsDone)
		}
		t.Logf("throttled: %s", p.Throttled)
		if name == "is" {
			exec(t, sb, `SELECT pg_wal_replay_resume()`)
			r.waitPhase(tenant.InSync)
			r.verifyClean(e)
			exec(t, sb, `SELECT pg_wal_replay_pause()`)
		}
		e.SetThrottle(tenant.Throttle{})
		r.waitPhase(tenant.InSync)
		stop()
	}
}

// holdLogicalSlot keeps a subscriber connected that acknowledges nothing.
func holdLogicalSlot(t *testing.T, r *rig) {
	t.Helper()
	exec(t, r.srcDB, `SELECT pg_create_logical_replication_slot('other_reader', 'pgoutput')`)
	c := openReplication(t, r.source)
	exec(t, r.srcDB, `CREATE PUBLICATION other_pub FOR TABLE wide`)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.Exec(ctx, `START_REPLICATION SLOT other_reader LOGICAL 0/0 (proto_version '1', publication_names 'other_pub')`).ReadAll()
	}()
	eventually(t, "the other reader is connected", func() bool {
		return scalar[bool](t, r.srcDB, `SELECT active FROM pg_replication_slots WHERE slot_name = 'other_reader'`)
	})
	t.Cleanup(func() {
		cancel()
		<-done
		_ = c.Close(context.Background())
		eventually(t, "the other reader's slot is dropped", func() bool {
			_, err := r.srcDB.Exec(context.Background(), `SELECT pg_drop_replication_slot('other_reader')`)
			return err == nil
		})
	})
}

func openReplication(t *testing.T, dsn tenant.DSN) *pgconn.PgConn {
	t.Helper()
	cfg, err := pgconn.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	c, err := pgconn.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
