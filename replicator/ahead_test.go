package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// aheadRig is a rig whose source streams early, and whose engine applies what is streamed from 64 kB on.
func aheadRig(t *testing.T, shards int, opts tenant.ReplicationOptions) *rig {
	t.Helper()
	r := newRigOn(t, streamingCluster(t), shards, opts, streamedTable+fillBig(1, 1000))
	r.aheadFrom = 64 << 10
	// On a server of their own: sides give way to slots that other tests make.
	own := pgcluster.StartT(t, pgcluster.Options{})
	for i := range r.shards {
		r.shards[i].DSN = pgcluster.NewDatabase(t, own)
	}
	return r
}

// sides is how many sessions run ahead at the shards, with rows of theirs.
func (r *rig) sides() (n int64) {
	for _, c := range r.looks() {
		n += scalar[int64](r.t, c, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database() AND backend_xid IS NOT NULL`, "rehome-ahead-"+r.id)
	}
	return n
}

// looks are sessions at the shards.
func (r *rig) looks() []*pgx.Conn {
	if len(r.lookers) == 0 {
		for _, s := range r.shards {
			r.lookers = append(r.lookers, open(r.t, s.DSN))
		}
	}
	return r.lookers
}

// endSides ends the sessions that run ahead.
func (r *rig) endSides() {
	for _, c := range r.looks() {
		exec(r.t, c, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, "rehome-ahead-"+r.id)
	}
}

func (r *rig) runsAhead(n int64) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%d shards apply rows ahead", n), func() bool { return r.sides() == n })
}

// startAhead starts the engine, and a transaction at the source whose rows so many shards apply before it ends.
func (r *rig) startAhead(shards int64, rows string) (*replicator.Engine, *pgx.Conn) {
	r.t.Helper()
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(r.t, r.source)
	exec(r.t, tx, "BEGIN")
	exec(r.t, tx, rows)
	r.runsAhead(shards)
	return e, tx
}

// ranAhead checks that so many transactions were applied ahead, and that nothing is left of them.
func (r *rig) ranAhead(e *replicator.Engine, n int64) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%d transactions were applied ahead", n), func() bool { return e.Progress().AheadTxns >= n })
	if is := e.Progress().AheadTxns; is != n {
		r.t.Errorf("%d transactions were applied ahead, not %d", is, n)
	}
	r.nothingLeft(e)
}

func (r *rig) nothingLeft(e *replicator.Engine) {
	r.t.Helper()
	eventually(r.t, "nothing is left at the shards", func() bool {
		return r.sides() == 0 && e.Progress().SpooledBytes == 0 && r.total(`SELECT count(*) FROM rehome.progress WHERE seq < 0`) == 0
	})
}

// TestRunsAhead applies a large transaction of all kinds of changes while it comes, with small ones that commit meanwhile.
func TestRunsAhead(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, shards, tenant.ReplicationOptions{})
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			tx := open(t, r.source)
			exec(t, tx, "BEGIN")
			exec(t, tx, fillBig(10_000, 30_000))
			r.runsAhead(int64(shards))
			exec(t, r.srcDB, `INSERT INTO small SELECT i, i FROM generate_series(1, 100) i; UPDATE big SET body = 'small' WHERE id BETWEEN 901 AND 950; DELETE FROM big WHERE id = 1000`)
			exec(t, tx, `UPDATE big SET body = body || 'x' WHERE id <= 900 OR id > 20000`)
			exec(t, tx, `UPDATE big SET id = id + 100000 WHERE id BETWEEN 20001 AND 20100`)
			exec(t, tx, `UPDATE big SET realm_id = realm_id + 7 WHERE id BETWEEN 21001 AND 21100`)
			exec(t, tx, `DELETE FROM big WHERE id BETWEEN 10000 AND 11000`)
			eventually(t, "small transactions arrive", func() bool { return r.total("SELECT count(*) FROM small") == 100 })
			if n := r.total("SELECT count(*) FROM big WHERE id >= 10000"); n != 0 {
				t.Errorf("%d rows are seen before they are committed", n)
			}
			exec(t, tx, fillBig(50_000, 60_000))
			exec(t, tx, "COMMIT")
			exec(t, r.srcDB, `UPDATE big SET body = 'after' WHERE id BETWEEN 50000 AND 50100`)
			r.verifyClean(e)
			r.ranAhead(e, 1)
			exec(t, tx, `BEGIN; UPDATE big SET body = body || 'y'; INSERT INTO big SELECT 1, i, 'z' FROM generate_series(500000, 510000) i; COMMIT`)
			r.verifyClean(e)
			r.ranAhead(e, 2)
		})
	}
}

// TestAheadIsTurnedOff asks for transactions to be applied in their turn only.
func TestAheadIsTurnedOff(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]func(*rig){
		"by the replication": func(r *rig) { r.opts.NoRunAhead = true },
		"by the server":      func(r *rig) { r.aheadFrom = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, 1, tenant.ReplicationOptions{})
			off(r)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			exec(t, r.srcDB, fillBig(10_000, 20_000))
			r.verifyClean(e)
			r.ranAhead(e, 0)
		})
	}
}

// TestAheadIsTakenBack rolls back transactions that run ahead: whole, and in part.
func TestAheadIsTakenBack(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	e, tx := r.startAhead(2, fillBig(10_000, 20_000))
	exec(t, tx, "ROLLBACK")
	r.nothingLeft(e)
	exec(t, tx, "BEGIN")
	exec(t, tx, fillBig(10_000, 12_000))
	exec(t, tx, "SAVEPOINT s")
	exec(t, tx, "UPDATE big SET body = 'gone' WHERE id <= 900")
	exec(t, tx, fillBig(20_000, 30_000))
	r.runsAhead(2)
	exec(t, tx, "ROLLBACK TO s")
	exec(t, r.srcDB, "UPDATE big SET body = 'by another' WHERE id <= 900") // rows that were held at the shards
	eventually(t, "what another does to the same rows", func() bool { return r.total(`SELECT count(*) FROM big WHERE body = 'by another'`) == 900 })
	exec(t, tx, fillBig(40_000, 41_000))
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	if n := r.total("SELECT count(*) FROM big"); n != 1000+2001+1001 {
		t.Errorf("%d rows", n)
	}
	r.nothingLeft(e)
}

// TestAheadOfOneOfTwo has two transactions come at once: one of them runs ahead, whichever commits first.
func TestAheadOfOneOfTwo(t *testing.T) {
	t.Parallel()
	for _, first := range []int{0, 1} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, 2, tenant.ReplicationOptions{})
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			txs := []*pgx.Conn{open(t, r.source), open(t, r.source)}
			for i, tx := range txs {
				exec(t, tx, "BEGIN")
				exec(t, tx, fillBig(10_000+100_000*i, 25_000+100_000*i))
				r.runsAhead(2)
			}
			for i := range 5 {
				exec(t, txs[i%2], fillBig(40_000+2000*i, 41_000+2000*i))
			}
			exec(t, txs[0], "UPDATE big SET body = 'a' WHERE id BETWEEN 1 AND 500")
			exec(t, txs[1], "UPDATE big SET body = 'b' WHERE id BETWEEN 501 AND 1000")
			exec(t, txs[first], "COMMIT")
			exec(t, r.srcDB, fmt.Sprintf("UPDATE big SET body = body || '!' WHERE id BETWEEN %d AND %d", 1+first*500, 500+first*500))
			exec(t, txs[1-first], "UPDATE big SET body = body || '?' WHERE id < 1000")
			exec(t, txs[1-first], "COMMIT")
			r.verifyClean(e)
			if n := e.Progress().AheadTxns; n == 0 {
				t.Error("no transaction was applied ahead")
			}
			r.nothingLeft(e)
		})
	}
}

// TestAheadGivesWay has others change or lock tables while a transaction runs ahead.
func TestAheadGivesWay(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(r *rig){
		"truncates another table": func(r *rig) {
			exec(r.t, r.srcDB, `TRUNCATE small`)
			eventually(r.t, "the TRUNCATE", func() bool { return r.total(`SELECT count(*) FROM small`) == 0 })
		},
		"changes another table": func(r *rig) {
			exec(r.t, r.srcDB, `ALTER TABLE small ADD COLUMN more int; UPDATE small SET more = 1`)
			eventually(r.t, "the column", func() bool { return r.total(`SELECT count(*) FROM small WHERE to_jsonb(small) ->> 'more' = '1'`) == 50 })
		},
		"locks the table at a shard": func(r *rig) {
			c := open(r.t, r.shards[1].DSN)
			exec(r.t, c, `SET lock_timeout = '50s'; BEGIN; LOCK TABLE big IN ACCESS EXCLUSIVE MODE; COMMIT`)
		},
		"makes a slot at a shard": func(r *rig) {
			c := open(r.t, r.shards[1].DSN)
			exec(r.t, c, `SET statement_timeout = '50s'; SELECT pg_create_logical_replication_slot('waits_`+r.id+`', 'pgoutput'); SELECT pg_drop_replication_slot('waits_`+r.id+`')`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, 2, tenant.ReplicationOptions{})
			exec(t, r.srcDB, `INSERT INTO small SELECT i, i FROM generate_series(1, 50) i`)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			tx := open(t, r.source)
			exec(t, tx, "BEGIN")
			exec(t, tx, fillBig(10_000, 20_000))
			r.runsAhead(2)
			other(r)
			exec(t, tx, fillBig(30_000, 31_000))
			exec(t, tx, "COMMIT")
			r.verifyClean(e)
			r.nothingLeft(e)
		})
	}
}

// TestAheadMeetsWhatOthersWrote has a row in the way of a transaction that runs ahead: the pause names it, as ever.
func TestAheadMeetsWhatOthersWrote(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ at, sql, want string }{
		"a row more":        {`INSERT INTO big VALUES (%[1]d, 15555, 'theirs')`, fillBig(10_000, 20_000), "id=15555)"},
		"a row too few":     {`DELETE FROM big WHERE id = 777`, `UPDATE big SET body = repeat(md5(id::text), 10)`, "id=777)"},
		"too few, gone too": {`DELETE FROM big WHERE id = 777`, fillBig(10_000, 20_000) + `; DELETE FROM big WHERE id < 900`, "id=777)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, 1, tenant.ReplicationOptions{})
			_, _ = r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			if strings.Contains(tt.at, "%") {
				tt.at = fmt.Sprintf(tt.at, 15555%50)
			}
			exec(t, shard, `SET rehome.pass = '`+string(pass)+`'; SET session_replication_role = replica; `+tt.at)
			exec(t, r.srcDB, "BEGIN; "+tt.sql+"; COMMIT")
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, tt.want) {
				t.Errorf("paused with %q", st.Reason)
			}
			if n := scalar[int](t, shard, `SELECT count(*) FROM big WHERE id >= 10000 AND id <> 15555`); n != 0 {
				t.Errorf("%d rows of the transaction are at the shard", n)
			}
			eventually(t, "no session is left", func() bool { return r.sides() == 0 })
		})
	}
}

// TestVerificationWhileAhead compares both sides while a transaction runs ahead, which goes on.
func TestVerificationWhileAhead(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(t, r.source)
	exec(t, tx, "BEGIN")
	exec(t, tx, fillBig(10_000, 20_000))
	exec(t, tx, "DELETE FROM big WHERE id < 100")
	r.runsAhead(2)
	// Its position waits for the transaction to end, since it is made by a slot.
	done := verifyAside(t.Context(), e, replicator.VerifyOptions{})
	eventually(t, "the verification waits", func() bool {
		return scalar[int](t, r.srcDB, `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rehome%' AND wait_event_type = 'Lock'`) > 0
	})
	exec(t, tx, fillBig(30_000, 35_000))
	exec(t, tx, "COMMIT")
	if got := <-done; got.err != nil || !got.v.Clean {
		t.Errorf("%v: %+v", got.err, got.v)
	}
	if v := r.verifyClean(e); v.Rows != 1000+10_001+5001-99 {
		t.Errorf("%d rows were compared", v.Rows)
	}
	r.ranAhead(e, 1)
}

// TestAheadLosesItsSession takes sides, the engine and the source's connection away in the midst and about the commit.
func TestAheadLosesItsSession(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	e, stop := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(t, r.source)
	next := 10_000
	for _, away := range []func(){
		r.endSides,
		func() { stop(); e, stop = r.start() },
		func() {
			exec(t, r.srcDB, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, "rehome_"+r.id)
		},
	} {
		exec(t, tx, "BEGIN")
		exec(t, tx, fillBig(next, next+12_000))
		exec(t, tx, `UPDATE big SET body = body || '.' WHERE id < 1000`)
		r.runsAhead(2)
		away() // in the midst
		exec(t, tx, fillBig(next+12_001, next+14_000))
		exec(t, tx, "COMMIT")
		r.verifyClean2(&e)
		for n := range 2 { // about the commit
			next += 20_000
			exec(t, tx, "BEGIN")
			exec(t, tx, fillBig(next, next+12_000))
			exec(t, tx, `UPDATE big SET body = body || '.' WHERE id < 1000`)
			r.runsAhead(2)
			exec(t, tx, "COMMIT")
			if n%2 == 1 {
				eventually(t, "a shard has it", func() bool { return r.total(fmt.Sprintf(`SELECT count(*) FROM big WHERE id = %d`, next)) == 1 })
			}
			away()
			r.verifyClean2(&e)
		}
		next += 20_000
	}
	r.nothingLeft(e)
}

// verifyClean2 verifies when the engine streams again.
func (r *rig) verifyClean2(e **replicator.Engine) {
	r.t.Helper()
	eventually(r.t, "a verification that finds all equal", func() bool {
		v, err := (*e).Verify(r.t.Context(), replicator.VerifyOptions{})
		if err != nil {
			if st := r.jour.phase(); st.Phase == tenant.Paused {
				r.t.Fatalf("paused: %s", st.Reason)
			}
			return false
		}
		if !v.Clean {
			r.t.Fatalf("not clean: %+v", v)
		}
		return true
	})
}

// TestAheadAtAShardThatDies kills a shard's server in the midst of a transaction that runs ahead, and when it commits.
func TestAheadAtAShardThatDies(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	mortal := pgcluster.StartT(t, pgcluster.Options{})
	r.shards[1].DSN = pgcluster.NewDatabase(t, mortal)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(t, r.source)
	for i, committed := range []bool{false, true, true} {
		r.lookers = nil
		exec(t, tx, "BEGIN")
		exec(t, tx, fillBig(10_000+20_000*i, 18_000+20_000*i))
		exec(t, tx, `UPDATE big SET body = body || '.' WHERE id < 1000`)
		r.runsAhead(2)
		if committed {
			exec(t, tx, "COMMIT")
		}
		if err := mortal.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := mortal.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !committed {
			exec(t, tx, fillBig(18_001+20_000*i, 19_000+20_000*i))
			exec(t, tx, "COMMIT")
		}
		r.verifyClean2(&e)
	}
	r.lookers = nil
	r.nothingLeft(e)
}

// TestAheadIsLedByARowOfOurs reads a shard's own stream: what was applied ahead begins with a row of rehome.progress, by which
// the other direction knows it.
func TestAheadIsLedByARowOfOurs(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	shard := open(t, r.shards[0].DSN)
	exec(t, shard, `CREATE PUBLICATION all_of_it FOR TABLE rehome.progress, big`)
	exec(t, shard, `SELECT pg_create_logical_replication_slot('reads_`+r.id+`', 'pgoutput')`)
	t.Cleanup(func() { exec(t, shard, `SELECT pg_drop_replication_slot('reads_`+r.id+`')`) })
	exec(t, r.srcDB, fillBig(10_000, 20_000))
	r.verifyClean(e)
	r.ranAhead(e, 1)
	exec(t, shard, `CREATE TABLE flushed ()`) // and with it what lanes committed, which do not wait for the disk
	rows, err := shard.Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes('reads_`+r.id+`', NULL, NULL, 'proto_version', '1', 'publication_names', 'all_of_it')`)
	if err != nil {
		t.Fatal(err)
	}
	var dec pgoutput.Decoder
	var m pgoutput.Message
	names, first, large := map[uint32]string{}, "", 0
	for rows.Next() {
		if err := dec.Decode(rows.RawValues()[0], &m); err != nil {
			t.Fatal(err)
		}
		switch m.Kind {
		case pgoutput.Begin:
			first, large = "", 0
		case pgoutput.RelationKind:
			names[m.OID] = m.Relation.Name
		case pgoutput.Insert:
			if first == "" {
				first = names[m.OID] + " of " + string(m.New[0].Data)
			}
			large++
		}
		if m.Kind == pgoutput.Commit && large > 10_000 {
			if first != "progress of "+r.id {
				t.Errorf("the transaction begins with a row of %s", first)
			}
			first = "seen"
		}
		if first == "seen" {
			break
		}
	}
	rows.Close()
	if first != "seen" {
		t.Errorf("no transaction of 10001 rows in the shard's stream: %v", rows.Err())
	}
}

// TestAheadWithCarriedValues moves rows to other shards whose large values the source does not send: that is left to the
// transaction's turn.
func TestAheadWithCarriedValues(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	exec(t, r.srcDB, `ALTER TABLE big ALTER body SET STORAGE EXTERNAL; UPDATE big SET body = repeat(md5(id::text), 200) WHERE id <= 100`)
	e, tx := r.startAhead(2, fillBig(10_000, 25_000))
	exec(t, tx, "UPDATE big SET realm_id = realm_id + 7 WHERE id <= 100")
	exec(t, tx, fillBig(30_000, 31_000))
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	r.nothingLeft(e)
}

// TestAheadAgain has a transaction give way once, behind which it runs ahead again.
func TestAheadAgain(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	e, tx := r.startAhead(2, fillBig(10_000, 20_000))
	c := open(t, r.shards[1].DSN)
	exec(t, c, `SET lock_timeout = '50s'; BEGIN; LOCK TABLE big IN ACCESS EXCLUSIVE MODE; COMMIT`)
	eventually(t, "it gave way", func() bool { return r.sides() == 0 })
	exec(t, tx, fillBig(30_000, 50_000))
	r.runsAhead(2)
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	r.ranAhead(e, 1)
}

// TestAheadIsForgotten looks at what a shard sees of a server that is stopped or cut off while a transaction runs ahead: an idle
// session, whose time it counts.
func TestAheadIsForgotten(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 2, tenant.ReplicationOptions{})
	e, tx := r.startAhead(2, fillBig(10_000, 20_000))
	for i, c := range r.looks() {
		eventually(t, fmt.Sprintf("the session at shard %d is idle", i), func() bool {
			return scalar[int](t, c, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database() AND state = 'idle in transaction'`, "rehome-ahead-"+r.id) == 1
		})
	}
	exec(t, tx, "COMMIT")
	r.verifyClean(e)
	r.ranAhead(e, 1)
}

// TestTakeoverEndsWhatRunsAhead has a session of a former server hold the lock of a row that the next one has to write.
func TestTakeoverEndsWhatRunsAhead(t *testing.T) {
	t.Parallel()
	r := aheadRig(t, 1, tenant.ReplicationOptions{})
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	former := openAs(t, r.shards[0].DSN, "rehome-ahead-"+r.id)
	exec(t, former, `SET rehome.pass = '`+string(pass)+`'; SET session_replication_role = replica; BEGIN; UPDATE big SET body = 'theirs' WHERE id = 7`)
	exec(t, r.srcDB, `UPDATE big SET body = 'ours' WHERE id = 7`)
	e, _ := r.start()
	eventually(t, "the former session is ended", func() bool { return r.sides() == 0 })
	r.verifyClean2(&e)
	if n := r.total(`SELECT count(*) FROM big WHERE body = 'ours'`); n != 1 {
		t.Errorf("%d rows are changed", n)
	}
	if _, err := former.Exec(t.Context(), `COMMIT`); err == nil {
		t.Error("the former session still commits")
	}
}

// TestPlansWithinATransaction has a transaction fill a table that was all but empty when its first statements were planned: its
// later rows are found by their keys, not by scans of the table.
func TestPlansWithinATransaction(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]bool{"in pieces": true, "ahead": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := aheadRig(t, 1, tenant.ReplicationOptions{NoRunAhead: off})
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			exec(t, shard, `ANALYZE small`)
			tx := open(t, r.source)
			exec(t, tx, `BEGIN; INSERT INTO small SELECT 1, i FROM generate_series(1, 20) i; DELETE FROM small WHERE id <= 10`)
			exec(t, tx, `INSERT INTO small SELECT 1, i FROM generate_series(100, 40000) i`)
			exec(t, tx, `DELETE FROM small WHERE id > 5000`)
			exec(t, tx, `COMMIT`)
			eventually(t, "it is applied", func() bool {
				return r.total(`SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'small'`) == 35010
			})
			if n := r.total(`SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'small'`); n > 35_000 {
				t.Errorf("%d rows were read by scans", n)
			}
			r.verifyClean(e)
		})
	}
}
