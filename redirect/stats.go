package redirect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	viaGateway = "gateway"
	viaDirect  = "direct"
	// bypassLimit keeps an unreachable database from holding up the rest of the figures.
	bypassLimit = 5 * time.Second
)

// StatsFor counts a database's connections: what the gateways of all servers have open and have counted, and, for each
// bypass (a session to the database itself, which StatsFor closes), who is connected there without a gateway. Rehome's
// own sessions (application_name "rehome…") are left out. What cannot be asked is said in Note.
func (g *Gateway) StatsFor(ctx context.Context, database string, bypass ...func(ctx context.Context) (*pgx.Conn, error)) (Stats, error) {
	now := g.cfg.Now()
	s := Stats{Database: database, At: now, ByProtocol: map[string]int{}, ByVia: map[string]int{}, Clients: []Connection{}, Collecting: g.cfg.UsageStats}
	var notes []string
	if g.cfg.UsageStats {
		if err := g.flush(ctx); err != nil {
			notes = append(notes, "the last seconds of this server are missing")
			g.cfg.Logger.WarnContext(ctx, "statistics not written, they are kept", "error", err)
		}
		if err := g.gatewayStats(ctx, &s, now); err != nil {
			return Stats{}, err
		}
	} else {
		notes = append(notes, "usage statistics are disabled: connections through the gateway are not counted")
	}
	for _, open := range bypass {
		if open == nil {
			continue
		}
		if note := directStats(ctx, &s, open); note != "" && !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	for _, c := range s.Clients {
		s.OpenNow += c.Open
		s.ByProtocol[c.Protocol] += c.Open
		s.ByVia[c.Via] += c.Open
		if s.LastSeen == nil || c.LastSeen.After(*s.LastSeen) {
			s.LastSeen = &c.LastSeen
		}
	}
	slices.SortStableFunc(s.Clients, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Address, b.Address))
	})
	s.Note = strings.Join(notes, "; ")
	return s, nil
}

func (g *Gateway) gatewayStats(ctx context.Context, s *Stats, now time.Time) error {
	_, s.Clients = g.counts.connections(s.Database)
	rows, err := g.cfg.Pool.Query(ctx, `SELECT protocol, client, address, sum(open_now)::int, max(updated_at) FROM rehome_control.connection_gauges
		WHERE database = $1 AND server <> $2 AND updated_at > now() - $3::interval GROUP BY 1, 2, 3`, s.Database, g.cfg.Server, gaugeStale)
	if err != nil {
		return fmt.Errorf("read gauges: %w", err)
	}
	others, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Connection, error) {
		c := Connection{Via: viaGateway}
		err := row.Scan(&c.Protocol, &c.Client, &c.Address, &c.Open, &c.LastSeen)
		return c, err
	})
	if err != nil {
		return fmt.Errorf("read gauges: %w", err)
	}
	for _, o := range others {
		i := slices.IndexFunc(s.Clients, func(c Connection) bool {
			return c.Protocol == o.Protocol && c.Client == o.Client && c.Address == o.Address
		})
		if i < 0 {
			s.Clients = append(s.Clients, o)
			continue
		}
		s.Clients[i].Open += o.Open
		if o.LastSeen.After(s.Clients[i].LastSeen) {
			s.Clients[i].LastSeen = o.LastSeen
		}
	}
	if s.Clients == nil {
		s.Clients = []Connection{}
	}
	// "held" is counted beside what the request got in the end. Rows are by minute, so a window's first minute is counted
	// where its requests were last seen inside it.
	var redirected, hour int64
	err = g.cfg.Pool.QueryRow(ctx, `SELECT COALESCE(sum(opened) FILTER (WHERE last_seen > $2::timestamptz - interval '1 minute'), 0)::bigint,
			COALESCE(sum(opened) FILTER (WHERE last_seen > $2::timestamptz - interval '1 hour'), 0)::bigint, COALESCE(sum(opened), 0)::bigint,
			COALESCE(sum(opened) FILTER (WHERE outcome IN ('redirected', 'proxied') AND last_seen > $2::timestamptz - interval '1 hour'), 0)::bigint, max(last_seen)
		FROM rehome_control.connection_stats WHERE database = $1 AND outcome <> 'held' AND minute > $2::timestamptz - interval '1 day'`, s.Database, now).
		Scan(&s.LastMinute, &hour, &s.LastDay, &redirected, &s.LastSeen)
	if err != nil {
		return fmt.Errorf("read statistics: %w", err)
	}
	s.LastHour = hour
	if hour > 0 {
		s.Redirected = float64(redirected) / float64(hour)
	}
	return nil
}

// directStats adds who is connected to the database itself. It returns why it could not.
func directStats(ctx context.Context, s *Stats, open func(ctx context.Context) (*pgx.Conn, error)) (note string) {
	ctx, cancel := context.WithTimeout(ctx, bypassLimit)
	defer cancel()
	conn, err := open(ctx)
	if err != nil {
		return "the database itself cannot be asked who is connected"
	}
	if conn == nil {
		return ""
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	// backend_type and client_addr are NULL for roles that may not see other roles' sessions.
	rows, err := conn.Query(ctx, `SELECT application_name, COALESCE(host(client_addr), CASE WHEN backend_type IS NULL THEN '' ELSE 'local' END), count(*)::int,
			COALESCE(max(COALESCE(state_change, backend_start)), now()), bool_or(backend_type IS NULL),
			count(*) FILTER (WHERE backend_start > now() - interval '1 minute'), count(*) FILTER (WHERE backend_start > now() - interval '1 hour'),
			count(*) FILTER (WHERE backend_start > now() - interval '1 day')
		FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND COALESCE(backend_type, 'client backend') = 'client backend' AND application_name NOT LIKE 'rehome%'
		GROUP BY 1, 2 ORDER BY 1, 2`)
	if err != nil {
		return "the database itself does not tell who is connected"
	}
	hidden := false
	var c Connection
	var h bool
	var minute, hour, day int64
	_, err = pgx.ForEachRow(rows, []any{&c.Client, &c.Address, &c.Open, &c.LastSeen, &h, &minute, &hour, &day}, func() error {
		c.Protocol, c.Via = "postgres", viaDirect
		s.Clients = append(s.Clients, c)
		s.LastMinute, s.LastHour, s.LastDay = s.LastMinute+minute, s.LastHour+hour, s.LastDay+day
		hidden = hidden || h
		return nil
	})
	if err != nil {
		return "the database itself does not tell who is connected"
	}
	if hidden {
		return "addresses of some sessions are hidden from this role: GRANT pg_read_all_stats shows them"
	}
	return ""
}
