package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// lastWords is how long a server that takes no more rows may take to say why.
const lastWords = time.Second

// copyIn runs a COPY … FROM STDIN whose data come from p, each buffer as one message, without copying it. When p fails the
// server is told so with the reason. The session is usable afterwards, or closed; see copyOut for what it says of its
// transaction.
func copyIn(ctx context.Context, pc *pgconn.PgConn, sql string, p *pipe) (rows int64, err error) {
	w, err := openWire(ctx, pc, sql)
	if err != nil {
		return 0, err
	}
	stopWatch := w.watch(ctx)
	// What the server says is read all the while: an error comes amid the rows, and it must be able to send it.
	ready, ended := make(chan struct{}), make(chan struct{})
	var readErr error
	go func() {
		defer close(ended)
		readErr = w.answers(ready)
	}()
	sendErr, writeErr := w.send(p, ready, ended)
	if writeErr != nil {
		_ = w.conn.SetReadDeadline(time.Now().Add(lastWords))
	}
	<-ended
	switch {
	case !stopWatch():
		return 0, w.abandon(context.Cause(ctx))
	case w.failed != nil && readErr == nil && writeErr == nil:
		if sendErr != nil {
			return 0, sendErr // the server's error is the one that it was told
		}
		return 0, w.failed
	case w.failed != nil: // half a message may have been sent
		return 0, w.abandon(w.failed)
	case readErr != nil && (writeErr == nil || !isTimeout(readErr)):
		return 0, w.abandon(readErr)
	case writeErr != nil:
		return 0, w.abandon(writeErr)
	case sendErr != nil:
		return 0, w.abandon(sendErr) // the server took a COPY that was to fail
	}
	return w.tag.RowsAffected(), nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// answers reads up to ReadyForQuery. ready is closed when the server asks for rows.
func (w *wire) answers(ready chan struct{}) error {
	for {
		kind, size, err := w.next()
		if err != nil {
			return err
		}
		if kind == 'G' {
			close(ready)
		}
		end, err := w.control(kind, size)
		if end || err != nil {
			return err
		}
	}
}

// send writes the buffers of p as they come, and the end. It stops when the server's answer is there before that.
// sendErr is what p failed with, which the server was told.
func (w *wire) send(p *pipe, ready, ended <-chan struct{}) (sendErr, writeErr error) {
	select {
	case <-ready:
	case <-ended:
		return nil, nil
	}
	for {
		b, err := p.next(ended)
		switch {
		case errors.Is(err, errAnswered):
			return nil, nil
		case errors.Is(err, io.EOF):
			_, err = w.conn.Write([]byte{'c', 0, 0, 0, 4}) // CopyDone
			return nil, err
		case err != nil:
			m, encodeErr := (&pgproto3.CopyFail{Message: err.Error()}).Encode(nil)
			if encodeErr != nil {
				return err, encodeErr
			}
			_, writeErr = w.conn.Write(m)
			return err, writeErr
		}
		b[0] = 'd' // CopyData
		binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
		if _, err := w.conn.Write(b); err != nil {
			return nil, err
		}
	}
}
