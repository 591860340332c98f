package replicator_test

import (
	"context"
	"testing"
	"time"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// verified is a verification in the background.
type verified struct {
	v   tenant.Verification
	err error
}

func verifyAside(ctx context.Context, e *replicator.Engine, opts replicator.VerifyOptions) <-chan verified {
	out := make(chan verified, 1)
	go func() {
		v, err := e.Verify(ctx, opts)
		out <- verified{v, err}
	}()
	return out
}

// TestVerificationRestsWithoutLocks changes the schema while a verification rests between two tables.
func TestVerificationRestsWithoutLocks(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read := make(chan struct{}, 100)
	done := verifyAside(ctx, e, replicator.VerifyOptions{Jobs: 1, Rest: time.Hour, OnProgress: func(verify.Progress) { read <- struct{}{} }})
	<-read
	short := open(t, r.source)
	exec(t, short, `SET lock_timeout = '10s'`)
	for _, table := range []string{"items", "parts", "plans", "log"} {
		exec(t, short, `ALTER TABLE `+table+` ADD COLUMN zz int`)
	}
	exec(t, r.srcDB, `INSERT INTO plans VALUES (1000, 'after')`)
	eventually(t, "what comes after the change", func() bool {
		return r.total(`SELECT count(*) FROM plans p WHERE id = 1000 AND to_jsonb(p) ? 'zz'`) == 2
	})
	cancel()
	<-done
}

// TestVerificationGivesWay changes a table at the source that is just being read, for as long as a shard keeps the verification waiting.
// Then it goes on and finds all equal.
func TestVerificationGivesWay(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	slow := open(t, r.shards[1].DSN)
	// The lock comes when the position is open: its holder has an id, which the slot of a position would wait for.
	locked := make(chan string, 1)
	done := verifyAside(t.Context(), e, replicator.VerifyOptions{Jobs: 1, OnProgress: func(p verify.Progress) {
		if p.TablesDone != 1 || len(locked) > 0 {
			return
		}
		table := "items"
		if p.Table == "public.items" {
			table = "parts"
		}
		exec(t, slow, `BEGIN; LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`)
		locked <- table
	}})
	var table string
	eventually(t, "the lock", func() bool {
		select {
		case table = <-locked:
			locked <- table
		default:
		}
		return table != ""
	})
	look := open(t, r.shards[1].DSN)
	eventually(t, "the verification waits at the shard", func() bool {
		return scalar[int](t, look, `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE application_name LIKE 'rehome-verify%' AND l.relation = $1::text::regclass AND NOT granted`, table) > 0
	})
	short := open(t, r.source)
	exec(t, short, `SET lock_timeout = '20s'`)
	change := map[string]string{"items": `ALTER TABLE items ALTER n TYPE bigint`, "parts": `ALTER TABLE parts ALTER item TYPE int`}[table]
	exec(t, short, change) // with a rewrite: older snapshots see nothing in it any more
	exec(t, slow, `COMMIT`)
	got := <-done
	if got.err != nil || !got.v.Clean || got.v.Unfinished != 0 {
		t.Fatalf("%v: %+v", got.err, got.v)
	}
	if got.v.Rows != scalar[int64](t, r.srcDB, `SELECT (SELECT count(*) FROM items) + (SELECT count(*) FROM parts) + (SELECT count(*) FROM plans) + (SELECT count(*) FROM log)`) {
		t.Errorf("%d rows: %+v", got.v.Rows, got.v.Tables)
	}
}

// TestRepairOfAChangedTable changes a table between the comparison and the repair of its rows.
func TestRepairOfAChangedTable(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"a column more":     `ALTER TABLE items ADD COLUMN extra int DEFAULT 4; ALTER TABLE items ALTER extra SET DEFAULT 5`,
		"a column less":     `ALTER TABLE items DROP COLUMN what`,
		"another name":      `ALTER TABLE items RENAME TO things; UPDATE things SET n = n + 1 WHERE id > 10`,
		"a column's name":   `ALTER TABLE items RENAME COLUMN n TO number`,
		"another type":      `ALTER TABLE items ALTER n TYPE bigint`,
		"all rows are gone": `TRUNCATE items`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			b := newBreaker(r)
			b.at(b.owner("r3"), `UPDATE items SET what = 'broken' WHERE id = 3`, 1)
			// The last table's end is after the comparison of items, and before its repair.
			changed := false
			v, err := e.Verify(t.Context(), replicator.VerifyOptions{Repair: true, Jobs: 1, OnProgress: func(p verify.Progress) {
				if p.TablesDone == p.TablesTotal && !changed {
					changed = true
					exec(t, r.srcDB, sql)
					r.caughtUp(e)
				}
			}})
			if err != nil || !v.Clean || v.Repair == nil || v.Repair.Left != "" {
				t.Fatalf("%v: %+v %+v", err, v, v.Repair)
			}
			for _, rt := range v.Repair.Tables {
				if rt.Inserted > 1 || rt.Removed > 1 {
					t.Errorf("%+v", rt)
				}
			}
			if name == "a column more" && v.Repair.Rounds != 3 {
				t.Errorf("%d rounds: the row was written without its new column first", v.Repair.Rounds)
			}
			r.verifyClean(e)
		})
	}
}
