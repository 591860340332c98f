package replicator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// chunksDDL has a table for each way of cutting, with rows at the ends of their keys' ranges, and what constraints say
// across chunks and tables.
const chunksDDL = `
CREATE TABLE ints (id int PRIMARY KEY, realm_id text NOT NULL, code int NOT NULL, n int NOT NULL DEFAULT 0, pad text, UNIQUE (code, realm_id));
CREATE UNIQUE INDEX ints_identity ON ints (realm_id, id);
ALTER TABLE ints REPLICA IDENTITY USING INDEX ints_identity;
INSERT INTO ints SELECT g, 'r' || (g & 15), g, 0, repeat('x', 80) FROM generate_series(-3000, 3000) g;
INSERT INTO ints VALUES (-2147483648, 'r1', 90001), (2147483647, 'r2', 90002);

CREATE TABLE uuids (id uuid NOT NULL, realm_id text NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, realm_id));
INSERT INTO uuids SELECT md5(g::text)::uuid, 'r' || (g & 15), 0, repeat('x', 80) FROM generate_series(1, 4000) g;
INSERT INTO uuids VALUES ('00000000-0000-0000-0000-000000000000', 'r1'), ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'r2');

CREATE TABLE pairs (realm_id bigint NOT NULL, id bigint NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (realm_id, id));
INSERT INTO pairs SELECT g & 63, g, 0, repeat('x', 80) FROM generate_series(1, 4000) g;
INSERT INTO pairs VALUES (-9223372036854775808, 1), (9223372036854775807, 1), (-5, 1);

CREATE TABLE texts (realm_id text NOT NULL, id bigint NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (realm_id, id));
INSERT INTO texts SELECT 'r' || (g & 15), g, 0, repeat('x', 80) FROM generate_series(1, 4000) g;

CREATE TABLE log (id bigint NOT NULL, at int NOT NULL, realm_id text NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, at, realm_id)) PARTITION BY RANGE (at);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (50);
CREATE TABLE log_2 (pad text, n int NOT NULL DEFAULT 0, realm_id text NOT NULL, at int NOT NULL, id bigint NOT NULL);
ALTER TABLE log ATTACH PARTITION log_2 FOR VALUES FROM (50) TO (100);
INSERT INTO log SELECT g, abs(g % 100), 'r' || (g & 15), 0, repeat('x', 80) FROM generate_series(-2000, 2000) g;

CREATE TABLE tlog (realm_id text NOT NULL, at int NOT NULL, id bigint NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
CREATE TABLE tlog_1 PARTITION OF tlog FOR VALUES FROM (0) TO (50);
CREATE TABLE tlog_2 PARTITION OF tlog FOR VALUES FROM (50) TO (100);
INSERT INTO tlog SELECT 'r' || (g & 15), g % 100, g, 0, repeat('x', 80) FROM generate_series(1, 3000) g;

CREATE TABLE emptied (id bigint NOT NULL, realm_id text NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, realm_id));
INSERT INTO emptied SELECT g, 'r' || (g & 15), 0, repeat('x', 80) FROM generate_series(1, 3000) g;
DELETE FROM emptied WHERE id BETWEEN 100 AND 2900;

CREATE TABLE parents (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
CREATE TABLE children (id bigint NOT NULL, realm_id text NOT NULL, parent bigint NOT NULL, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, realm_id), FOREIGN KEY (realm_id, parent) REFERENCES parents);
INSERT INTO parents SELECT 'r' || (g & 15), g FROM generate_series(1, 500) g;
INSERT INTO children SELECT g, 'r' || (g % 500 + 1 & 15), g % 500 + 1, 0, repeat('x', 80) FROM generate_series(1, 4000) g;
CREATE TABLE meta (k text PRIMARY KEY);
ANALYZE;
`

// keyed are the tables whose chunks are of key values: no chunk of them may be copied twice.
var keyed = []string{"public.ints", "public.uuids", "public.pairs", "public.log", "public.emptied", "public.children"}

func chunkOptions() tenant.ReplicationOptions {
	return tenant.ReplicationOptions{CopyJobs: 2, ChunkBytes: 24 << 10, Reference: []string{"public.meta"}}
}

// disturb changes rows of all the tables such that rows move from one chunk to others, and unique values with them.
func disturb(ctx context.Context, c *pgx.Conn, rnd *rand.Rand) error {
	realm := fmt.Sprintf("r%d", rnd.IntN(16))
	id := rnd.IntN(5000) - 2500
	other := rnd.IntN(5000) - 2500
	fresh := nextRow.Add(1)
	var statements []string
	switch rnd.IntN(9) {
	case 0: // a key moves far away, and comes back by chance
		statements = []string{fmt.Sprintf(`UPDATE ints SET id = -id, n = n + 1 WHERE id = %d AND NOT EXISTS (SELECT FROM ints o WHERE o.id = -(%d))`, id, id)}
	case 1: // two rows of different chunks swap a unique value
		statements = []string{
			fmt.Sprintf(`UPDATE ints SET code = -code - 100000 WHERE id = %d`, id),
			fmt.Sprintf(`UPDATE ints SET code = 200000 + %d, realm_id = '%s' WHERE id = %d`, fresh&0xffffff, realm, other),
			fmt.Sprintf(`UPDATE ints SET code = -code - 100000 WHERE id = %d AND code < -100000`, id),
		}
	case 2:
		statements = []string{fmt.Sprintf(`UPDATE uuids SET id = md5('%d')::uuid, n = n + 1 WHERE id = (SELECT id FROM uuids WHERE id > md5('from %d')::uuid ORDER BY id LIMIT 1)`, fresh, fresh)}
	case 3:
		statements = []string{
			fmt.Sprintf(`UPDATE pairs SET realm_id = 63 - realm_id, id = id + 1000000, n = n + 1 WHERE realm_id = %d AND id %% 50 = %d AND id < 100000`, rnd.IntN(64), rnd.IntN(50)),
			fmt.Sprintf(`INSERT INTO pairs VALUES (%d, %d)`, rnd.IntN(64)-32, fresh),
		}
	case 4:
		statements = []string{
			fmt.Sprintf(`UPDATE texts SET n = n + 1 WHERE realm_id = '%s' AND id %% 20 = %d`, realm, rnd.IntN(20)),
			fmt.Sprintf(`DELETE FROM texts WHERE realm_id = '%s' AND id %% 100 = %d`, realm, rnd.IntN(100)),
			fmt.Sprintf(`INSERT INTO texts VALUES ('%s', %d)`, realm, fresh),
		}
	case 5: // another leaf and another chunk
		statements = []string{
			fmt.Sprintf(`UPDATE log SET at = 99 - at, id = -id, n = n + 1 WHERE id = %d AND NOT EXISTS (SELECT FROM log o WHERE o.id = -(%d))`, id, id),
			fmt.Sprintf(`INSERT INTO log VALUES (%d, %d, '%s')`, fresh, rnd.IntN(100), realm),
			fmt.Sprintf(`UPDATE tlog SET at = 99 - at WHERE id = %d`, rnd.IntN(3000)),
		}
	case 6:
		statements = []string{
			fmt.Sprintf(`INSERT INTO parents VALUES ('%s', %d)`, realm, fresh),
			fmt.Sprintf(`INSERT INTO children VALUES (%d, '%s', %d), (%d, '%s', %d)`, fresh, realm, fresh, -fresh, realm, fresh),
			fmt.Sprintf(`UPDATE children SET parent = %d, realm_id = '%s', n = n + 1 WHERE id = %d`, fresh, realm, rnd.IntN(4000)),
		}
	case 7:
		statements = []string{
			fmt.Sprintf(`DELETE FROM ints WHERE id = %d`, id),
			fmt.Sprintf(`DELETE FROM uuids WHERE id = (SELECT id FROM uuids WHERE id > md5('%d')::uuid ORDER BY id LIMIT 1)`, fresh),
			fmt.Sprintf(`INSERT INTO emptied VALUES (%d, '%s')`, 100+rnd.IntN(2700), realm),
		}
	case 8:
		statements = []string{fmt.Sprintf(`INSERT INTO ints VALUES (%d, '%s', %d) ON CONFLICT DO NOTHING`, id, realm, fresh&0xffffff+300000), `UPDATE emptied SET id = 3000 - id WHERE id < 5 AND NOT EXISTS (SELECT FROM emptied o WHERE o.id = 3000 - emptied.id)`}
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// disturbers write until they are stopped. What they do to each other (a key that is taken meanwhile) is no error.
func disturbers(t *testing.T, dsn tenant.DSN, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		c := open(t, dsn)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 99))
			tick := time.NewTicker(4 * time.Millisecond)
			defer tick.Stop()
			refused := 0
			for did := 0; ctx.Err() == nil; did++ {
				<-tick.C
				if err := disturb(context.Background(), c, rnd); err != nil {
					if refused++; refused > 20+did/2 {
						t.Errorf("writer: %v", err)
						return
					}
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func (m *memory) copiedUnits() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.copies)
}

// onceEach fails when a chunk of key values was copied twice; chunks says that there were some at all.
func (r *rig) onceEach() {
	r.t.Helper()
	r.jour.mu.Lock()
	defer r.jour.mu.Unlock()
	counts := map[string]int{}
	tables := map[string]int{}
	for _, c := range r.jour.copies {
		counts[c]++
		tables[strings.Fields(c)[0]]++
	}
	for _, table := range keyed {
		if tables[table] < 3 {
			r.t.Errorf("table %s was copied in %d parts", table, tables[table])
		}
		for c, n := range counts {
			if strings.HasPrefix(c, table+" ") && n != 1 {
				r.t.Errorf("chunk %s was copied %d times", c, n)
			}
		}
	}
}

// TestKilledWhileCopyingChunks kills the engine again and again in the middle of a chunked copy, while rows move between
// chunks that are copied and chunks that are not.
func TestKilledWhileCopyingChunks(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 5))
			r := newRig(t, 2, chunkOptions(), chunksDDL)
			r.jour.slow = 15 // so that there is time to kill it in between
			quiet := disturbers(t, r.source, 2)
			kills := 0
			for r.jour.phase().Phase != tenant.CatchingUp && r.jour.phase().Phase != tenant.InSync && kills < 8 {
				_, stop := r.start()
				target := r.jour.copiedUnits() + 3 + rnd.IntN(8)
				eventually(t, "some more chunks are copied", func() bool {
					st := r.jour.phase()
					if st.Phase == tenant.Paused {
						t.Fatalf("paused: %s", st.Reason)
					}
					return r.jour.copiedUnits() >= target || st.Phase == tenant.CatchingUp || st.Phase == tenant.InSync
				})
				stop()
				kills++
				exec(t, r.srcDB, `INSERT INTO parents SELECT 'r' || (g & 15), g FROM generate_series($1::bigint, $1 + 20) g`, int64(kills)*100000)
				exec(t, r.srcDB, `INSERT INTO children SELECT g, 'r' || (g & 15), g FROM generate_series($1::bigint, $1 + 20) g`, int64(kills)*100000)
				if kills == 3 {
					exec(t, r.srcDB, `TRUNCATE emptied, pairs`)
					exec(t, r.srcDB, `INSERT INTO pairs SELECT g & 63, g FROM generate_series(1, 300) g`)
				}
				if kills == 4 {
					exec(t, r.srcDB, `UPDATE ints SET id = -id WHERE id IN (17, 1017, 2017) AND NOT EXISTS (SELECT FROM ints o WHERE o.id = -ints.id); DELETE FROM log WHERE id % 7 = 0`)
				}
			}
			r.jour.mu.Lock()
			r.jour.slow = 0
			r.jour.mu.Unlock()
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			r.verifyClean(e)
			quiet()
			r.verifyClean(e)
			r.onceEach()
			p := e.Progress()
			t.Logf("%d kills, %d units, copied again: %d rows, %d bytes of %d", kills, r.jour.copiedUnits(), p.RowsAgain, p.BytesAgain, p.BytesDone)
			if kills < 3 {
				t.Errorf("only %d kills", kills)
			}
			if p.Percent != 100 || p.RowsDone != p.RowsTotal {
				t.Errorf("progress %+v", p)
			}
		})
	}
}
