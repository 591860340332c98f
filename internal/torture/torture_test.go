package torture

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

func planConfig(seed uint64) PlanConfig {
	return PlanConfig{
		Seed: seed, Length: 6 * time.Minute, Gap: 4 * time.Second, Quiet: 90 * time.Second, Lease: 10 * time.Second, Servers: []string{"a", "b"}, Shards: []string{"s1", "s2", "s3"},
		Source: "the source", Control: "the control database", NATS: "nats", Links: []string{"source", "s1", "control-a"},
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	c := planConfig(3)
	plan := Plan(c)
	if diff := cmp.Diff(plan, Plan(c)); diff != "" {
		t.Errorf("a seed gives two plans:\n%s", diff)
	}
	if cmp.Equal(plan, Plan(planConfig(4))) {
		t.Error("two seeds give the same plan")
	}
	kinds, overlaps := map[Kind]int{}, 0
	busy := map[string]time.Duration{}
	var until time.Duration
	for _, f := range plan {
		kinds[f.Kind]++
		if f.At < busy[f.Target] {
			t.Errorf("%s: its target is broken already", f)
		}
		busy[f.Target] = f.At + f.For
		if f.At < until {
			overlaps++
		}
		until = max(until, f.At+f.For)
		if f.Kind == ServerStop && f.For <= c.Lease {
			t.Errorf("%s: shorter than the lease", f)
		}
	}
	if until > c.Length {
		t.Errorf("mended after %s only", until)
	}
	if overlaps == 0 {
		t.Error("no two faults at the same time")
	}
	for _, k := range []Kind{ServerKill, ServerStop, ServerRestart, SourceKill, ShardKill, ControlKill, NATSStop, NetLatency, NetCut, NetHalfOpen, NetStall, NetBandwidth} {
		if kinds[k] == 0 {
			t.Errorf("no %s among %d faults", k, len(plan))
		}
	}
}

// TestNetwork asks a server that answers each byte with the next one, through a link in every weather.
func TestNetwork(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	n := NewNetwork()
	t.Cleanup(n.Close)
	dsn, err := n.Link("x", tenant.DSN("postgres://u@"+l.Addr().String()+"/db"))
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimSuffix(strings.TrimPrefix(dsn.Reveal(), "postgres://u@"), "/db")
	dial := func() net.Conn {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	echo := func(within time.Duration) error {
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := echo(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	n.Slow("x", 60*time.Millisecond)
	began := time.Now()
	if err := echo(5 * time.Second); err != nil || time.Since(began) < 110*time.Millisecond {
		t.Errorf("slow: %v after %s", err, time.Since(began))
	}
	n.Silence("x")
	if err := echo(100 * time.Millisecond); err == nil {
		t.Error("an answer out of the silence")
	}
	n.Clear("x")
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("what was sent in the silence never arrived: %v", err)
	}
	n.Narrow("x", 1000)
	began = time.Now()
	if _, err := c.Write(make([]byte, 300)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 300)); err != nil || time.Since(began) < 250*time.Millisecond {
		t.Errorf("narrow: %v after %s", err, time.Since(began))
	}
	n.Cut("x")
	if err := echo(5 * time.Second); err == nil {
		t.Error("an answer through a link that was cut")
	}
	if err := n.Mend("x"); err != nil {
		t.Fatal(err)
	}
	c = dial()
	if err := echo(5 * time.Second); err != nil {
		t.Errorf("after the link was mended: %v", err)
	}
}

// TestCompare makes two shards by hand, equal to their source after a workload, and then wrong in each way.
func TestCompare(t *testing.T) {
	t.Parallel()
	const realms = 6
	ctx := t.Context()
	src := pgcluster.NewDatabase(t, cluster)
	if err := Fill(ctx, src, realms, 100); err != nil {
		t.Fatal(err)
	}
	w := NewWorkload(Config{DSN: src, Seed: 5, Realms: realms, Clients: 3, Think: time.Millisecond, Big: 200, ToastMoves: true, DDL: true})
	w.AllowDDL()
	writing, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(writing) }()
	for deadline := time.Now().Add(time.Minute); w.Acked() < 400 && time.Now().Before(deadline); {
		pause(ctx, 10*time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ops := map[string]int{}
	for _, try := range w.Tries() {
		if try.Outcome == Acked {
			ops[try.Op]++
		}
	}
	for _, op := range []string{"transfer", "hot", "document-touch", "document-move", "travel", "travel-back", "rekey", "swap", "swap-deferred", "measure", "rate", "mingle", "truncate", "scratch", "big"} {
		if ops[op] == 0 {
			t.Errorf("no %s among the transactions acknowledged: %v", op, ops)
		}
	}

	s := Sides{Source: src, Shards: map[string]tenant.DSN{}, Ranges: []tenant.Range{{From: 0, To: 8000, Shard: "one"}, {From: 8001, To: 16383, Shard: "two"}}}
	conns := map[string]*pgx.Conn{}
	for _, name := range []string{"one", "two"} {
		s.Shards[name] = pgcluster.NewDatabaseFrom(t, cluster, strings.TrimPrefix(src.Reveal()[strings.LastIndex(src.Reveal(), "/"):strings.Index(src.Reveal(), "?")], "/"))
		c, err := pgx.Connect(ctx, s.Shards[name].Reveal())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.WithoutCancel(ctx)) })
		conns[name] = c
		tables, err := tablesOf(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, tb := range tables {
			if !tb.realm {
				continue
			}
			for i := range realms {
				if s.owner(realmName(i)) != name {
					run(t, c, `DELETE FROM `+tenant.QuoteIdent(tb.name)+` WHERE realm_id = $1`, realmName(i))
				}
			}
		}
	}
	tries := w.Tries()
	f, err := Compare(ctx, s, tries, Money(realms))
	if err != nil || f.Acked < 400 || f.Rows == 0 {
		t.Fatalf("equal sides: %+v, %v", f, err)
	}
	home, other := s.owner("r0"), "two"
	if home == "two" {
		other = "one"
	}
	journalRow := slices.IndexFunc(tries, func(t Try) bool { return t.Outcome == Acked && s.owner(t.Realm) == home })
	for _, wrong := range []struct{ what, do, undo, on, say string }{
		{"changed", `UPDATE accounts SET touched = -1 - touched WHERE realm_id = 'r0' AND id = 3`, `UPDATE accounts SET touched = -1 - touched WHERE realm_id = 'r0' AND id = 3`, home, "accounts"},
		{"money", `UPDATE accounts SET balance = balance + 1 WHERE realm_id = 'r0' AND id = 3`, `UPDATE accounts SET balance = balance - 1 WHERE realm_id = 'r0' AND id = 3`, home, "sum up to"},
		{"doubled", `INSERT INTO crowd VALUES ('r0', 'new', 1)`, `DELETE FROM crowd WHERE tag = 'new'`, home, "not at the source"},
		{"astray", `INSERT INTO seats VALUES ('r0', 1000, 1000, 1000)`, `DELETE FROM seats WHERE id = 1000`, other, "does not own it"},
		{"reference", `UPDATE rates SET changes = -1 - changes WHERE code = 'c1'`, `UPDATE rates SET changes = -1 - changes WHERE code = 'c1'`, other, "rates on"},
		{"lost", fmt.Sprintf(`UPDATE journal SET id = -id WHERE id = %d`, tries[journalRow].ID), fmt.Sprintf(`UPDATE journal SET id = -id WHERE id = -%d`, tries[journalRow].ID), home, "0 times on the shards instead of 1"},
	} {
		run(t, conns[wrong.on], wrong.do)
		if _, err := Compare(ctx, s, tries, Money(realms)); err == nil || !strings.Contains(err.Error(), wrong.say) {
			t.Errorf("%s: %v", wrong.what, err)
		}
		run(t, conns[wrong.on], wrong.undo)
	}
	if _, err := Compare(ctx, s, append(slices.Clone(tries), Try{Realm: "r0", ID: 1, Op: "lost", Outcome: Acked}), Money(realms)); err == nil {
		t.Error("an acknowledged transaction that is nowhere was not missed")
	}
	failed := slices.Clone(tries)
	failed[journalRow].Outcome = Failed
	if _, err := Compare(ctx, s, failed, Money(realms)); err == nil {
		t.Error("a transaction that was rolled back and is there was not found")
	}
}

func run(t *testing.T, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	tag, err := c.Exec(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if len(args) == 0 && tag.RowsAffected() == 0 {
		t.Fatalf("%s: no row", sql)
	}
}
