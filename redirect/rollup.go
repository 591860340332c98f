package redirect

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// How long rows are kept at which step. Addresses and servers are in minutes' rows only.
const (
	keepMinutes = 48 * time.Hour           // the longest window that stats shows is a day
	keepHours   = 35 * 24 * time.Hour      // a month, and the days until somebody looks
	keepDays    = 2 * 365 * 24 * time.Hour // a move and its tombstone lie within
	// rolledClients is how many clients of a database an hour or a day tells apart, the busiest ones; the rest is "other".
	rolledClients = 50
)

// rollUp is one step's way into the next.
type rollUp struct {
	from, to string
	keep     time.Duration
	span     time.Duration // of to
}

func rollUps() []rollUp {
	return []rollUp{{"minute", "hour", keepMinutes, time.Hour}, {"hour", "day", keepHours, 24 * time.Hour}}
}

// RollUp makes hours of old minutes and days of old hours, and removes what is older than is kept. Each hour (day) is moved
// by one statement, which deletes rows and adds them up elsewhere: however many servers do it, and wherever one is killed,
// a row is counted once. A row that comes later than its hour was rolled up is added to it by the next run.
func (g *Gateway) RollUp(ctx context.Context) error {
	now := g.cfg.Now().UTC()
	for _, r := range rollUps() {
		before := now.Add(-r.keep).Truncate(r.span) // spans are whole in UTC
		for _, t := range []struct{ table, column, sql string }{
			{"connection_stats", "minute", rollStats}, {"connection_samples", "at", rollSamples},
		} {
			for {
				var oldest *time.Time
				if err := g.cfg.Pool.QueryRow(ctx, `SELECT min(`+t.column+`) FROM rehome_control.`+t.table+` WHERE step = $1 AND `+t.column+` < $2`, r.from, before).Scan(&oldest); err != nil {
					return fmt.Errorf("look for old statistics: %w", err)
				}
				if oldest == nil {
					break
				}
				at := oldest.UTC().Truncate(r.span)
				args := pgx.NamedArgs{"from": r.from, "to": r.to, "at": at, "end": at.Add(r.span), "most": rolledClients}
				if _, err := g.cfg.Pool.Exec(ctx, t.sql, args); err != nil {
					return fmt.Errorf("roll the statistics of %s up: %w", at.Format(time.RFC3339), err)
				}
			}
		}
	}
	for _, sql := range []string{
		`DELETE FROM rehome_control.connection_stats WHERE step = 'day' AND minute < $1`, `DELETE FROM rehome_control.connection_samples WHERE step = 'day' AND at < $1`,
	} {
		if _, err := g.cfg.Pool.Exec(ctx, sql, now.Add(-keepDays)); err != nil {
			return fmt.Errorf("remove the oldest statistics: %w", err)
		}
	}
	return nil
}

const rollStats = `
WITH gone AS (
    DELETE FROM rehome_control.connection_stats WHERE step = @from AND minute >= @at AND minute < @end RETURNING *
), ranked AS (
    SELECT database, protocol, client, version, row_number() OVER (PARTITION BY database ORDER BY sum(opened) DESC, protocol, client, version) <= @most AS told
    FROM gone GROUP BY 1, 2, 3, 4
)
INSERT INTO rehome_control.connection_stats AS s (database, step, minute, protocol, client, version, address, outcome, server, opened, bytes, last_seen)
SELECT g.database, @to, @at, g.protocol, CASE WHEN r.told THEN g.client ELSE 'other' END, CASE WHEN r.told THEN g.version ELSE '' END, '', g.outcome, '',
    sum(g.opened), sum(g.bytes), max(g.last_seen)
FROM gone g JOIN ranked r USING (database, protocol, client, version)
GROUP BY 1, 4, 5, 6, 8
ON CONFLICT (database, step, minute, protocol, client, version, address, outcome, server)
DO UPDATE SET opened = s.opened + excluded.opened, bytes = s.bytes + excluded.bytes, last_seen = GREATEST(s.last_seen, excluded.last_seen)`

const rollSamples = `
WITH gone AS (
    DELETE FROM rehome_control.connection_samples WHERE step = @from AND at >= @at AND at < @end AND @most > 0 RETURNING *
)
INSERT INTO rehome_control.connection_samples AS s (database, step, at, via, protocol, samples, open_sum, open_max)
SELECT database, @to, @at, via, protocol, sum(samples), sum(open_sum), max(open_max) FROM gone GROUP BY database, via, protocol
ON CONFLICT (database, step, at, via, protocol)
DO UPDATE SET samples = s.samples + excluded.samples, open_sum = s.open_sum + excluded.open_sum, open_max = GREATEST(s.open_max, excluded.open_max)`
