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

	lagBytes, lagSeconds, slotBytes, copied *prometheus.Desc
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
	}
}

// Describe implements prometheus.Collector.
func (m *replicationMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lagBytes, m.lagSeconds, m.slotBytes, m.copied} {
		ch <- d
	}
}

type replicationFigures struct {
	ID, Database, Phase                    string
	LagBytes, LagMillis, SlotBytes, Copied float64
}

// Collect implements prometheus.Collector. Without the control database there are no figures, and the scrape goes on.
func (m *replicationMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	rows, err := m.pool.Query(ctx, `SELECT id, database, phase, coalesce((progress->>'lag_bytes')::float8, 0), coalesce((progress->>'lag_ms')::float8, 0),
			coalesce((progress->>'slot_wal_bytes')::float8, 0), coalesce((progress->>'bytes_done')::float8, 0)
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
		for d, v := range map[*prometheus.Desc]float64{m.lagBytes: r.LagBytes, m.lagSeconds: r.LagMillis / 1000, m.slotBytes: r.SlotBytes, m.copied: r.Copied} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, r.ID, r.Database, r.Phase)
		}
	}
}
