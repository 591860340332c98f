package progress

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// AfterID returns the events of all streams with an id greater than id, in the order of their ids, and only such that
// no event with a smaller id can appear later: the last id is a safe place to go on from. A limit of 0 means MaxLimit.
func (l *Log) AfterID(ctx context.Context, id int64, limit int) ([]Stored, error) {
	horizon, err := l.horizon(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := l.pool.Query(ctx, `SELECT id, event FROM rehome_control.events WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3`,
		id, horizon, limited(limit))
	return collect(rows, err)
}

// LastID returns the id after which a reader finds only what is new from now on.
func (l *Log) LastID(ctx context.Context) (int64, error) { return l.horizon(ctx) }

// horizon is the greatest id up to which nothing can appear any more (see doc.go). The two look-ups must run in this
// order, and before the events are read.
func (l *Log) horizon(ctx context.Context) (int64, error) {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT last_value - (NOT is_called)::int FROM rehome_control.events_id_seq`)
	batch.Queue(`
		SELECT min(key & $2::bigint) FROM (
		    SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
		     WHERE locktype = 'advisory' AND objsubid = 1 AND granted
		       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks
		 WHERE key & ~$2::bigint = $1::bigint`, appendLock, idMask)
	results := l.pool.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }()
	var drawn int64
	var open *int64
	if err := results.QueryRow().Scan(&drawn); err != nil {
		return 0, fmt.Errorf("read the horizon of events: %w", err)
	}
	if err := results.QueryRow().Scan(&open); err != nil {
		return 0, fmt.Errorf("read the horizon of events: %w", err)
	}
	if open != nil {
		drawn = min(drawn, *open)
	}
	return drawn, nil
}

// Unpublished returns events that are visible and not yet published, by id; within a stream that is the stream's order.
// For the publisher.
func (l *Log) Unpublished(ctx context.Context, db DB, limit int) ([]Stored, error) {
	rows, err := db.Query(ctx, `SELECT id, event FROM rehome_control.events WHERE published_at IS NULL ORDER BY id LIMIT $1`, limited(limit))
	return collect(rows, err)
}

// MarkPublished records that events are kept by the message server.
func (l *Log) MarkPublished(ctx context.Context, db DB, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := db.Exec(ctx, `UPDATE rehome_control.events SET published_at = now() WHERE id = ANY($1) AND published_at IS NULL`, ids)
	if err != nil {
		return fmt.Errorf("mark events as published: %w", err)
	}
	return nil
}

// Published returns events that were published within the last duration, with an id greater than id, by id. For the
// publisher, to refill a message server that lost its memory.
func (l *Log) Published(ctx context.Context, db DB, within time.Duration, id int64, limit int) ([]Stored, error) {
	rows, err := db.Query(ctx, `
		SELECT id, event FROM rehome_control.events
		 WHERE id > $1 AND published_at > now() - make_interval(secs => $2) ORDER BY id LIMIT $3`, id, within.Seconds(), limited(limit))
	return collect(rows, err)
}

func collect(rows pgx.Rows, err error) ([]Stored, error) {
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Stored, error) {
		var s Stored
		err := row.Scan(&s.ID, &s.Event)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return out, nil
}
