package redirect

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// minutesUpTo and hoursUpTo are how long a history may be to be told by minutes and by hours: a few hundred points.
	minutesUpTo = 6 * time.Hour
	hoursUpTo   = 21 * 24 * time.Hour
)

// HistoryPoint is a database's use within one step. Means and maxima are of the samples, one a minute.
type HistoryPoint struct {
	At         time.Time `json:"at"`          // begin of the step
	Gateway    *float64  `json:"gateway"`     // open through gateways, mean; none: not sampled
	Direct     *float64  `json:"direct"`      // open past them, mean; none: not sampled
	GatewayMax int64     `json:"gateway_max"` // at most open
	DirectMax  int64     `json:"direct_max"`  // at most open
	Opened     int64     `json:"opened"`      // through gateways
	Redirected int64     `json:"redirected"`  // of those, answered with the new URL or forwarded there
}

// History is how a database's use went.
type History struct {
	Database   string         `json:"database"`
	Since      time.Time      `json:"since"`
	Until      time.Time      `json:"until"`
	Step       string         `json:"step"`       // minute, hour, day
	Collecting bool           `json:"collecting"` // false: nothing new is added
	Points     []HistoryPoint `json:"points"`     // in order; steps without samples are left out
	Clients    []ClientUse    `json:"clients"`    // who came within it, the busiest ones
}

// History reads how a database's use went for a time up to now, by minutes, hours or days as long as that is.
func (g *Gateway) History(ctx context.Context, database string, length time.Duration) (History, error) {
	now := g.cfg.Now().UTC()
	h := History{Database: database, Until: now, Step: "minute", Collecting: g.cfg.UsageStats, Points: []HistoryPoint{}, Clients: []ClientUse{}}
	span := time.Minute
	switch {
	case length > hoursUpTo:
		h.Step, span = "day", 24*time.Hour
	case length > minutesUpTo:
		h.Step, span = "hour", time.Hour
	}
	h.Since = now.Add(-length).Truncate(span)
	// Rows of finer steps are added up; those of coarser ones lie before what is asked for.
	rows, err := g.cfg.Pool.Query(ctx, `
		WITH open AS (
			SELECT date_trunc($3, at, 'UTC') AS at, via, protocol, sum(open_sum)::float8 / sum(samples) AS mean, max(open_max) AS most
			FROM rehome_control.connection_samples WHERE database = $1 AND at >= $2 GROUP BY 1, 2, 3
		), sampled AS (
			SELECT at, sum(mean) FILTER (WHERE via = 'gateway') AS gateway, sum(mean) FILTER (WHERE via = 'direct') AS direct,
				COALESCE(sum(most) FILTER (WHERE via = 'gateway'), 0)::bigint AS gateway_max, COALESCE(sum(most) FILTER (WHERE via = 'direct'), 0)::bigint AS direct_max
			FROM open GROUP BY 1
		), counted AS (
			SELECT date_trunc($3, minute, 'UTC') AS at, sum(opened)::bigint AS opened, COALESCE(sum(opened) FILTER (WHERE outcome IN ('redirected', 'proxied')), 0)::bigint AS redirected
			FROM rehome_control.connection_stats WHERE database = $1 AND minute >= $2 AND outcome NOT IN ('held', 'direct') GROUP BY 1
		)
		SELECT at, gateway, direct, COALESCE(gateway_max, 0), COALESCE(direct_max, 0), COALESCE(opened, 0), COALESCE(redirected, 0)
		FROM sampled FULL JOIN counted USING (at) ORDER BY at`, database, h.Since, h.Step)
	if err != nil {
		return h, fmt.Errorf("read the history: %w", err)
	}
	points, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p HistoryPoint, err error) {
		err = row.Scan(&p.At, &p.Gateway, &p.Direct, &p.GatewayMax, &p.DirectMax, &p.Opened, &p.Redirected)
		p.At = p.At.UTC()
		return p, err
	})
	if err != nil {
		return h, fmt.Errorf("read the history: %w", err)
	}
	h.Points = slices.Concat(h.Points, points)
	clients, err := g.clientsSince(ctx, database, h.Since, now)
	if err != nil {
		return h, err
	}
	h.Clients = slices.Concat(h.Clients, clients)
	return h, nil
}

// clientsSince reads which clients came since a time, in which versions, the busiest ones.
func (g *Gateway) clientsSince(ctx context.Context, database string, since, now time.Time) ([]ClientUse, error) {
	rows, err := g.cfg.Pool.Query(ctx, `SELECT protocol, client, version, CASE outcome WHEN 'direct' THEN 'direct' ELSE 'gateway' END,
			COALESCE(sum(opened) FILTER (WHERE last_seen > $3::timestamptz - interval '1 hour'), 0)::bigint, sum(opened)::bigint,
			COALESCE(sum(opened) FILTER (WHERE outcome IN ('redirected', 'proxied')), 0)::bigint, max(last_seen)
		FROM rehome_control.connection_stats WHERE database = $1 AND minute >= $2 AND outcome <> 'held'
		GROUP BY 1, 2, 3, 4 ORDER BY 6 DESC, 1, 2, 3 LIMIT $4`, database, since, now, maxClientUses)
	if err != nil {
		return nil, fmt.Errorf("read who came: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c ClientUse, err error) {
		err = row.Scan(&c.Protocol, &c.Client, &c.Version, &c.Via, &c.LastHour, &c.Opened, &c.Redirected, &c.LastSeen)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read who came: %w", err)
	}
	return list, nil
}
