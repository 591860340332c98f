package replicator

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/tenant"
)

// SentWithCommit is how many groups the lanes sent with their COMMIT since the stream began.
func (e *Engine) SentWithCommit() int64 {
	s, err := e.currentStream()
	if err != nil {
		return 0
	}
	n := int64(0)
	for _, l := range s.lanes {
		l.mu.Lock()
		n += l.small
		l.mu.Unlock()
	}
	return n
}

// ReplicationSession opens a walsender session as the stream does, whose guard has another patience.
func ReplicationSession(ctx context.Context, dsn tenant.DSN, patience time.Duration) (*pgconn.PgConn, error) {
	cfg, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	halfopen.Guard(&cfg.Config, patience)
	c, _, err := openReplication(ctx, dsn, &cfg.Config, "test")
	return c, err
}

// Streams reports whether the engine has a stream.
func (e *Engine) Streams() bool { return e.streaming() }
