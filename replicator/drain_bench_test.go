package replicator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// drainLoad is a backlog of small transactions, made at the source while nobody reads.
type drainLoad struct {
	name    string
	ddl     string
	backlog string // SQL that makes %d transactions
	last    string // a transaction more
	tables  string
	rows    int // changes a transaction
}

var drainLoads = []drainLoad{
	{
		name: "small", rows: 2,
		ddl: `CREATE TABLE account (id int PRIMARY KEY, realm text NOT NULL, balance bigint NOT NULL, note text);
			CREATE TABLE entry (id int PRIMARY KEY, realm text NOT NULL, account int NOT NULL, amount int NOT NULL, at timestamptz NOT NULL);
			INSERT INTO account SELECT g, 'r' || g %% 100, 0, repeat('x', 40) FROM generate_series(1, %d) g; ANALYZE;`,
		backlog: `DO $$ BEGIN FOR i IN 1..%d LOOP
			UPDATE account SET balance = balance + i WHERE id = 1 + (i::bigint * 7919) %% (SELECT max(id) FROM account);
			INSERT INTO entry VALUES (i, 'r' || i %% 100, i, i, now()); COMMIT; END LOOP; END $$`,
		tables: "account, entry", last: `UPDATE account SET balance = -1 WHERE id = 1`,
	},
	{
		name: "tpcb", rows: 4,
		ddl: `CREATE TABLE branches (bid int PRIMARY KEY, bbalance int, filler char(88));
			CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
			CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
			CREATE TABLE history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
			ALTER TABLE history REPLICA IDENTITY FULL;
			INSERT INTO branches VALUES (1, 0); INSERT INTO tellers SELECT g, 1, 0 FROM generate_series(1, 10) g;
			INSERT INTO accounts SELECT g, 1, 0, '' FROM generate_series(1, %d) g; ANALYZE;`,
		backlog: `DO $$ BEGIN FOR i IN 1..%d LOOP
			UPDATE accounts SET abalance = abalance + 1 WHERE aid = 1 + (i::bigint * 7919) %% (SELECT max(aid) FROM accounts);
			UPDATE tellers SET tbalance = tbalance + 1 WHERE tid = 1 + i %% 10;
			UPDATE branches SET bbalance = bbalance + 1 WHERE bid = 1;
			INSERT INTO history VALUES (1 + i %% 10, 1, i, 1, now()); COMMIT; END LOOP; END $$`,
		tables: "branches, tellers, accounts, history", last: `UPDATE branches SET bbalance = -1`,
	},
}

// largeLoad is one transaction that runs ahead, of inserts.
var largeLoad = drainLoad{
	name: "inserts", rows: 1,
	ddl: `CREATE TABLE bulk (realm text NOT NULL, id bigint NOT NULL, n int NOT NULL, note text NOT NULL, PRIMARY KEY (realm, id));
		CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other SELECT g, 0 FROM generate_series(1, %d) g; ANALYZE;`,
	backlog: `INSERT INTO bulk SELECT 'r' || g %% 1000, g, g, 'a row of a large transaction ' || g FROM generate_series(1, %d) g`,
	tables:  "bulk, other", last: `UPDATE other SET n = -1 WHERE id = 1`,
}

// largeUpdates is the same of updates.
var largeUpdates = drainLoad{
	name: "updates", rows: 1,
	ddl: `CREATE TABLE bulk (realm text NOT NULL, id bigint NOT NULL, n int NOT NULL, note text NOT NULL, PRIMARY KEY (realm, id));
		CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 0);
		INSERT INTO bulk SELECT 'r' || g %% 1000, g, g, 'a row of a large transaction ' || g FROM generate_series(1, 2 * %d) g; ANALYZE;`,
	backlog: `UPDATE bulk SET n = n + 1 WHERE id <= %d`,
	tables:  "bulk, other", last: `UPDATE other SET n = -1 WHERE id = 1`,
}

// BenchmarkDrain drains a backlog of REHOME_BENCH_TXNS (default 1,000) small transactions from a stopped state, into
// REHOME_BENCH_SHARDS (default 1) shards, beside a native subscription of the same backlog. It tells CPU microseconds a
// change: of the source's walsender, of the sessions at the target and of this process. Where REHOME_BENCH_PROFILE names
// a folder, profiles of our drains are written there.
func BenchmarkDrain(b *testing.B) {
	txns := benchEnv("REHOME_BENCH_TXNS", 1000)
	opts := pgcluster.Options{Fsync: true, Settings: map[string]string{"autovacuum": "off", "shared_buffers": "256MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "track_commit_timestamp": "on", "wal_retrieve_retry_interval": "100ms"}}
	src, dst := pgcluster.StartT(b, opts), pgcluster.StartT(b, opts)
	for _, load := range append(slices.Clone(drainLoads), largeLoad, largeUpdates) {
		made := sync.OnceValue(func() *drain { return newDrain(b, src, dst, load, txns) })
		b.Run(load.name+"/rehome", func(b *testing.B) {
			d := made()
			b.ResetTimer()
			d.run(b, d.rehome)
		})
		b.Run(load.name+"/native", func(b *testing.B) {
			d := made()
			b.ResetTimer()
			d.run(b, d.native)
		})
	}
}

func benchEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// drain is a backlog behind slots, of which each run reads a copy, and targets, of which each run gets a copy.
type drain struct {
	load   drainLoad
	txns   int
	source *pgx.Conn
	admin  *pgx.Conn // of the targets' cluster
	dst    *pgcluster.Cluster
	dsn    tenant.DSN // of the source
	conf   replicator.Config
	end    tenant.LSN // before the last transaction
	n      int
	spent  map[string]float64
}

func newDrain(b *testing.B, src, dst *pgcluster.Cluster, load drainLoad, txns int) *drain {
	b.Helper()
	id := "drain_" + load.name
	exec(b, open(b, src.DSN("postgres")), "CREATE DATABASE "+id)
	d := &drain{load: load, txns: txns, dst: dst, dsn: src.DSN(id), source: open(b, src.DSN(id)), admin: open(b, dst.DSN("postgres"))}
	ddl := fmt.Sprintf(load.ddl, max(txns/2, 1000))
	exec(b, d.source, ddl)
	exec(b, d.admin, "CREATE DATABASE "+id+"_native")
	c := open(b, dst.DSN(id+"_native"))
	exec(b, c, ddl)
	_ = c.Close(b.Context())
	d.conf = replicator.Config{Replication: id, Source: d.dsn, Publication: id, Epoch: 1, Pass: pass, Gate: gates{id}, Options: tenant.ReplicationOptions{NoHeartbeat: true}}
	shards := benchEnv("REHOME_BENCH_SHARDS", 1)
	for i := range shards {
		name := fmt.Sprintf("s%d", i)
		exec(b, d.admin, "CREATE DATABASE "+id+"_"+name)
		d.conf.Shards = append(d.conf.Shards, replicator.Shard{Name: name, Ordinal: i, DSN: dst.DSN(id + "_" + name)})
		d.conf.Placement.Ranges = append(d.conf.Placement.Ranges, tenant.Range{From: i * tenant.Buckets / shards, To: (i+1)*tenant.Buckets/shards - 1, Shard: name})
	}
	d.conf.Placement.Epoch, d.conf.Placement.Home = 1, "s0"
	d.conf.Slot = "rehome_" + load.name
	d.conf.State = tenant.State{Phase: tenant.Created}
	j := &memory{state: d.conf.State}
	d.conf.Journal = j
	_, stop := d.engine(b, d.conf)
	eventually(b, "in sync", func() bool {
		if st := j.phase(); st.Phase == tenant.Paused {
			b.Fatal(st.Reason)
		}
		return j.phase().Phase == tenant.InSync
	})
	stop()
	d.conf.Origin, d.conf.State = j.origin, j.phase()
	exec(b, d.source, "CREATE PUBLICATION native FOR TABLE "+load.tables)
	exec(b, d.source, `SELECT pg_create_logical_replication_slot('native_`+load.name+`', 'pgoutput')`)
	exec(b, d.source, `SET synchronous_commit = off`)
	exec(b, d.source, fmt.Sprintf(load.backlog, txns))
	d.end = scalar[tenant.LSN](b, d.source, `SELECT pg_current_wal_insert_lsn()::text`)
	exec(b, d.source, `SET synchronous_commit = on`)
	exec(b, d.source, load.last)
	return d
}

func (d *drain) engine(b *testing.B, conf replicator.Config) (e *replicator.Engine, stop func()) {
	b.Helper()
	e, err := replicator.New(conf)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Log(err)
		}
	})
	b.Cleanup(stop)
	return e, stop
}

func (d *drain) run(b *testing.B, once func(b *testing.B)) {
	d.spent = map[string]float64{}
	for range b.N {
		b.StopTimer()
		d.n++
		once(b)
	}
	changes := float64(b.N * d.txns * d.load.rows)
	for what, n := range d.spent {
		b.ReportMetric(n/changes, what+"/change")
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/drain")
	b.ReportMetric(changes/b.Elapsed().Seconds(), "changes/s")
}

// copies makes what one run consumes, a slot and databases; drop is to be called once nobody uses them.
func (d *drain) copies(b *testing.B, slot string, databases ...string) (to string, dsns []tenant.DSN, drop func()) {
	b.Helper()
	to = fmt.Sprintf("%s_%d", slot, d.n)
	exec(b, d.source, `SELECT pg_copy_logical_replication_slot($1, $2)`, slot, to)
	for i, db := range databases {
		databases[i] = fmt.Sprintf("%s_%d", db, d.n)
		exec(b, d.admin, "CREATE DATABASE "+databases[i]+" TEMPLATE "+db)
		dsns = append(dsns, d.dst.DSN(databases[i]))
	}
	exec(b, d.source, "CHECKPOINT")
	exec(b, d.admin, "CHECKPOINT")
	return to, dsns, func() {
		if b.Failed() {
			return // whoever failed may still use them; the clusters go soon
		}
		for _, name := range databases {
			exec(b, d.admin, "DROP DATABASE "+name+" WITH (FORCE)")
		}
		eventually(b, "the walsender has gone", func() bool {
			return scalar[bool](b, d.source, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, to)
		})
		exec(b, d.source, `SELECT pg_drop_replication_slot($1)`, to)
	}
}

func (d *drain) rehome(b *testing.B) {
	conf := d.conf
	var names []string
	for _, sh := range conf.Shards {
		names = append(names, "drain_"+d.load.name+"_"+sh.Name)
	}
	slot, dsns, drop := d.copies(b, d.conf.Slot, names...)
	defer drop()
	conf.Slot, conf.Shards = slot, slices.Clone(conf.Shards)
	for i := range conf.Shards {
		conf.Shards[i].DSN = dsns[i]
	}
	conf.Epoch += int64(d.n)
	conf.Journal = &memory{state: conf.State}
	runtime.GC()
	if dir := os.Getenv("REHOME_BENCH_PROFILE"); dir != "" {
		f, err := os.Create(filepath.Join(dir, d.load.name+".cpu"))
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			pprof.StopCPUProfile()
			_ = f.Close()
			f, err := os.Create(filepath.Join(dir, d.load.name+".allocs"))
			if err == nil {
				err = pprof.Lookup("allocs").WriteTo(f, 0)
			}
			if err != nil {
				b.Fatal(err)
			}
			_ = f.Close()
		}()
	}
	var mem, after runtime.MemStats
	runtime.ReadMemStats(&mem)
	user, sys := ownCPU()
	target := clusterCPU(d.dst.Pid()).Seconds()
	b.StartTimer()
	e, stop := d.engine(b, conf)
	applied := func() bool {
		p := e.Progress()
		for _, s := range p.Shards {
			if s.LSN > d.end {
				return true // the lane that has the last transaction
			}
		}
		return false
	}
	if len(conf.Shards) > 1 {
		applied = func() bool { return e.Progress().AppliedRows >= int64(d.txns*d.load.rows+1) }
	}
	for !applied() {
		if st := e.State(); st.Phase == tenant.Paused {
			b.Fatal(st.Reason)
		}
		waitTicks(b, 2)
	}
	b.StopTimer()
	u, s := ownCPU()
	runtime.ReadMemStats(&after)
	d.note(b, slot, "rehome-lane-%")
	d.spent["target-all-us"] += 1e6 * (clusterCPU(d.dst.Pid()).Seconds() - target)
	d.spent["own-user-us"] += 1e6 * (u - user)
	d.spent["own-sys-us"] += 1e6 * (s - sys)
	d.spent["allocs"] += float64(after.Mallocs - mem.Mallocs)
	d.spent["alloc-B"] += float64(after.TotalAlloc - mem.TotalAlloc)
	stop()
}

func (d *drain) native(b *testing.B) {
	slot, dsns, drop := d.copies(b, "native_"+d.load.name, "drain_"+d.load.name+"_native")
	defer drop()
	c := open(b, dsns[0])
	defer c.Close(context.Background())
	exec(b, c, fmt.Sprintf(`CREATE SUBSCRIPTION n%d CONNECTION '%s' PUBLICATION native WITH (create_slot = false, slot_name = '%s', copy_data = false, enabled = false)`, d.n, d.dsn.Reveal(), slot))
	defer exec(b, c, fmt.Sprintf(`ALTER SUBSCRIPTION n%[1]d DISABLE; ALTER SUBSCRIPTION n%[1]d SET (slot_name = NONE); DROP SUBSCRIPTION n%[1]d`, d.n))
	target := clusterCPU(d.dst.Pid()).Seconds()
	b.StartTimer() // with its start, as ours has it: a backlog this small may be drained before anybody sees the worker
	exec(b, c, fmt.Sprintf(`ALTER SUBSCRIPTION n%d ENABLE`, d.n))
	for !scalar[bool](b, c, `SELECT coalesce(pg_replication_origin_progress('pg_' || oid, false) > $1::text::pg_lsn, false) FROM pg_subscription`, d.end.String()) {
		waitTicks(b, 2)
	}
	b.StopTimer()
	d.note(b, slot, "")
	d.spent["target-all-us"] += 1e6 * (clusterCPU(d.dst.Pid()).Seconds() - target)
}

// note reads the CPU that walsender and appliers have used.
func (d *drain) note(b *testing.B, slot, lanes string) {
	b.Helper()
	pid := scalar[int](b, d.source, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, slot)
	d.spent["source-us"] += 1e6 * cpuOf(b, pid)
	rows, err := d.admin.Query(b.Context(), `SELECT pid FROM pg_stat_activity WHERE CASE WHEN $1 = '' THEN backend_type = 'logical replication worker' ELSE application_name LIKE $1 END`, lanes)
	if err != nil {
		b.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		b.Fatal(err)
	}
	for _, pid := range pids {
		d.spent["target-us"] += 1e6 * cpuOf(b, pid)
	}
}

// cpuOf reads the user and system seconds of a process (proc(5), fields 14 and 15 of stat, in hundredths of a second).
func cpuOf(b *testing.B, pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Log(err)
		return 0
	}
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	u, _ := strconv.Atoi(f[11])
	s, _ := strconv.Atoi(f[12])
	return float64(u+s) / 100
}

func ownCPU() (user, sys float64) {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	sec := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return sec(u.Utime), sec(u.Stime)
}
