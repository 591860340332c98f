package replicator

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// Lanes commit without waiting for the disk, and the source is told only of what is there. How far the WAL is the shard says
// when it is asked: every now and then in the transaction of a group, and where there is none by itself. What it says counts
// for the groups that were committed before.

// flushPoll is how often a lane asks how far the WAL is, so that its groups count as durable at most twice this later than
// they are; the WAL writer flushes every 200 ms.
const flushPoll = 50 * time.Millisecond

// flushMark is a committed group that is on disk once the shard's WAL is flushed up to wal.
type flushMark struct {
	wal tenant.LSN
	pos tenant.LSN
}

// walAt is how far a shard's WAL is.
type walAt struct{ inserted, flushed tenant.LSN }

// walAtSQL asks for it.
const walAtSQL = `SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text`

// readWAL reads the answer.
func readWAL(rr *pgconn.ResultReader) (wal walAt, err error) {
	for rr.NextRow() {
		v := rr.Values()
		if wal.inserted, err = tenant.ParseLSN(string(v[0])); err == nil {
			wal.flushed, err = tenant.ParseLSN(string(v[1]))
		}
		if err != nil {
			return wal, err
		}
	}
	_, err = rr.Close()
	return wal, err
}

// undurable reports whether something is applied that is not surely on disk.
func (l *lane) undurable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable < l.applied
}

// due reports whether it is time to ask again.
func (l *lane) due() bool { return time.Since(l.asked) >= flushPoll }

// pollFlush asks, between groups.
func (l *lane) pollFlush(ctx context.Context) error {
	var wal walAt
	if err := l.conn.QueryRow(ctx, walAtSQL).Scan(&wal.inserted, &wal.flushed); err != nil {
		return err
	}
	l.heard(wal, l.position().LSN)
	return nil
}

// heard takes note of an answer, before which everything up to pos was committed.
func (l *lane) heard(wal walAt, pos tenant.LSN) {
	l.asked = time.Now()
	l.mu.Lock()
	if n := len(l.pending); pos > l.durable && (n == 0 || l.pending[n-1].pos < pos) {
		l.pending = append(l.pending, flushMark{wal: wal.inserted, pos: pos})
	}
	l.mu.Unlock()
	l.settle(wal.flushed)
}

// settle takes note of what is on disk now.
func (l *lane) settle(flushed tenant.LSN) {
	l.mu.Lock()
	moved := false
	for len(l.pending) > 0 && l.pending[0].wal <= flushed {
		l.durable = max(l.durable, l.pending[0].pos)
		l.pending = l.pending[1:]
		moved = true
	}
	l.mu.Unlock()
	if moved && l.onDurable != nil {
		l.onDurable()
	}
}

// flushed takes note that everything is on disk: the last commit waited for that.
func (l *lane) flushed() {
	l.mu.Lock()
	l.durable, l.pending = l.applied, nil
	l.mu.Unlock()
	if l.onDurable != nil {
		l.onDurable()
	}
}

// committed takes note of a group that is committed.
func (l *lane) committed(pos position, txns, rows int) {
	l.pos = pos
	l.mu.Lock()
	l.applied = pos.lsn
	l.txns += int64(txns)
	l.rows += int64(rows)
	l.mu.Unlock()
}
