package redirect

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

func TestStats(t *testing.T) {
	b := setup(t, nil)
	ctx := t.Context()
	b.database(t, "acme", app(t, nil).URL)
	for range 3 {
		b.do(t, "GET", "/acme/x", "User-Agent", "curl/8.5.0")
	}
	firefox := client(t)
	old := b.http
	b.http = firefox
	b.do(t, "GET", "/acme/x", "User-Agent", "Mozilla/5.0 (X11) Gecko/20100101 Firefox/128.0")
	b.http = old

	s, err := b.StatsFor(ctx, "acme")
	must(t, err)
	want := Stats{
		Database: "acme", At: b.clock.now(), OpenNow: 2, ByProtocol: map[string]int{"http": 2}, ByVia: map[string]int{"gateway": 2},
		LastMinute: 4, LastHour: 4, LastDay: 4, Collecting: true, LastSeen: new(b.clock.now()),
		Clients: []Connection{
			{Protocol: "http", Client: "Firefox", Version: "128", Address: "127.0.0.1", Via: "gateway", Open: 1, LastSeen: b.clock.now()},
			{Protocol: "http", Client: "curl", Version: "8.5.0", Address: "127.0.0.1", Via: "gateway", Open: 1, LastSeen: b.clock.now()},
		},
		ByClient: []ClientUse{
			{Protocol: "http", Client: "curl", Version: "8.5.0", Via: "gateway", Open: 1, LastHour: 3, Opened: 3, LastSeen: b.clock.now()},
			{Protocol: "http", Client: "Firefox", Version: "128", Via: "gateway", Open: 1, LastHour: 1, Opened: 1, LastSeen: b.clock.now()},
		},
	}
	if diff := cmp.Diff(want, s, cmpopts.EquateApproxTime(time.Second)); diff != "" {
		t.Error(diff)
	}
	if open := b.Open("acme"); len(open) != 2 {
		t.Errorf("%+v", open)
	}

	// The curve falls to zero: idle connections count until they close.
	b.http.CloseIdleConnections()
	firefox.CloseIdleConnections()
	eventually(t, "nothing is open", func() bool {
		s, err := b.StatsFor(ctx, "acme")
		must(t, err)
		return s.OpenNow == 0
	})

	// Two minutes later; half of the hour's requests are redirected.
	b.clock.add(2 * time.Minute)
	_, err = b.SetRedirect(ctx, Redirect{Database: "acme", To: "https://own.example/acme"})
	must(t, err)
	for range 4 {
		b.do(t, "GET", "/acme/x")
	}
	s, err = b.StatsFor(ctx, "acme")
	must(t, err)
	if s.LastMinute != 4 || s.LastHour != 8 || s.Redirected != 0.5 {
		t.Errorf("%+v", s)
	}
	b.clock.add(2 * time.Hour)
	s, err = b.StatsFor(ctx, "acme")
	must(t, err)
	if s.LastMinute != 0 || s.LastHour != 0 || s.LastDay != 8 || s.Redirected != 0 || s.LastSeen == nil {
		t.Errorf("%+v", s)
	}
	b.clock.add(40 * 24 * time.Hour)
	must(t, b.RollUp(ctx))
	s, err = b.StatsFor(ctx, "acme")
	must(t, err)
	if s.LastDay != 0 || s.LastSeen != nil {
		t.Errorf("%+v", s)
	}
}

// The figures of all servers are added up; those of a silent server are not.
func TestStatsOfSeveralServers(t *testing.T) {
	b := setup(t, nil)
	ctx := t.Context()
	b.database(t, "acme", app(t, nil).URL)
	b.exec(t, `INSERT INTO rehome_control.connection_gauges (database, server, protocol, client, version, address, open_now, updated_at) VALUES
		('acme', 'two', 'http', 'curl', '8.5.0', '127.0.0.1', 5, now()), ('acme', 'two', 'websocket', 'x', '', '10.0.0.1', 2, now()),
		('acme', 'dead', 'http', 'curl', '8.5.0', '127.0.0.1', 100, now() - interval '16 seconds'), ('other', 'two', 'http', 'curl', '8.5.0', '127.0.0.1', 9, now())`)
	b.do(t, "GET", "/acme/x", "User-Agent", "curl/8.5.0")
	s, err := b.StatsFor(ctx, "acme")
	must(t, err)
	if diff := cmp.Diff(map[string]int{"http": 6, "websocket": 2}, s.ByProtocol); diff != "" || s.OpenNow != 8 || len(s.Clients) != 2 {
		t.Errorf("%+v", s)
	}
	// What this server wrote is what another one reads.
	other := New(Config{Pool: b.pool, Server: "three", UsageStats: true, Now: b.clock.now})
	s2, err := other.StatsFor(ctx, "acme")
	must(t, err)
	if diff := cmp.Diff(s.ByProtocol, s2.ByProtocol); diff != "" || s2.LastHour != 1 {
		t.Errorf("%s %+v", diff, s2)
	}
}

func TestStatsSeeWhoBypassesTheGateway(t *testing.T) {
	b := setup(t, nil)
	ctx := t.Context()
	b.database(t, "acme", "")
	dsn := pgcluster.NewDatabase(t, cluster)
	open := func(app string) {
		cfg, err := pgx.ParseConfig(dsn.Reveal())
		must(t, err)
		cfg.RuntimeParams["application_name"] = app
		conn, err := pgx.ConnectConfig(ctx, cfg)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	for _, a := range []string{"billing/1.4", "billing/1.4", "psql", "rehome", "rehome-copy"} {
		open(a)
	}
	s, err := b.StatsFor(ctx, "acme", nil, func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, dsn.Reveal()) })
	must(t, err)
	want := []Connection{
		{Protocol: "postgres", Client: "billing", Version: "1.4", User: "rehome_admin", Address: "127.0.0.1", Via: "direct", Open: 2},
		{Protocol: "postgres", Client: "psql", User: "rehome_admin", Address: "127.0.0.1", Via: "direct", Open: 1},
	}
	if diff := cmp.Diff(want, s.Clients, cmpopts.IgnoreFields(Connection{}, "LastSeen")); diff != "" {
		t.Error(diff)
	}
	if s.OpenNow != 3 || s.ByVia["direct"] != 3 || s.LastMinute != 3 || s.Note != "" || s.LastSeen == nil {
		t.Errorf("%+v", s)
	}
	s, err = b.StatsFor(ctx, "acme", func(context.Context) (*pgx.Conn, error) { return nil, errors.New("secret") })
	must(t, err)
	if s.Note == "" || s.OpenNow != 0 || len(s.Unseen) != 1 {
		t.Errorf("%+v", s)
	}
}

// Without statistics nothing is written and nobody told apart; what is open just now is known all the same.
func TestStatsOff(t *testing.T) {
	b := setup(t, func(c *Config) { c.UsageStats, c.FlushEvery = false, 10*time.Millisecond })
	b.database(t, "acme", app(t, nil).URL)
	b.run(t)
	eventually(t, "this gateway is alive", func() bool {
		var n int
		must(t, b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.gateways`).Scan(&n))
		return n == 1
	})
	b.do(t, "GET", "/acme/x", "User-Agent", "curl/8.5.0")
	must(t, b.Sample(t.Context(), []Sampled{{Name: "acme"}}))
	must(t, b.RollUp(t.Context()))
	s, err := b.StatsFor(t.Context(), "acme")
	must(t, err)
	want := []Connection{{Protocol: "http", Via: "gateway", Open: 1}}
	if diff := cmp.Diff(want, s.Clients, cmpopts.IgnoreFields(Connection{}, "LastSeen")); diff != "" || s.Collecting || s.OpenNow != 1 || s.LastDay != 0 || s.Note == "" || len(s.Unseen) != 0 {
		t.Errorf("%s %+v", diff, s)
	}
	var n int
	must(t, b.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM rehome_control.connection_stats) + (SELECT count(*) FROM rehome_control.connection_gauges) + (SELECT count(*) FROM rehome_control.connection_samples)`).Scan(&n))
	if n != 0 {
		t.Errorf("%d rows collected", n)
	}
	b.exec(t, `INSERT INTO rehome_control.gateways VALUES ('two', now(), now() + interval '1 minute')`)
	if s, err = b.StatsFor(t.Context(), "acme"); err != nil || len(s.Unseen) != 1 {
		t.Errorf("beside another server: %+v %v", s.Unseen, err)
	}
	b.http.CloseIdleConnections()
	eventually(t, "nothing is open", func() bool {
		s, err := b.StatsFor(t.Context(), "acme")
		must(t, err)
		return s.OpenNow == 0
	})
	h, err := b.History(t.Context(), "acme", time.Hour)
	must(t, err)
	if h.Collecting || len(h.Points) != 0 {
		t.Errorf("%+v", h)
	}
}

// Run writes by itself, keeps what could not be written, and takes its gauges back when it stops.
func TestFlush(t *testing.T) {
	b := setup(t, func(c *Config) { c.FlushEvery = 20 * time.Millisecond })
	b.database(t, "acme", app(t, nil).URL)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	count := func(sql string) (n int) {
		must(t, b.pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	b.do(t, "GET", "/acme/x")
	eventually(t, "it is written", func() bool {
		return count(`SELECT COALESCE(sum(opened), 0)::int FROM rehome_control.connection_stats`) == 1 && count(`SELECT COALESCE(sum(open_now), 0)::int FROM rehome_control.connection_gauges`) == 1
	})
	b.exec(t, `ALTER TABLE rehome_control.connection_stats RENAME TO away`)
	b.do(t, "GET", "/acme/x")
	b.do(t, "GET", "/acme/x")
	eventually(t, "a flush failed", func() bool { return metricValue(t, b.metrics.flushErrors) > 0 })
	b.exec(t, `ALTER TABLE rehome_control.away RENAME TO connection_stats`)
	eventually(t, "nothing was lost", func() bool {
		return count(`SELECT sum(opened)::int FROM rehome_control.connection_stats`) == 3
	})
	b.http.CloseIdleConnections()
	eventually(t, "it is closed", func() bool { return len(b.Open("acme")) == 0 })
	stop()
	must(t, <-done)
	if n := count(`SELECT count(*) FROM rehome_control.connection_gauges`); n != 0 {
		t.Errorf("%d gauges left", n)
	}
}

func metricValue(t *testing.T, c prometheus.Collector) (v float64) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	must(t, reg.Register(c))
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			v += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return v
}

func TestCollectors(t *testing.T) {
	b := setup(t, nil)
	b.database(t, "acme", app(t, nil).URL)
	b.do(t, http.MethodGet, "/acme/x")
	reg := prometheus.NewPedanticRegistry()
	for _, c := range b.Collectors() {
		must(t, reg.Register(c))
	}
	families, err := reg.Gather()
	must(t, err)
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, n := range []string{"rehome_gateway_requests_total", "rehome_gateway_held_requests", "rehome_gateway_websockets_open", "rehome_gateway_routes", "rehome_gateway_bytes_total"} {
		if !names[n] {
			t.Errorf("no %s in %v", n, names)
		}
	}
}
