package replicator_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// realHistories is how many histories TestHistoriesOnPostgres applies; REHOME_REAL_HISTORIES sets another number,
// REHOME_SEED the first history's seed.
const realHistories = 50

// TestHistoriesOnPostgres is TestHistories with a real source and two real shards. Lanes are held back at random, so that
// transactions gather to groups, and the engine is stopped in the middle of some histories.
func TestHistoriesOnPostgres(t *testing.T) {
	t.Parallel()
	n, first := replicator.HistoryEnv(t, "REHOME_REAL_HISTORIES", realHistories), replicator.HistoryEnv(t, "REHOME_SEED", 1)
	opts := tenant.ReplicationOptions{Reference: []string{"ref", "done"}, RealmsNeverChange: []string{"blind"}}
	r := newRig(t, 2, opts, replicator.HistoryDDL+`CREATE TABLE done (n int PRIMARY KEY);`)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	shards := make([]*pgx.Conn, len(r.shards))
	for i, sh := range r.shards {
		shards[i] = open(t, sh.DSN)
	}
	for i := range n {
		seed := first + i
		d := rand.New(rand.NewPCG(uint64(seed), 0))
		h := replicator.NewHistory(d, 1+d.IntN(14))
		exec(t, r.srcDB, `TRUNCATE `+strings.Join(replicator.HistoryTables[:], ", "))
		held := d.IntN(4) // which lanes wait before their next group: as a bit each
		for s, c := range shards {
			if held&(1<<s) != 0 {
				exec(t, c, `BEGIN`)
				exec(t, c, `SELECT 1 FROM rehome.applier FOR UPDATE`)
			}
		}
		stopAt := -1
		if i%15 == 14 {
			stopAt = d.IntN(len(h.Txns) + 1)
		}
		for j, txn := range h.Txns {
			if j == stopAt {
				stop()
			}
			var b strings.Builder
			b.WriteString("BEGIN;")
			for _, o := range txn {
				b.WriteString(o.SQL + ";")
				if d.IntN(20) == 0 {
					b.WriteString("SAVEPOINT s; UPDATE plain SET realm_id = 'never', v = 'rolled back' WHERE ctid = (SELECT ctid FROM plain LIMIT 1); DELETE FROM whole; ROLLBACK TO s;")
				}
			}
			exec(t, r.srcDB, b.String()+"COMMIT")
		}
		exec(t, r.srcDB, `INSERT INTO done VALUES ($1)`, i)
		for s, c := range shards {
			if held&(1<<s) != 0 {
				exec(t, c, `ROLLBACK`)
			}
		}
		if stopAt >= 0 {
			stop()
			_, stop = r.start()
		}
		for s, c := range shards {
			eventually(t, "the history is applied", func() bool {
				if st := r.jour.phase(); st.Phase == tenant.Paused {
					t.Fatalf("history %d (REHOME_SEED=%d): paused: %s", seed, seed, st.Reason)
				}
				return scalar[int](t, c, `SELECT coalesce(max(n), -1) FROM done`) == i
			})
			rows, err := c.Query(t.Context(), replicator.HistoryState())
			if err != nil {
				t.Fatal(err)
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if diff := cmp.Diff(h.Want(r.place, r.shards[s].Name), got); diff != "" {
				t.Fatalf("history %d (REHOME_SEED=%d), shard %d: %s", seed, seed, s, diff)
			}
		}
	}
	eventually(t, "values were carried between the shards", func() bool {
		return r.total(`SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'rehome' AND relname = 'carry'`) > 0
	})
	t.Logf("%d histories, %d values carried", n, r.total(`SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'rehome' AND relname = 'carry'`))
}
