package replicator_test

import (
	"fmt"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// smallDDL is a table for small groups, and what the shard does at the end of a transaction, to each row that says so: it
// fails, or ends the session of who commits.
const smallDDL = `CREATE TABLE items (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id)); INSERT INTO items SELECT 'r1', i, 0 FROM generate_series(1, 20) i`

// atEndSQL fires when the transaction is ended: behind all statements, as the synchronisation point is taken.
const atEndSQL = `CREATE TABLE public.ends (n int NOT NULL, what text NOT NULL);
	CREATE FUNCTION public.at_end() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE w text;
	BEGIN
		SELECT what INTO w FROM public.ends WHERE n = NEW.n;
		IF w = 'fail' THEN
			RAISE EXCEPTION 'not this one' USING ERRCODE = '40001';
		ELSIF w = 'die' THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER at_end AFTER INSERT OR UPDATE ON public.items DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.at_end();
	ALTER TABLE public.items ENABLE ALWAYS TRIGGER at_end`

// TestSmallGroupThatEndsBadly: what fails, or ends the session, at the very point that commits a small group takes all of the
// group back, its position too. It is applied once, when it can be.
func TestSmallGroupThatEndsBadly(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"fail", "die"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{}, smallDDL)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			exec(t, shard, atEndSQL)
			r.settled(e, `UPDATE items SET n = 1 WHERE id = 1`, `SELECT count(*) FROM items WHERE id = 1 AND n = 1`)
			exec(t, shard, `INSERT INTO public.ends VALUES (2, $1)`, what)
			exec(t, r.srcDB, `BEGIN; INSERT INTO items VALUES ('r1', 100, 0); UPDATE items SET n = n + 2 WHERE id = 2; DELETE FROM items WHERE id = 3; COMMIT`)
			exec(t, r.srcDB, `UPDATE items SET n = n + 7 WHERE id = 4`)
			const tries = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rehome-lane-%' AND backend_start > $1::timestamptz`
			since := scalar[string](t, shard, `SELECT clock_timestamp()::text`)
			eventually(t, "it is tried again by another session", func() bool { return scalar[int64](t, shard, tries, since) > 0 })
			if n := r.total(`SELECT count(*) FROM items WHERE n IN (2, 7) OR id = 100`); n != 0 {
				t.Errorf("%d rows are there of a group that did not end, and of the one behind it", n)
			}
			exec(t, shard, `TRUNCATE public.ends`)
			eventually(t, "it is applied", func() bool {
				return r.total(`SELECT count(*) FROM items WHERE id = 2 AND n = 2 OR id = 4 AND n = 7 OR id = 100`) == 3
			})
			exec(t, shard, `DROP TRIGGER at_end ON public.items; DROP FUNCTION public.at_end; DROP TABLE public.ends`)
			r.verifyClean(e)
		})
	}
}

// TestSmallGroupOfAFormerOwner: a worker that lost its lease between two small groups commits nothing of the second.
func TestSmallGroupOfAFormerOwner(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, smallDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	r.settled(e, `UPDATE items SET n = 1 WHERE id = 1`, `SELECT count(*) FROM items WHERE id = 1 AND n = 1`)
	shard := open(t, r.shards[0].DSN)
	exec(t, shard, `UPDATE rehome.applier SET epoch = epoch + 1`)
	before := e.SentWithCommit()
	rows := scalar[int64](t, shard, `SELECT max(seq) FROM rehome.progress`)
	exec(t, r.srcDB, `BEGIN; UPDATE items SET n = 2 WHERE id = 2; INSERT INTO items VALUES ('r1', 101, 2); COMMIT`)
	eventually(t, "the worker ends", func() bool { return !e.Streams() })
	if n := r.total(`SELECT count(*) FROM items WHERE n = 2`); n != 0 {
		t.Errorf("%d rows were written by a worker without the lease", n)
	}
	if now := scalar[int64](t, shard, `SELECT max(seq) FROM rehome.progress`); now != rows || e.SentWithCommit() > before {
		t.Errorf("the position moved from number %d to %d", rows, now)
	}
	r.epoch++ // who has it now
	e, _ = r.start()
	eventually(t, fmt.Sprint("its successor of epoch ", r.epoch, " applies it"), func() bool { return r.total(`SELECT count(*) FROM items WHERE n = 2`) == 2 })
	r.verifyClean(e)
}
