package redirect

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// noon is a time from which steps are easy to read.
func noon() time.Time { return time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC) }

// TestHistory samples both sides while clients come and go, and reads the curve back.
func TestHistory(t *testing.T) {
	b := setup(t, nil)
	b.clock.t = noon()
	ctx := t.Context()
	b.database(t, "acme", app(t, nil).URL)
	dsn := pgcluster.NewDatabase(t, cluster)
	own, err := pgx.ParseConfig(dsn.Reveal())
	must(t, err)
	own.RuntimeParams["application_name"] = "rehome" // a session that just ended may still be listed
	open := func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, own) }
	billing, err := pgx.ParseConfig(dsn.Reveal())
	must(t, err)
	billing.RuntimeParams["application_name"] = "billing/1.4"
	past, err := pgx.ConnectConfig(ctx, billing)
	must(t, err)
	sample := func() {
		t.Helper()
		must(t, b.flush(ctx))
		must(t, b.Sample(ctx, []Sampled{{Name: "acme", Bypass: []func(context.Context) (*pgx.Conn, error){open}}}))
	}
	b.do(t, "GET", "/acme/x", "User-Agent", "curl/8.5.0")
	sample()
	b.clock.add(time.Minute)
	must(t, past.Close(ctx))
	b.http.CloseIdleConnections()
	eventually(t, "both are gone", func() bool {
		s, err := b.StatsFor(ctx, "acme", open)
		must(t, err)
		return s.OpenNow == 0
	})
	sample()
	b.clock.add(time.Minute)
	must(t, b.Sample(ctx, []Sampled{{Name: "acme", Bypass: []func(context.Context) (*pgx.Conn, error){func(context.Context) (*pgx.Conn, error) { return nil, errNotReached }}}}))

	h, err := b.History(ctx, "acme", time.Hour)
	must(t, err)
	at := func(d time.Duration) time.Time { return noon().Add(d) }
	want := []HistoryPoint{
		{At: at(0), Gateway: new(1.0), Direct: new(1.0), GatewayMax: 1, DirectMax: 1, Opened: 1},
		{At: at(time.Minute), Gateway: new(0.0), Direct: new(0.0)},
		{At: at(2 * time.Minute), Gateway: new(0.0)},
	}
	if diff := cmp.Diff(want, h.Points); diff != "" || h.Step != "minute" || !h.Collecting {
		t.Errorf("%s %+v", diff, h)
	}
	clients := []ClientUse{
		{Protocol: "http", Client: "curl", Version: "8.5.0", Via: "gateway", LastHour: 1, Opened: 1},
		{Protocol: "postgres", Client: "billing", Version: "1.4", Via: "direct", LastHour: 1, Opened: 1},
	}
	if diff := cmp.Diff(clients, h.Clients, cmpopts.IgnoreFields(ClientUse{}, "LastSeen")); diff != "" {
		t.Error(diff)
	}
	// By hours, from minutes that are still there, and from the hour after the roll-up: the same.
	hour, err := b.History(ctx, "acme", 5*24*time.Hour)
	must(t, err)
	b.clock.add(4 * 24 * time.Hour)
	must(t, b.RollUp(ctx))
	rolled, err := b.History(ctx, "acme", 5*24*time.Hour)
	must(t, err)
	want = []HistoryPoint{{At: at(0), Gateway: new(1.0 / 3), Direct: new(0.5), GatewayMax: 1, DirectMax: 1, Opened: 1}}
	if diff := cmp.Diff(want, rolled.Points, cmpopts.EquateApprox(0, 1e-9)); diff != "" || rolled.Step != "hour" {
		t.Error(diff)
	}
	if diff := cmp.Diff(hour.Points, rolled.Points, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Error(diff)
	}
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_stats WHERE address <> '' OR server <> ''`); n != 0 {
		t.Errorf("%d rolled rows know an address", n)
	}
	b.clock.add(60 * 24 * time.Hour)
	must(t, b.RollUp(ctx))
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_stats WHERE step <> 'day' OR minute <> '2026-03-10 00:00Z'`); n != 0 {
		t.Errorf("%d rows are not the day's", n)
	}
	days, err := b.History(ctx, "acme", 100*24*time.Hour)
	must(t, err)
	if len(days.Points) != 1 || days.Step != "day" || days.Points[0].Opened != 1 || days.Points[0].GatewayMax != 1 {
		t.Errorf("%+v", days)
	}
	b.clock.add(keepDays)
	must(t, b.RollUp(ctx))
	if n := b.rows(t, `SELECT (SELECT count(*) FROM rehome_control.connection_stats) + (SELECT count(*) FROM rehome_control.connection_samples)`); n != 0 {
		t.Errorf("%d rows are kept for ever", n)
	}
}

func (b *bundle) rows(t *testing.T, sql string, args ...any) (n int) {
	t.Helper()
	must(t, b.pool.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// TestRollUpCountsOnce lets several servers roll up at once, some of them cut off in the middle, while late rows arrive.
func TestRollUpCountsOnce(t *testing.T) {
	b := setup(t, nil)
	b.clock.t = noon()
	ctx := t.Context()
	const insert = `INSERT INTO rehome_control.connection_stats (database, minute, protocol, client, version, address, outcome, server, opened, bytes, last_seen)
		SELECT 'acme', $1::timestamptz + m * interval '1 minute', 'http', 'c' || (m % 7), '1', '10.0.0.' || (m % 5), 'served', 's' || (m % 2), 3, 10, $1::timestamptz + m * interval '1 minute' FROM generate_series(0, 599) m
		ON CONFLICT (database, step, minute, protocol, client, version, address, outcome, server) DO UPDATE SET opened = connection_stats.opened + 3`
	b.exec(t, insert, noon().Add(-90*time.Hour))
	b.exec(t, `INSERT INTO rehome_control.connection_samples SELECT 'acme', 'minute', $1::timestamptz + m * interval '1 minute', 'gateway', 'http', 1, m, m FROM generate_series(0, 599) m`, noon().Add(-90*time.Hour))
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			other := New(Config{Pool: b.pool, Server: fmt.Sprint("s", i), UsageStats: true, Now: b.clock.now})
			if i%2 == 0 { // cut off, and begun again
				cut, cancel := context.WithTimeout(ctx, time.Duration(i+1)*3*time.Millisecond)
				_ = other.RollUp(cut) // meant to fail
				cancel()
			}
			if err := other.RollUp(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.exec(t, insert, noon().Add(-90*time.Hour)) // late
	must(t, b.RollUp(ctx))
	if n := b.rows(t, `SELECT sum(opened) FROM rehome_control.connection_stats WHERE step = 'hour'`); n != 2*600*3 {
		t.Errorf("%d opened, want %d", n, 2*600*3)
	}
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_stats WHERE step = 'minute'`); n != 0 {
		t.Errorf("%d rows by minute are left", n)
	}
	if n := b.rows(t, `SELECT sum(samples) * 1000000 + sum(open_sum) FROM rehome_control.connection_samples WHERE step = 'hour'`); n != 600*1000000+599*600/2 {
		t.Errorf("samples: %d", n)
	}
}

// TestManyClients has 100,000 clients that each say another name: memory and tables stay small, and nothing is lost of the sums.
func TestManyClients(t *testing.T) {
	b := setup(t, nil)
	b.clock.t = noon()
	ctx := t.Context()
	const clients = 100_000
	for i := range clients {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/acme/x", http.NoBody)
		must(t, err)
		r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)
		r.Header.Set("User-Agent", fmt.Sprintf("bot-%d/1.%d", i, i))
		k := b.counts.see(r, "acme", addressOf(r.RemoteAddr))
		b.counts.add(k, 1)
		b.counts.opened(k, "served", 1)
		if i%10_000 == 0 {
			must(t, b.flush(ctx))
			b.clock.add(time.Minute)
		}
	}
	must(t, b.flush(ctx))
	if n := len(b.counts.open); n > maxClientsPerDatabase+1 {
		t.Errorf("%d clients in memory", n)
	}
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_gauges`); n > maxClientsPerDatabase+1 {
		t.Errorf("%d gauges", n)
	}
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_stats`); n > maxClientsPerDatabase+20 {
		t.Errorf("%d rows", n)
	}
	s, err := b.StatsFor(ctx, "acme")
	must(t, err)
	if s.OpenNow != clients || s.LastHour != clients || s.ByClient[0].Client != otherClient || s.ByClient[0].Opened < clients-maxClientsPerDatabase || len(s.ByClient) > maxClientUses {
		t.Errorf("%d open, %d opened, first %+v", s.OpenNow, s.LastHour, s.ByClient[0])
	}
	// The next hour has room again, for those who come then.
	b.clock.add(membersKept)
	if k := b.counts.members.fold(key{database: "acme", protocol: "http", client: "new"}); k.client != "new" {
		t.Errorf("%+v", k)
	}
	b.clock.add(3 * 24 * time.Hour)
	must(t, b.RollUp(ctx))
	if n := b.rows(t, `SELECT count(*) FROM rehome_control.connection_stats`); n > rolledClients+1 {
		t.Errorf("%d rows after the roll-up", n)
	}
	if n := b.rows(t, `SELECT sum(opened) FROM rehome_control.connection_stats`); n != clients {
		t.Errorf("%d opened after the roll-up", n)
	}
}
