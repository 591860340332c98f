package gate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// standbyPoll is how often standbys are looked at: they confirm within a few milliseconds.
const standbyPoll = 10 * time.Millisecond

// WaitStandbys waits, up to a bound, until every visible physical standby has flushed what is committed at the source now,
// and returns how many have not. A role without pg_read_all_stats sees no standbys: then there is nothing to wait for, and
// a failover to one of them is a residual risk.
func WaitStandbys(ctx context.Context, conn *pgx.Conn, bound time.Duration) (behind int, err error) {
	var lsn string
	limit := time.Now().Add(bound)
	for {
		err := conn.QueryRow(ctx, standbysSQL(`coalesce(nullif($1, '')::pg_lsn, pg_current_wal_insert_lsn())`), lsn).Scan(&lsn, &behind)
		if err != nil {
			return 0, fmt.Errorf("look at the standbys: %w", err)
		}
		if behind == 0 || time.Now().After(limit) {
			return behind, nil
		}
		if err := sleep(ctx, standbyPoll); err != nil {
			return behind, err
		}
	}
}

// standbysSQL gives a position, and how many visible standbys have not flushed it.
func standbysSQL(position string) string {
	return `SELECT l::text, (SELECT count(*) FROM pg_catalog.pg_stat_replication r
		WHERE r.state = 'streaming' AND r.flush_lsn < l
		  AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))
		FROM ` + position + ` l`
}

// SourceSession opens a session to a source for looking around; it is no part of an attempt.
func SourceSession(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	return connect(ctx, dsn, "look")
}
