package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// envInt reads how large a run is to be: small in the tests, large in `make pgbench`.
func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s=%q is not a number", name, s)
	}
	return n
}

// pgbench is a running pgbench. Its clients stop when the source refuses them: that is the cutover.
type pgbench struct {
	cmd *exec.Cmd
	out *strings.Builder
}

func pgbenchArgs(t *testing.T, c *pgcluster.Cluster, dsn tenant.DSN, args ...string) *exec.Cmd {
	t.Helper()
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(c.BinDir(), "pgbench"), append(args, "-h", u.Hostname(), "-p", u.Port(), "-U", u.User.Username(), strings.TrimPrefix(u.Path, "/"))...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGSSLMODE=disable")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func startPgbench(t *testing.T, c *pgcluster.Cluster, dsn tenant.DSN, args ...string) *pgbench {
	t.Helper()
	b := &pgbench{cmd: pgbenchArgs(t, c, dsn, args...), out: &strings.Builder{}}
	b.cmd.Stdout, b.cmd.Stderr = b.out, b.out
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
	})
	return b
}

func initPgbench(t *testing.T, c *pgcluster.Cluster, dsn tenant.DSN, scale int) {
	t.Helper()
	if out, err := pgbenchArgs(t, c, dsn, "-i", "-q", "-s", strconv.Itoa(scale)).CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
}

// accepted are the findings of pgbench's schema that must be accepted by name to spread it by branch: its keys do not
// contain the branch, so that no shard can enforce them over all.
var accepted = []string{"--accept", "constraint-without-realm:public.pgbench_accounts_pkey", "--accept", "constraint-without-realm:public.pgbench_tellers_pkey"}

func moveArgs(command, from, to string, more ...string) []string {
	return append([]string{command, "--from", from, "--to", to}, more...)
}

// TestPgbench takes pgbench's database over to three shards while pgbench writes: copy, stream, verification, cutover.
func TestPgbench(t *testing.T) {
	t.Parallel()
	scale, seconds := envInt(t, "REHOME_PGBENCH_SCALE", 3), envInt(t, "REHOME_PGBENCH_SECONDS", 180)
	source := pgcluster.StartT(t, pgcluster.Options{Fsync: true}) // a cutover wants a source that keeps its word
	src := pgcluster.NewDatabase(t, source)
	initPgbench(t, source, src, scale)
	before := catalogueOf(t, source, src)

	inst := newInstallation(t, pgcluster.NewDatabase(t, shared))
	var clusters []*pgcluster.Cluster
	for range 3 {
		clusters = append(clusters, pgcluster.StartT(t, pgcluster.Options{}))
	}
	inst.addShards(clusters...)
	inst.must("create", "bench", "--realm-key", "bid", "--owner", "owner@example.com")
	to := inst.url + "/bench"

	// Without fixes and acceptances the preflight refuses, names each, and touches nothing.
	_, errs, code := inst.run(moveArgs("preflight", src.Reveal(), to, "--realm-key", "bid")...)
	if code != 3 {
		t.Fatalf("preflight: exit %d, want 3\n%s", code, errs)
	}
	out, _, _ := inst.run(moveArgs("preflight", src.Reveal(), to, "--realm-key", "bid", "-o", "json")...)
	for _, want := range []string{"public.pgbench_accounts_pkey", "public.pgbench_history", "--fix-identity"} {
		if !strings.Contains(out, want) {
			t.Errorf("preflight does not mention %s:\n%s", want, out)
		}
	}
	if diff := catalogueOf(t, source, src); diff != before {
		t.Fatal("preflight changed the source")
	}

	how := []string{"-n", "-c", "8", "-j", "2", "-T", strconv.Itoa(seconds)}
	if os.Getenv("REHOME_PGBENCH_SCALE") == "" {
		how = append(how, "-R", "300") // beside other tests; at full speed by make pgbench
	}
	load := startPgbench(t, source, src, how...)
	args := moveArgs("start-replication", src.Reveal(), to, append([]string{"--realm-key", "bid", "--fix-identity"}, accepted...)...)
	inst.mustApproved(args...)
	inst.waitPhase(tenant.InSync)
	v := mustJSON[tenant.Verification](inst, "verify")
	if !v.Clean || v.Rows < int64(scale)*100000 {
		t.Fatalf("verification under load: %+v", v)
	}
	v = mustJSON[tenant.Verification](inst, "verify")
	if !v.Clean {
		t.Fatalf("verification under load: %+v", v)
	}
	out, errs, code = inst.approved("cutover")
	if code != 0 {
		t.Fatalf("cutover: exit %d\n%s%s", code, out, errs)
	}
	if load.cmd.ProcessState != nil {
		t.Fatal("pgbench ended before the cutover; the run must be longer")
	}
	_ = load.cmd.Wait() // its clients were refused by the fence
	if !strings.Contains(load.out.String(), "database has moved") {
		t.Errorf("pgbench was not refused by the fence:\n%s", load.out)
	}
	cert := mustJSON[tenant.Certificate](inst, "certificate", "show")
	t.Logf("pause %.0f ms, marker %s, %d shards", cert.PauseMillis, cert.MarkerLSN, len(cert.Shards))

	checkTPCB(t, inst, src, clusters)
	conn := open(t, src)
	if _, err := conn.Exec(t.Context(), `UPDATE pgbench_branches SET bbalance = 0`); err == nil || !strings.Contains(err.Error(), "RH001") {
		t.Errorf("the source still accepts writes: %v", err)
	}

	inst.mustApproved("complete", "--drop-fence", "--yes")
	if diff := lineDiff(before, catalogueOf(t, source, src)); diff != "" {
		t.Errorf("complete left at the source:\n%s", diff)
	}
	if n := scalar[int](t, conn, `SELECT count(*)::int FROM pg_replication_slots WHERE database = current_database()`); n != 0 {
		t.Errorf("%d slots are left at the source", n)
	}
}

// checkTPCB compares the four balances of TPC-B over all shards with each other and with the source, which is fenced, and
// looks for rows on a shard that does not own their branch.
func checkTPCB(t *testing.T, inst *installation, src tenant.DSN, clusters []*pgcluster.Cluster) {
	t.Helper()
	type sums struct{ accounts, tellers, branches, history, rows, moves int64 }
	read := func(dsn tenant.DSN) (s sums) {
		c := open(t, dsn)
		s.accounts = scalar[int64](t, c, `SELECT coalesce(sum(abalance), 0)::bigint FROM pgbench_accounts`)
		s.tellers = scalar[int64](t, c, `SELECT coalesce(sum(tbalance), 0)::bigint FROM pgbench_tellers`)
		s.branches = scalar[int64](t, c, `SELECT coalesce(sum(bbalance), 0)::bigint FROM pgbench_branches`)
		s.history = scalar[int64](t, c, `SELECT coalesce(sum(delta), 0)::bigint FROM pgbench_history`)
		s.rows = scalar[int64](t, c, `SELECT count(*) FROM pgbench_accounts`)
		s.moves = scalar[int64](t, c, `SELECT count(*) FROM pgbench_history`)
		return s
	}
	var placement tenant.Placement
	getJSON(t, inst, "/v1/databases/bench/placement", &placement)
	var all sums
	for n, c := range clusters {
		name := "s" + strconv.Itoa(n+1)
		s := read(c.DSN("bench"))
		all.accounts += s.accounts
		all.tellers += s.tellers
		all.branches += s.branches
		all.history += s.history
		all.rows += s.rows
		all.moves += s.moves
		conn := open(t, c.DSN("bench"))
		for _, table := range []string{"pgbench_accounts", "pgbench_tellers", "pgbench_branches", "pgbench_history"} {
			rows, err := conn.Query(t.Context(), `SELECT DISTINCT bid::text FROM `+table)
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				var bid string
				if err := rows.Scan(&bid); err != nil {
					t.Fatal(err)
				}
				if owner := placement.ShardOf(bid); owner != name {
					t.Errorf("rows of branch %s in %s are on %s, their shard is %s", bid, table, name, owner)
				}
			}
		}
	}
	if all.accounts != all.tellers || all.tellers != all.branches || all.branches != all.history {
		t.Errorf("the balances do not agree: %+v", all)
	}
	if s := read(src); s != all {
		t.Errorf("source %+v, shards %+v", s, all)
	}
	t.Logf("balance %d over %d transactions", all.branches, all.moves)
}

// catalogueOf is the source's schema as pg_dump writes it, with everything of Rehome that it would show.
func catalogueOf(t *testing.T, c *pgcluster.Cluster, dsn tenant.DSN) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(c.BinDir(), "pg_dump"), "-s", dsn.Reveal()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var keep strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `\`) { // \restrict carries a random key
			keep.WriteString(line)
		}
	}
	return keep.String()
}

// lineDiff names the lines that only one side has.
func lineDiff(a, b string) string {
	count := map[string]int{}
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		count[line]--
	}
	var out strings.Builder
	for line, n := range count {
		if n != 0 {
			fmt.Fprintf(&out, "%+d %s", -n, line)
		}
	}
	return out.String()
}

// TestCancelLeavesTheSourceAsItWas also takes back what --fix-identity changed, and lets the move begin again.
func TestCancelLeavesTheSourceAsItWas(t *testing.T) {
	t.Parallel()
	src := pgcluster.NewDatabase(t, shared)
	initPgbench(t, shared, src, 1)
	before := catalogueOf(t, shared, src)
	inst := newInstallation(t, pgcluster.NewDatabase(t, shared))
	inst.addShards(pgcluster.StartT(t, pgcluster.Options{}))
	inst.must("add-shard", "s2", pgcluster.StartT(t, pgcluster.Options{}).DSN("postgres").Reveal())
	inst.must("create", "bench", "--realm-key", "bid", "--owner", "owner@example.com")
	args := moveArgs("start-replication", src.Reveal(), inst.url+"/bench", append([]string{"--realm-key", "bid", "--fix-identity"}, accepted...)...)
	conn := open(t, src)
	for round := range 2 {
		inst.mustApproved(args...)
		inst.waitPhase(tenant.InSync)
		if catalogueOf(t, shared, src) == before {
			t.Fatal("nothing was changed at the source, so this test shows nothing")
		}
		inst.must("cancel-replication", "--yes")
		if diff := lineDiff(before, catalogueOf(t, shared, src)); diff != "" {
			t.Fatalf("round %d: cancel left at the source:\n%s", round, diff)
		}
		if n := scalar[int](t, conn, `SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication)`); n != 0 {
			t.Fatalf("round %d: %d slots or publications are left", round, n)
		}
	}
	rs := mustJSON[[]api.Replication](inst, "replications")
	if len(rs) != 2 || rs[0].State.Phase != tenant.Cancelled {
		t.Errorf("replications: %+v", rs)
	}
}
