package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout is well below the 10 s that Prometheus waits by default.
const scrapeTimeout = 3 * time.Second

// replicationMetrics reads the figures of running replications from the control database at every scrape, so that any
// server tells of all of them, whoever does their work.
type replicationMetrics struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	lagBytes, lagSeconds, slotBytes, copied, throttled, slotLost, walRate *prometheus.Desc
}

func newReplicationMetrics(pool *pgxpool.Pool, log *slog.Logger) *replicationMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("rehome_replication_"+name, help, []string{"replication", "database", "phase"}, nil)
	}
	return &replicationMetrics{
		pool: pool, log: log,
		lagBytes:   desc("lag_bytes", "Source write position less the slowest shard's position."),
		lagSeconds: desc("lag_seconds", "Age of the oldest transaction that is not applied everywhere."),
		slotBytes:  desc("slot_wal_bytes", "WAL that the slot holds back at the source."),
		copied:     desc("copied_bytes", "Bytes copied so far."),
		throttled:  desc("throttled", "1 while reading from the source waits."),
		slotLost:   desc("slot_lost_seconds", "Forecast: when the slot loses its WAL; no sample where none is in sight."),
		walRate:    desc("source_wal_bytes_per_second", "WAL that the source writes."),
	}
}

// Describe implements prometheus.Collector.
func (m *replicationMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lagBytes, m.lagSeconds, m.slotBytes, m.copied, m.throttled, m.slotLost, m.walRate} {
		ch <- d
	}
}

type replicationFigures struct {
	ID, Database, Phase                    string
	LagBytes, LagMillis, SlotBytes, Copied float64
	Throttled, WALRate                     float64
	SlotLost                               *float64
}

// Collect implements prometheus.Collector. Without the control database there are no figures, and the scrape goes on.
func (m *replicationMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	rows, err := m.pool.Query(ctx, `SELECT id, database, phase, coalesce((progress->>'lag_bytes')::float8, 0), coalesce((progress->>'lag_ms')::float8, 0),
			coalesce((progress->>'slot_wal_bytes')::float8, 0), coalesce((progress->>'bytes_done')::float8, 0),
			(coalesce(progress->>'throttled', '') <> '')::int::float8, coalesce((progress->'care'->>'wal_bytes_per_second')::float8, 0),
			nullif((progress->'care'->>'slot_lost_seconds')::float8, -1)
		FROM rehome_control.replications WHERE phase NOT IN ('completed','cancelled')`)
	if err != nil {
		m.log.WarnContext(ctx, "read replications for the metrics", "error", err)
		return
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[replicationFigures])
	if err != nil {
		m.log.WarnContext(ctx, "read replications for the metrics", "error", err)
		return
	}
	for _, r := range list {
		for d, v := range map[*prometheus.Desc]float64{m.lagBytes: r.LagBytes, m.lagSeconds: r.LagMillis / 1000, m.slotBytes: r.SlotBytes, m.copied: r.Copied, m.throttled: r.Throttled, m.walRate: r.WALRate} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, r.ID, r.Database, r.Phase)
		}
		if r.SlotLost != nil {
			ch <- prometheus.MustNewConstMetric(m.slotLost, prometheus.GaugeValue, *r.SlotLost, r.ID, r.Database, r.Phase)
		}
	}
}
