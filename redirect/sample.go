package redirect

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// outcomeDirect marks rows of sessions that came past the gateway, as sampled.
const outcomeDirect = "direct"

// sampleAtOnce is how many databases are asked side by side: each costs a session there.
const sampleAtOnce = 8

// Sampled is a database whose open connections are sampled.
type Sampled struct {
	Name   string
	Bypass []func(ctx context.Context) (*pgx.Conn, error) // as for StatsFor
}

// Sample writes down how many connections the databases have open at this minute, through the gateways of all servers and
// past them, and who came past them. Once a minute is meant, by one server; more often only makes the means better. A
// database that cannot be asked has no sample of its direct connections. With UsageStats off nothing is done.
func (g *Gateway) Sample(ctx context.Context, databases []Sampled) error {
	if !g.cfg.UsageStats || len(databases) == 0 {
		return nil
	}
	names := make([]string, len(databases))
	for i, d := range databases {
		names[i] = d.Name
	}
	at := g.cfg.Now().UTC().Truncate(time.Minute)
	// A database without a gauge has nothing open, which the curve is to show.
	_, err := g.cfg.Pool.Exec(ctx, insertSample+`SELECT d, 'minute', $2, '`+viaGateway+`', COALESCE(c.protocol, '`+protoHTTP+`'), 1, COALESCE(sum(c.open_now), 0), COALESCE(sum(c.open_now), 0)
		FROM unnest($1::text[]) AS d LEFT JOIN rehome_control.connection_gauges c ON c.database = d AND c.updated_at > now() - $3::interval
		GROUP BY d, c.protocol`+addSample, names, at, gaugeStale)
	if err != nil {
		return fmt.Errorf("sample the gateways: %w", err)
	}
	grp, gctx := errgroup.WithContext(ctx)
	grp.SetLimit(sampleAtOnce)
	for _, d := range databases {
		if len(d.Bypass) > 0 {
			grp.Go(func() error { return g.sampleDirect(gctx, d, at) })
		}
	}
	return grp.Wait()
}

const (
	insertSample = `INSERT INTO rehome_control.connection_samples AS s (database, step, at, via, protocol, samples, open_sum, open_max) `
	addSample    = ` ON CONFLICT (database, step, at, via, protocol)
		DO UPDATE SET samples = s.samples + excluded.samples, open_sum = s.open_sum + excluded.open_sum, open_max = GREATEST(s.open_max, excluded.open_max)`
)

func (g *Gateway) sampleDirect(ctx context.Context, d Sampled, at time.Time) error {
	deltas := map[deltaKey]delta{}
	open := 0
	for _, bypass := range d.Bypass {
		list, _, err := readDirect(ctx, bypass)
		if err != nil {
			return nil //nolint:nilerr // a database that is away has no sample, and keeps no other from having one
		}
		for _, c := range list {
			open += c.Open
			k := g.counts.members.fold(key{database: d.Name, protocol: protoPostgres, client: c.Client, version: c.Version, address: c.Address})
			dk := deltaKey{key: k, outcome: outcomeDirect, minute: at}
			cur := deltas[dk]
			deltas[dk] = delta{opened: cur.opened + c.minute, lastSeen: g.cfg.Now()}
		}
	}
	err := pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertSample+`VALUES ($1, 'minute', $2, '`+viaDirect+`', '`+protoPostgres+`', 1, $3, $3)`+addSample, d.Name, at, open); err != nil {
			return err
		}
		return g.writeDeltas(ctx, tx, deltas)
	})
	if err != nil {
		return fmt.Errorf("sample %s: %w", d.Name, err)
	}
	return nil
}
