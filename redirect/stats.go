package redirect

import (
	"cmp"
	"context"
	"errors"
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
	// maxClientUses is how many clients an answer tells apart; the busiest come first.
	maxClientUses = 100
)

// StatsFor counts a database's connections: what the gateways of all servers have open and have counted, and, for each
// bypass (a session to the database itself, which StatsFor closes), who is connected there without a gateway. Rehome's
// own sessions (application_name "rehome…") are left out. What cannot be asked is said in Note.
func (g *Gateway) StatsFor(ctx context.Context, database string, bypass ...func(ctx context.Context) (*pgx.Conn, error)) (Stats, error) {
	now := g.cfg.Now()
	s := Stats{Database: database, At: now, ByProtocol: map[string]int{}, ByVia: map[string]int{}, Clients: []Connection{}, ByClient: []ClientUse{}, Collecting: g.cfg.UsageStats}
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
		notes = append(notes, "usage statistics are disabled: what is open through this server is counted, but nobody is told apart and nothing is kept")
		_, s.Clients = g.counts.connections(database)
		others, err := g.otherServers(ctx)
		if err != nil {
			return Stats{}, err
		}
		if others > 0 {
			s.Unseen = append(s.Unseen, fmt.Sprintf("connections through %d other servers of the installation", others))
		}
	}
	for _, open := range bypass {
		if open == nil {
			continue
		}
		unseen, note := directStats(ctx, &s, open)
		if note != "" && !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
		if unseen && !slices.Contains(s.Unseen, note) {
			s.Unseen = append(s.Unseen, note)
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
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Version, b.Version), cmp.Compare(a.User, b.User), cmp.Compare(a.Address, b.Address))
	})
	s.joinClients()
	s.Note = strings.Join(notes, "; ")
	return s, nil
}

func (g *Gateway) gatewayStats(ctx context.Context, s *Stats, now time.Time) error {
	_, s.Clients = g.counts.connections(s.Database)
	rows, err := g.cfg.Pool.Query(ctx, `SELECT protocol, client, version, address, sum(open_now)::int, max(updated_at) FROM rehome_control.connection_gauges
		WHERE database = $1 AND server <> $2 AND updated_at > now() - $3::interval GROUP BY 1, 2, 3, 4`, s.Database, g.cfg.Server, gaugeStale)
	if err != nil {
		return fmt.Errorf("read gauges: %w", err)
	}
	others, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Connection, error) {
		c := Connection{Via: viaGateway}
		err := row.Scan(&c.Protocol, &c.Client, &c.Version, &c.Address, &c.Open, &c.LastSeen)
		return c, err
	})
	if err != nil {
		return fmt.Errorf("read gauges: %w", err)
	}
	for _, o := range others {
		i := slices.IndexFunc(s.Clients, func(c Connection) bool {
			return c.Protocol == o.Protocol && c.Client == o.Client && c.Version == o.Version && c.Address == o.Address
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
		FROM rehome_control.connection_stats WHERE database = $1 AND step = 'minute' AND outcome NOT IN ('held', 'direct') AND minute > $2::timestamptz - interval '1 day'`, s.Database, now).
		Scan(&s.LastMinute, &hour, &s.LastDay, &redirected, &s.LastSeen)
	if err != nil {
		return fmt.Errorf("read statistics: %w", err)
	}
	s.LastHour = hour
	if hour > 0 {
		s.Redirected = float64(redirected) / float64(hour)
	}
	s.ByClient, err = g.clientsSince(ctx, s.Database, now.Add(-24*time.Hour), now)
	return err
}

// joinClients adds what is open now to who came, whatever the addresses.
func (s *Stats) joinClients() {
	for _, c := range s.Clients {
		i := slices.IndexFunc(s.ByClient, func(u ClientUse) bool {
			return u.Protocol == c.Protocol && u.Client == c.Client && u.Version == c.Version && u.Via == c.Via
		})
		if i < 0 {
			i = len(s.ByClient)
			s.ByClient = append(s.ByClient, ClientUse{Protocol: c.Protocol, Client: c.Client, Version: c.Version, Via: c.Via})
		}
		u := &s.ByClient[i]
		u.Open += c.Open
		if c.LastSeen.After(u.LastSeen) {
			u.LastSeen = c.LastSeen
		}
	}
	slices.SortStableFunc(s.ByClient, func(a, b ClientUse) int {
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(b.Opened, a.Opened), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Version, b.Version))
	})
	s.ByClient = append([]ClientUse{}, s.ByClient[:min(len(s.ByClient), maxClientUses)]...)
}

// otherServers counts the servers whose gateways are alive beside this one.
func (g *Gateway) otherServers(ctx context.Context) (n int, err error) {
	if err = g.cfg.Pool.QueryRow(ctx, `SELECT count(*) FROM rehome_control.gateways WHERE server <> $1 AND lease_expires_at > now()`, g.cfg.Server).Scan(&n); err != nil {
		return 0, fmt.Errorf("look for other servers: %w", err)
	}
	return n, nil
}

// directStats adds who is connected to the database itself. It returns what is missing of it, if anything, and whether
// that is all of it.
func directStats(ctx context.Context, s *Stats, open func(ctx context.Context) (*pgx.Conn, error)) (unseen bool, note string) {
	direct, hidden, err := readDirect(ctx, open)
	if errors.Is(err, errNotReached) {
		return true, "the database itself cannot be asked who is connected"
	}
	if err != nil {
		return true, "the database itself does not tell who is connected"
	}
	for _, d := range direct {
		s.Clients = append(s.Clients, d.Connection)
		s.LastMinute, s.LastHour, s.LastDay = s.LastMinute+d.minute, s.LastHour+d.hour, s.LastDay+d.day
	}
	if hidden {
		return false, "addresses of some sessions are hidden from this role: GRANT pg_read_all_stats shows them"
	}
	return false, ""
}

// direct is who is connected past the gateway, and how many of those sessions began within the last minute, hour and day.
type direct struct {
	Connection
	minute, hour, day int64
}

var errNotReached = errors.New("the database cannot be reached")

// readDirect asks a database who is connected; nil sessions mean that there is none to ask. Rehome's own sessions are left
// out. Hidden says that some rows do not show where they come from.
func readDirect(ctx context.Context, open func(ctx context.Context) (*pgx.Conn, error)) (list []direct, hidden bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, bypassLimit)
	defer cancel()
	conn, err := open(ctx)
	if err != nil {
		return nil, false, errNotReached // what it says may name the database's address
	}
	if conn == nil {
		return nil, false, nil
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	// backend_type and client_addr are NULL for roles that may not see other roles' sessions.
	rows, err := conn.Query(ctx, `SELECT application_name, COALESCE(usename, ''), COALESCE(host(client_addr), CASE WHEN backend_type IS NULL THEN '' ELSE 'local' END), count(*)::int,
			COALESCE(max(COALESCE(state_change, backend_start)), now()), bool_or(backend_type IS NULL),
			count(*) FILTER (WHERE backend_start > now() - interval '1 minute'), count(*) FILTER (WHERE backend_start > now() - interval '1 hour'),
			count(*) FILTER (WHERE backend_start > now() - interval '1 day')
		FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND COALESCE(backend_type, 'client backend') = 'client backend' AND application_name NOT LIKE 'rehome%'
		GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`)
	if err != nil {
		return nil, false, fmt.Errorf("read who is connected: %w", err)
	}
	var d direct
	var name string
	var h bool
	_, err = pgx.ForEachRow(rows, []any{&name, &d.User, &d.Address, &d.Open, &d.LastSeen, &h, &d.minute, &d.hour, &d.day}, func() error {
		d.Protocol, d.Via = protoPostgres, viaDirect
		d.Client, d.Version = application(name)
		list = append(list, d)
		hidden = hidden || h
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read who is connected: %w", err)
	}
	return list, hidden, nil
}
