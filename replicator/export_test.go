package replicator

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
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

// CopiedRows is how many rows of transactions that ran ahead were sent by COPY.
func (e *Engine) CopiedRows() int64 { return e.copiedRows.Load() }

// Walsender opens the walsender session of a replication, or of its way back.
func Walsender(ctx context.Context, cfg Config, back bool) (*pgconn.PgConn, error) {
	if back {
		cfg.back = new(backSide)
	}
	e, err := New(cfg)
	if err != nil {
		return nil, err
	}
	c, _, err := e.src.walsender(ctx)
	return c, err
}

// ReplicationSession opens a walsender session as the stream does, whose guard has another patience.
func ReplicationSession(ctx context.Context, dsn tenant.DSN, patience time.Duration) (*pgconn.PgConn, error) {
	cfg, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	halfopen.Guard(&cfg.Config, patience)
	c, _, err := openReplication(ctx, dsn, &cfg.Config, "test", true)
	return c, err
}

// Streams reports whether the engine has a stream.
func (e *Engine) Streams() bool { return e.streaming() }

// Copyable reports whether a row of these values can be sent by a COPY.
func Copyable(values ...[]byte) bool {
	row := make(pgoutput.Tuple, len(values))
	for i, v := range values {
		row[i] = pgoutput.Value{Kind: pgoutput.Text, Data: v}
	}
	return copyable([]*change{{op: opInsert, row: row}})
}

// Copier writes rows of a table as a side does.
type Copier struct {
	l   *lane
	rel *relation
}

// NewCopier opens a session.
func NewCopier(ctx context.Context, dsn tenant.DSN, table tenant.TableName, columns []catalog.Column) (*Copier, error) {
	conn, err := connectBy(ctx, dsn, "test", laneSettings("none"), copyFrontend)
	if err != nil {
		return nil, err
	}
	return &Copier{
		l:   &lane{conn: conn, prepared: map[string]*pgconn.StatementDescription{}, uncopied: new(tableSet), inOrder: new(tableSet)},
		rel: &relation{name: table, table: &catalog.Table{Name: table}, columns: columns, arrays: arraysFit(columns), realm: -1},
	}, nil
}

// Close ends the session.
func (c *Copier) Close() { closeSoon(c.l.conn) }

// Write commits groups of rows in one transaction, or rolls it back; nil is NULL. copied is how many rows went by COPY.
func (c *Copier) Write(ctx context.Context, groups ...[][]*string) (copied int64, err error) {
	before := c.l.copied
	run, finish := c.l.startRun(ctx)
	err = func() error {
		run.exec("BEGIN")
		for _, g := range groups {
			cs := make([]change, len(g))
			for i, row := range g {
				tuple := make(pgoutput.Tuple, len(row))
				for k, v := range row {
					tuple[k].Kind = pgoutput.Null
					if v != nil {
						tuple[k] = pgoutput.Value{Kind: pgoutput.Text, Data: []byte(*v)}
					}
				}
				cs[i] = change{op: opInsert, rel: c.rel, row: tuple}
			}
			sent := len(run.want)
			if err := run.further(ctx, cs); err != nil {
				return err
			}
			if err := run.overlap(sent); err != nil {
				return err
			}
		}
		if err := run.synced(); err != nil {
			return err
		}
		_, err := run.commit(false)
		return err
	}()
	if err = finish(err); err != nil && !c.l.conn.IsClosed() {
		return 0, errors.Join(err, c.l.rollback(ctx))
	}
	return c.l.copied - before, err
}
