package replicator_test

import (
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// BenchmarkCopyCost tells where the seconds of an initial copy go: CPU of the source, of the shards, of this process and of
// its children, step by step, with source and shards on clusters of their own. CPU seconds hardly depend on what else the
// machine does, unlike the time by the clock. Settings, all optional:
//
//	REHOME_BENCH_SCALE   fraction of dataset A (pgbench of scale 50 and 1M documents); default 0.02
//	REHOME_BENCH_DATA    A (default), many (tables of 500 rows each), narrow (such of three numbers and a key), tiny (one row)
//	REHOME_BENCH_SHARDS  how many shards; default 1
//	REHOME_BENCH_PROFILE a file for a CPU profile of this process
func BenchmarkCopyCost(b *testing.B) {
	scale, err := strconv.ParseFloat(os.Getenv("REHOME_BENCH_SCALE"), 64)
	if err != nil {
		scale = 0.02
	}
	shards, err := strconv.Atoi(os.Getenv("REHOME_BENCH_SHARDS"))
	if err != nil {
		shards = 1
	}
	settings := map[string]string{
		"shared_buffers": "512MB", "autovacuum": "off", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "max_connections": "100", "max_locks_per_transaction": "512",
	}
	source := pgcluster.StartT(b, pgcluster.Options{Settings: settings})
	clusters := make([]*pgcluster.Cluster, shards)
	for i := range clusters {
		clusters[i] = pgcluster.StartT(b, pgcluster.Options{Settings: settings})
	}
	src := pgcluster.NewDatabase(b, source)
	c := open(b, src)
	opts := tenant.ReplicationOptions{TableKeys: map[string]string{}, RealmsNeverChange: []string{"public.*"}}
	exec(b, c, costDataset(os.Getenv("REHOME_BENCH_DATA"), scale, opts.TableKeys))
	exec(b, c, "VACUUM ANALYZE")
	exec(b, c, "CHECKPOINT")
	for name := range opts.TableKeys {
		opts.RealmsNeverChange = append(opts.RealmsNeverChange, name)
	}
	if file := os.Getenv("REHOME_BENCH_PROFILE"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			b.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { pprof.StopCPUProfile(); _ = f.Close() })
	}
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		costOnce(b, source, clusters, src, opts)
	}
}

// costOnce copies once, to fresh databases, and logs what each step took.
func costOnce(b *testing.B, source *pgcluster.Cluster, clusters []*pgcluster.Cluster, src tenant.DSN, opts tenant.ReplicationOptions) {
	b.Helper()
	id := "c" + strconv.FormatInt(time.Now().UnixNano(), 36)
	cfg := replicator.Config{
		Replication: id, Source: src, Slot: "rehome_" + id, Publication: "rehome_" + id, Epoch: 1, Pass: pass, State: tenant.State{Phase: tenant.Created},
		Gate: gates{id}, Options: opts, Placement: tenant.Placement{Epoch: 1, Home: "s0"},
	}
	width := tenant.Buckets / len(clusters)
	for i, cl := range clusters {
		name := "s" + strconv.Itoa(i)
		cfg.Shards = append(cfg.Shards, replicator.Shard{Name: name, Ordinal: i, DSN: pgcluster.NewDatabase(b, cl)})
		to := (i+1)*width - 1
		if i == len(clusters)-1 {
			to = tenant.Buckets - 1
		}
		cfg.Placement.Ranges = append(cfg.Placement.Ranges, tenant.Range{From: i * width, To: to, Shard: name})
	}
	book := &costBook{memory: memory{state: tenant.State{Phase: tenant.Created}}, take: func() cost { return costNow(source, clusters) }}
	cfg.Journal = book
	e, err := replicator.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan error, 1)
	b.StartTimer()
	book.mark("start")
	go func() { done <- e.Run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	for st := e.State(); st.Phase != tenant.CatchingUp && st.Phase != tenant.InSync; st = e.State() {
		<-tick.C
		if st.Phase == tenant.Paused {
			b.Fatal(st.Reason)
		}
	}
	tick.Stop()
	b.StopTimer()
	book.mark("copied")
	book.report(b)
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	if err := e.CleanUp(context.Background()); err != nil {
		b.Log(err)
	}
}

// costDataset makes the statements of a dataset and says which columns are realm keys.
func costDataset(name string, scale float64, keys map[string]string) string {
	var sql strings.Builder
	switch name {
	case "narrow":
		keys["public.*"] = "realm_id"
		for i := range max(1, int(2000*scale)) {
			fmt.Fprintf(&sql, `CREATE TABLE t%[1]d (id bigint NOT NULL, realm_id int NOT NULL, n int NOT NULL, PRIMARY KEY (id, realm_id));
				INSERT INTO t%[1]d SELECT g, g * 7919::bigint %% 1000, 0 FROM generate_series(1, 500) g;`, i)
		}
		return sql.String()
	case "tiny":
		keys["public.one"] = "realm_id"
		return `CREATE TABLE one (id int PRIMARY KEY, realm_id text NOT NULL); INSERT INTO one VALUES (1, 'a')`
	case "many":
		for i := range max(1, int(2000*scale)) {
			table := fmt.Sprintf("t%d", i)
			keys["public."+table] = "realm_id"
			fmt.Fprintf(&sql, `CREATE TABLE %[1]s (id int PRIMARY KEY, realm_id text NOT NULL, note text); CREATE INDEX ON %[1]s (realm_id);
				INSERT INTO %[1]s SELECT g, 'r' || g %% 50, repeat('x', 60) FROM generate_series(1, 500) g;`, table)
		}
		return sql.String()
	}
	branches := max(1, int(50*scale))
	for _, t := range []string{"branches", "tellers", "accounts"} {
		keys["public.pgbench_"+t] = "bid"
	}
	keys["public.documents"] = "realm"
	fmt.Fprintf(&sql, `
		CREATE TABLE pgbench_branches (bid int NOT NULL, bbalance int, filler char(88)) WITH (fillfactor=100);
		CREATE TABLE pgbench_tellers (tid int NOT NULL, bid int, tbalance int, filler char(84)) WITH (fillfactor=100);
		CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int, abalance int, filler char(84)) WITH (fillfactor=100);
		CREATE TABLE documents (id uuid NOT NULL, realm text NOT NULL, tbl text NOT NULL, body jsonb NOT NULL, at timestamptz NOT NULL);
		INSERT INTO pgbench_branches SELECT g, 0, '' FROM generate_series(1, %[1]d) g;
		INSERT INTO pgbench_tellers SELECT g, (g - 1) / 10 + 1, 0, '' FROM generate_series(1, 10 * %[1]d) g;
		INSERT INTO pgbench_accounts SELECT g, (g - 1) / 100000 + 1, 0, '' FROM generate_series(1, 100000 * %[1]d) g;
		INSERT INTO documents SELECT md5(g::text)::uuid, 'realm-' || lpad(((1000 * power(random(), 3))::int)::text, 4, '0'), 'table' || g %% 20,
			jsonb_build_object('n', g, 'title', md5((g * 7)::text), 'text', repeat(md5((g * 3)::text), 12), 'tags', jsonb_build_array('a', 'b', g %% 100)),
			'2026-01-01'::timestamptz + g * interval '1.37 second' FROM generate_series(1, %[2]d) g;
		ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid); ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid); ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid);
		ALTER TABLE documents ADD PRIMARY KEY (id); CREATE INDEX ON documents (realm, tbl); CREATE INDEX ON documents (at);`,
		branches, max(1000, int(1e6*scale)))
	return sql.String()
}

// cost is CPU, user and system, since each process began.
type cost struct{ source, shards, own, children time.Duration }

func (c cost) minus(o cost) cost {
	return cost{c.source - o.source, c.shards - o.shards, c.own - o.own, c.children - o.children}
}

func costNow(source *pgcluster.Cluster, shards []*pgcluster.Cluster) cost {
	c := cost{source: clusterCPU(source.Pid()), own: usage(syscall.RUSAGE_SELF), children: usage(syscall.RUSAGE_CHILDREN)}
	for _, s := range shards {
		c.shards += clusterCPU(s.Pid())
	}
	return c
}

func usage(who int) time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(who, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// clusterCPU is what a postmaster and its children took, those that have ended included (proc(5), /proc/pid/stat). It is 0
// where there is no /proc.
func clusterCPU(postmaster int) time.Duration {
	const clock = 10 * time.Millisecond // sysconf(_SC_CLK_TCK) is 100 on Linux
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", postmaster))
	var ticks int64
	for i, pid := range append([]string{strconv.Itoa(postmaster)}, strings.Fields(string(raw))...) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // from the third on
		last := 12
		if i == 0 {
			last = 14 // with cutime and cstime
		}
		for _, f := range fields[11 : last+1] {
			n, _ := strconv.ParseInt(f, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * clock
}

// costBook is a journal that takes the figures at each step.
type costBook struct {
	memory
	take  func() cost
	lock  sync.Mutex
	marks []costMark
}

type costMark struct {
	step string
	at   time.Time
	cost cost
}

func (j *costBook) mark(step string) {
	j.lock.Lock()
	defer j.lock.Unlock()
	j.marks = append(j.marks, costMark{step, time.Now(), j.take()})
}

func (j *costBook) Note(_ context.Context, event string, data any) {
	if m, ok := data.(map[string]any); ok && event == "step" {
		j.mark(fmt.Sprint(m["step"]))
	}
}

func (j *costBook) report(b *testing.B) {
	b.Helper()
	line := func(step string, from, to costMark) {
		d := to.cost.minus(from.cost)
		b.Logf("%-50s wall %6.2f  source %6.2f  shards %6.2f  own %6.2f  children %5.2f", step, to.at.Sub(from.at).Seconds(),
			d.source.Seconds(), d.shards.Seconds(), d.own.Seconds(), d.children.Seconds())
	}
	first, last := j.marks[0], j.marks[len(j.marks)-1]
	for i, m := range j.marks[:len(j.marks)-1] {
		line(m.step, m, j.marks[i+1])
	}
	line("TOTAL", first, last)
	d := last.cost.minus(first.cost)
	b.ReportMetric(d.source.Seconds(), "source-cpu-s")
	b.ReportMetric(d.shards.Seconds(), "shards-cpu-s")
	b.ReportMetric(d.own.Seconds(), "own-cpu-s")
}
