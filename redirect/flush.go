package redirect

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	gaugeStale     = 15 * time.Second // a server that is silent for so long has nothing open
	pruneEvery     = time.Hour
	lastFlushLimit = 3 * time.Second // of a server that stops
)

// flushLoop writes statistics until ctx ends, and once more then.
func (g *Gateway) flushLoop(ctx context.Context) error {
	tick := time.NewTicker(g.cfg.FlushEvery)
	defer tick.Stop()
	var pruned time.Time
	for {
		select {
		case <-ctx.Done():
			lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlushLimit)
			defer cancel()
			if err := g.flush(lctx); err != nil {
				g.cfg.Logger.WarnContext(lctx, "the last statistics are lost", "error", err)
			}
			return nil
		case <-tick.C:
		}
		if err := g.flush(ctx); err != nil && ctx.Err() == nil {
			g.metrics.flushErrors.Inc()
			g.cfg.Logger.WarnContext(ctx, "statistics not written, they are kept", "error", err)
		}
		if time.Since(pruned) > pruneEvery {
			pruned = time.Now()
			if err := g.prune(ctx); err != nil && ctx.Err() == nil {
				g.cfg.Logger.WarnContext(ctx, "old statistics not removed", "error", err)
			}
		}
	}
}

// flush writes what was counted since the last time, and this server's gauges as they are.
func (g *Gateway) flush(ctx context.Context) error {
	g.flushing.Lock()
	defer g.flushing.Unlock()
	deltas := g.counts.take()
	keys, gauges := g.counts.connections("")
	err := pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		if err := g.writeDeltas(ctx, tx, deltas); err != nil {
			return err
		}
		return g.writeGauges(ctx, tx, keys, gauges)
	})
	if err != nil {
		// An unknown outcome of COMMIT counts twice at worst: these are statistics.
		g.counts.giveBack(deltas)
		return fmt.Errorf("write statistics: %w", err)
	}
	return nil
}

func (g *Gateway) writeDeltas(ctx context.Context, tx pgx.Tx, deltas map[deltaKey]delta) error {
	if len(deltas) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(deltas), func(a, b deltaKey) int {
		return cmp.Or(cmp.Compare(a.database, b.database), a.minute.Compare(b.minute), a.compare(b.key), cmp.Compare(a.outcome, b.outcome))
	})
	var (
		database, protocol, client, version, address, outcome []string
		minute, seen                                          []time.Time
		opened, bytes                                         []int64
	)
	for _, k := range keys {
		d := deltas[k]
		database, protocol, client, version, address = append(database, k.database), append(protocol, k.protocol), append(client, k.client), append(version, k.version), append(address, k.address)
		outcome = append(outcome, k.outcome)
		minute, seen, opened, bytes = append(minute, k.minute), append(seen, d.lastSeen), append(opened, d.opened), append(bytes, d.bytes)
	}
	_, err := tx.Exec(ctx, `INSERT INTO rehome_control.connection_stats AS s (database, minute, protocol, client, version, address, outcome, server, opened, bytes, last_seen)
		SELECT d, m, p, c, v, a, o, $11, n, b, l
		FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::timestamptz[]) AS u(d, m, p, c, v, a, o, n, b, l)
		ON CONFLICT (database, step, minute, protocol, client, version, address, outcome, server)
		DO UPDATE SET opened = s.opened + excluded.opened, bytes = s.bytes + excluded.bytes, last_seen = GREATEST(s.last_seen, excluded.last_seen)`,
		database, minute, protocol, client, version, address, outcome, opened, bytes, seen, g.cfg.Server)
	return err
}

// writeGauges replaces this server's rows. updated_at is the database's clock, which all servers share.
func (g *Gateway) writeGauges(ctx context.Context, tx pgx.Tx, keys []key, gauges []Connection) error {
	if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.connection_gauges WHERE server = $1`, g.cfg.Server); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	var database, protocol, client, version, address []string
	var open []int32
	for i, k := range keys {
		database, protocol, client, version, address = append(database, k.database), append(protocol, k.protocol), append(client, k.client), append(version, k.version), append(address, k.address)
		open = append(open, int32(min(gauges[i].Open, 1<<30)))
	}
	_, err := tx.Exec(ctx, `INSERT INTO rehome_control.connection_gauges (database, server, protocol, client, version, address, open_now, updated_at)
		SELECT d, $7, p, c, v, a, n, clock_timestamp() FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[]) AS u(d, p, c, v, a, n)`,
		database, protocol, client, version, address, open, g.cfg.Server)
	return err
}

// prune removes gauges of servers that are gone for good. What was counted is kept and thinned out by RollUp.
func (g *Gateway) prune(ctx context.Context) error {
	if _, err := g.cfg.Pool.Exec(ctx, `DELETE FROM rehome_control.connection_gauges WHERE updated_at < now() - interval '1 day'`); err != nil {
		return fmt.Errorf("prune gauges: %w", err)
	}
	return nil
}
