package progress

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DB is what statements run on: a *pgxpool.Pool, a pgx.Tx or a *pgx.Conn.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Log appends and reads the events of an installation. It is safe for concurrent use.
type Log struct {
	pool         *pgxpool.Pool
	installation string
	source       string
	logger       *slog.Logger
	now          func() time.Time

	mu        sync.Mutex
	watchers  map[*watcher]struct{}
	listening bool
}

// Option changes a Log.
type Option func(*Log)

// WithLogger gives the logger for troubles of the listening connection; default: none.
func WithLogger(l *slog.Logger) Option { return func(log *Log) { log.logger = l } }

// WithClock gives the clock of the events' time; default: time.Now.
func WithClock(now func() time.Time) Option { return func(log *Log) { log.now = now } }

// NewLog makes the log of an installation. Source is the installation's base URL, the CloudEvents source.
func NewLog(pool *pgxpool.Pool, installation, source string, opts ...Option) *Log {
	l := &Log{
		pool: pool, installation: installation, source: source,
		logger: slog.New(slog.DiscardHandler), now: time.Now, watchers: map[*watcher]struct{}{},
	}
	for _, o := range opts {
		o(l)
	}
	return l
}

// idBound is the part of an advisory lock's key that holds an id; the rest (appendLock) tells these locks from others.
const (
	idBits     = 40 // 10^12 events
	appendLock = int64(0x5248) << idBits
	idMask     = int64(1)<<idBits - 1
)

// One statement, so that it is atomic on a pool too. Each part waits for the one before: the lock with its bound, then
// the stream's number (and its row lock), then the id. See doc.go for why in this order.
const appendSQL = `
WITH bound AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared($6::bigint + last_value - (NOT is_called)::int)::text AS locked
      FROM rehome_control.events_id_seq
), numbered AS (
    INSERT INTO rehome_control.event_sequences AS s (stream, last)
    SELECT $1::text, 1 FROM bound WHERE locked IS NOT NULL
    ON CONFLICT (stream) DO UPDATE SET last = s.last + 1
    RETURNING last
), appended AS (
    INSERT INTO rehome_control.events (stream, seq, subject, event)
    SELECT $1::text, last, $2::text, $3::jsonb || jsonb_build_object('sequence', last)
           || CASE WHEN $4::jsonb IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('data', $4::jsonb) END
      FROM numbered
    RETURNING event
)
SELECT event, pg_notify($5::text, $1::text)::text FROM appended`

// Append records an event through db. In a transaction the event becomes true with its commit; then append last, since
// the stream stays locked until the transaction ends. The returned event is what readers will get.
func (l *Log) Append(ctx context.Context, db DB, e Entry) (Event, error) {
	data, err := marshalData(e.Data)
	if err != nil {
		return Event{}, err
	}
	stream := e.stream()
	subject := Subject(l.installation, e.Database, e.Kind, e.ID, e.Event)
	head, err := json.Marshal(Event{
		SpecVersion: SpecVersion, ID: rand.Text(), Source: l.source, Type: typePrefix + e.Kind + "." + e.Event,
		Subject: subject, Time: l.now().UTC(), DataContentType: "application/json", Stream: stream,
	})
	if err != nil {
		return Event{}, fmt.Errorf("marshal the event: %w", err)
	}
	var body *string // a nil text is NULL; a nil json.RawMessage would be the JSON null
	if data != nil {
		s := string(data)
		body = &s
	}
	var event Event
	var ignored *string
	if err := db.QueryRow(ctx, appendSQL, stream, subject, string(head), body, Channel, appendLock).Scan(&event, &ignored); err != nil {
		return Event{}, fmt.Errorf("append event %s of stream %s: %w", e.Event, stream, err)
	}
	return event, nil
}

// MaxLimit bounds how many events one call returns, so that a reader that comes late stays small.
const MaxLimit = 1000

func limited(limit int) int {
	if limit <= 0 {
		return MaxLimit
	}
	return min(limit, MaxLimit)
}

// After returns a stream's events with a sequence greater than seq, in order. A limit of 0 means MaxLimit.
func (l *Log) After(ctx context.Context, stream string, seq int64, limit int) ([]Event, error) {
	rows, err := l.pool.Query(ctx, `SELECT event FROM rehome_control.events WHERE stream = $1 AND seq > $2 ORDER BY seq LIMIT $3`,
		stream, seq, limited(limit))
	if err != nil {
		return nil, fmt.Errorf("read events of stream %s: %w", stream, err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowTo[Event])
	if err != nil {
		return nil, fmt.Errorf("read events of stream %s: %w", stream, err)
	}
	return events, nil
}

// Last returns the sequence of a stream's last committed event; 0 if there is none.
func (l *Log) Last(ctx context.Context, stream string) (int64, error) {
	var last int64
	err := l.pool.QueryRow(ctx, `SELECT coalesce(max(last), 0) FROM rehome_control.event_sequences WHERE stream = $1`, stream).Scan(&last)
	if err != nil {
		return 0, fmt.Errorf("read the last event of stream %s: %w", stream, err)
	}
	return last, nil
}

// Prune deletes published events older than a duration, but never the last one of a stream. It returns how many.
func (l *Log) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	tag, err := l.pool.Exec(ctx, `
		DELETE FROM rehome_control.events e USING rehome_control.event_sequences s
		 WHERE e.published_at IS NOT NULL AND e.created_at < now() - make_interval(secs => $1)
		   AND s.stream = e.stream AND e.seq < s.last`, olderThan.Seconds())
	if err != nil {
		return 0, fmt.Errorf("prune events: %w", err)
	}
	return tag.RowsAffected(), nil
}
