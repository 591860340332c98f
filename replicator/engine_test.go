package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

const shopDDL = `
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE plans (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE notes (
	realm_id text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, body text, m mood, tags text[], doc jsonb, big bytea,
	len int GENERATED ALWAYS AS (length(body)) STORED, PRIMARY KEY (realm_id, id));
CREATE TABLE lines (realm_id text NOT NULL, id bigint NOT NULL, note bigint NOT NULL, amount numeric NOT NULL, at timestamptz DEFAULT now(),
	PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, note) REFERENCES notes);
CREATE INDEX ON lines (at);
CREATE TABLE log (realm_id text NOT NULL, at date NOT NULL, id bigint NOT NULL, what text, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
CREATE TABLE log_old PARTITION OF log FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
CREATE TABLE log_new PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2040-01-01');
CREATE TABLE plain (realm_id text NOT NULL, what text);
ALTER TABLE plain REPLICA IDENTITY FULL;
INSERT INTO plans SELECT g, 'plan ' || g FROM generate_series(1, 20) g;
INSERT INTO notes (realm_id, body, m, tags, doc, big)
	SELECT 'r' || (g % 37), 'body ' || g, (ARRAY['sad','ok','happy'])[1 + g % 3]::mood, ARRAY['a', NULL, 'c"d' || g], jsonb_build_object('n', g, 'x', NULL),
	CASE WHEN g % 50 = 0 THEN (SELECT string_agg(sha256(('x' || g || i)::bytea), ''::bytea) FROM generate_series(1, 300) i) END FROM generate_series(1, 2000) g;
INSERT INTO lines SELECT realm_id, id * 10, id, id * 1.10, '2024-01-01' FROM notes;
INSERT INTO log SELECT 'r' || (g % 37), '2010-01-01'::date + (g % 7000), g, 'l' || g FROM generate_series(1, 3000) g;
INSERT INTO plain SELECT 'r' || (g % 5), 'same' FROM generate_series(1, 30) g;
`

// nextRow numbers rows, over all writers and tests.
var nextRow atomic.Int64

func init() { nextRow.Store(1 << 40) }

// writer changes the source at random until its context ends.
func writer(ctx context.Context, t *testing.T, dsn tenant.DSN, seed uint64) {
	c, err := pgx.Connect(context.Background(), dsn.Reveal())
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close(context.Background())
	rnd := rand.New(rand.NewPCG(seed, 1))
	failed := false
	do := func(sql string, args ...any) {
		if failed && sql != "COMMIT" && sql != "ROLLBACK" {
			return
		}
		_, err := c.Exec(context.Background(), sql, args...)
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.Code[:2] == "40" { // writers may get into each other's way
			failed = true
		} else if err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	tick := time.NewTicker(10 * time.Millisecond) // a steady load, not one that starves the machine
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		failed = false
		realm := fmt.Sprintf("r%d", rnd.IntN(37))
		do("BEGIN")
		for range 1 + rnd.IntN(4) {
			switch rnd.IntN(8) {
			case 0:
				do("INSERT INTO notes (realm_id, body, m, tags) VALUES ($1, 'new', 'ok', '{}')", realm)
			case 1:
				do("UPDATE notes SET body = body || 'x', doc = NULL WHERE realm_id = $1 AND id % 20 = $2", realm, rnd.IntN(20))
			case 2:
				do("INSERT INTO log VALUES ($1, '2025-01-01', $2, 'w')", realm, nextRow.Add(1))
			case 3:
				do("DELETE FROM lines WHERE realm_id = $1 AND id = (SELECT max(id) FROM lines WHERE realm_id = $1)", realm)
			case 4:
				do("UPDATE log SET at = at + 3650 WHERE realm_id = $1 AND at < '2015-01-01' AND id % 10 = 3 AND NOT EXISTS (SELECT 1 FROM log l WHERE l.realm_id = $1 AND l.id = log.id AND l.at = log.at + 3650)", realm)
			case 5:
				do("UPDATE plain SET what = what || '!' WHERE ctid = (SELECT ctid FROM plain WHERE realm_id = $1 LIMIT 1 FOR UPDATE SKIP LOCKED)", fmt.Sprintf("r%d", rnd.IntN(5)))
			case 6:
				do("UPDATE plans SET name = name || '.' WHERE id = $1", 1+int(seed))
			case 7:
				do("INSERT INTO plain VALUES ($1, 'more')", fmt.Sprintf("r%d", rnd.IntN(5)))
			}
		}
		if rnd.IntN(5) == 0 {
			do("ROLLBACK")
		} else {
			do("COMMIT")
		}
	}
}

func writers(t *testing.T, dsn tenant.DSN, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { writer(ctx, t, dsn, uint64(i)) })
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func TestCopyStreamAndVerifyWhileWriting(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, shards, tenant.ReplicationOptions{Reference: []string{"public.plans"}}, shopDDL)
			stop := writers(t, r.source, 3)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			for range 3 {
				v := r.verifyClean(e)
				if v.Rows == 0 || len(v.Tables) != 5 {
					t.Fatalf("compared %d rows of %d tables", v.Rows, len(v.Tables))
				}
			}
			stop()
			r.verifyClean(e)
			p := e.Progress()
			if p.Percent != 100 || p.AppliedTxns == 0 || len(p.Shards) != shards {
				t.Errorf("progress: %+v", p)
			}
		})
	}
}

func TestRestartAtAnyTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans"}}, shopDDL)
	stop := writers(t, r.source, 2)
	rnd := rand.New(rand.NewPCG(7, 7))
	// Stopped at random moments, from the first milliseconds of the preparation to deep into the stream.
	for i := range 12 {
		_, kill := r.start()
		at := rnd.IntN(120 * (i + 1))
		waitTicks(t, at)
		kill()
		if st := r.jour.phase(); st.Phase == tenant.Paused {
			t.Fatalf("paused after stop %d: %s", i, st.Reason)
		}
	}
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	r.verifyClean(e)
}
