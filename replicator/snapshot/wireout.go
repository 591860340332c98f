package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// The rows of a COPY pass by the session's connection itself (manual, "Message Flow", "COPY Operations"): pgconn reads 8 KB
// at a time, allocates messages as large as the largest row, and copies each buffer once more on its way to a shard. Here
// memory does not grow with the largest row.

const (
	// readSmall is the buffer that a COPY begins with, readLarge the one of a COPY that fills it: many tables are small.
	readSmall, readLarge = 32 << 10, 256 << 10
	// longestControl bounds messages other than rows, which hold a few lines of text.
	longestControl = 1 << 20
	// cancelPatience bounds how long it may take to tell a server that nobody wants its rows any more.
	cancelPatience = 2 * time.Second
)

const messageHeader = 5 // a type and a length that counts itself (manual, "Message Formats")

// errOutOfStep says that a server sent what does not belong to a COPY.
var errOutOfStep = errors.New("unexpected message in a COPY")

// longAgo is a deadline that ends a call at once.
var longAgo = time.Unix(1, 0)

// wire is a session's connection during one COPY. All messages up to ReadyForQuery are read here, so that pgconn finds
// the session as it left it.
type wire struct {
	pc   *pgconn.PgConn
	conn net.Conn
	buf  []byte
	r, w int // what was read and not yet taken: buf[r:w]

	tag    pgconn.CommandTag
	failed error // the server's ErrorResponse
}

// open sends the COPY command. It is an error if the session is not idle.
func openWire(ctx context.Context, pc *pgconn.PgConn, sql string) (*wire, error) {
	if pc.IsClosed() || pc.IsBusy() {
		return nil, errors.New("the session is closed or busy")
	}
	if err := pc.SyncConn(ctx); err != nil {
		return nil, err
	}
	w := &wire{pc: pc, conn: pc.Conn(), buf: make([]byte, readSmall)}
	f := pc.Frontend()
	f.SendQuery(&pgproto3.Query{String: sql})
	if err := f.Flush(); err != nil {
		return nil, w.abandon(err)
	}
	return w, nil
}

// watch makes reads and writes fail when the context ends; the caller calls done before it uses the session again, and
// must give the session up when that reports false.
func (w *wire) watch(ctx context.Context) (done func() bool) {
	return context.AfterFunc(ctx, func() { _ = w.conn.SetDeadline(longAgo) })
}

// abandon closes a session that is out of step, and has the server give its COPY up.
func (w *wire) abandon(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), cancelPatience)
	defer cancel()
	_ = w.conn.SetDeadline(longAgo) // what is still to be sent is not worth waiting for
	_ = w.pc.CancelRequest(ctx)
	_ = w.pc.Close(ctx)
	return err
}

// fill reads more, so that at least n bytes are there. n must not be larger than the buffer.
func (w *wire) fill(n int) error {
	if w.w-w.r >= n {
		return nil
	}
	if w.r > 0 {
		w.w = copy(w.buf, w.buf[w.r:w.w])
		w.r = 0
	}
	for w.w < n {
		k, err := w.conn.Read(w.buf[w.w:])
		w.w += k
		if err != nil && w.w < n {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if w.w == len(w.buf) && len(w.buf) < readLarge {
			larger := make([]byte, readLarge)
			copy(larger, w.buf)
			w.buf = larger
		}
	}
	return nil
}

// next gives the header of the next message.
func (w *wire) next() (kind byte, size int, err error) {
	if w.w-w.r < messageHeader {
		if err := w.fill(messageHeader); err != nil {
			return 0, 0, err
		}
	}
	kind = w.buf[w.r]
	length := binary.BigEndian.Uint32(w.buf[w.r+1:])
	if length < 4 || length > 1<<31-1 {
		return 0, 0, fmt.Errorf("%w: a length of %d", errOutOfStep, length)
	}
	w.r += messageHeader
	return kind, int(length) - 4, nil
}

// body gives the whole body of a message, valid until the next call.
func (w *wire) body(size int) ([]byte, error) {
	if size > longestControl {
		return nil, fmt.Errorf("%w: %d bytes", errOutOfStep, size)
	}
	if size > len(w.buf) {
		larger := make([]byte, size)
		w.w = copy(larger, w.buf[w.r:w.w])
		w.r, w.buf = 0, larger
	}
	if err := w.fill(size); err != nil {
		return nil, err
	}
	b := w.buf[w.r : w.r+size]
	w.r += size
	return b, nil
}

// control takes a message that is not a row; ready: it was the last one.
func (w *wire) control(kind byte, size int) (ready bool, err error) {
	b, err := w.body(size)
	if err != nil {
		return false, err
	}
	switch kind {
	case 'C': // CommandComplete
		var m pgproto3.CommandComplete
		if err := m.Decode(b); err != nil {
			return false, err
		}
		w.tag = pgconn.NewCommandTag(string(m.CommandTag))
	case 'E': // ErrorResponse
		var m pgproto3.ErrorResponse
		if err := m.Decode(b); err != nil {
			return false, err
		}
		e := pgconn.ErrorResponseToPgError(&m)
		w.failed = e
		if e.Severity == "FATAL" || e.Severity == "PANIC" {
			return false, e // nothing follows
		}
	case 'Z': // ReadyForQuery
		return true, w.aside()
	case 'c', 'H', 'G', 'N', 'S', 'A': // CopyDone, CopyOutResponse, CopyInResponse, notices, settings, notifications
	default:
		return false, fmt.Errorf("%w: type %q", errOutOfStep, kind)
	}
	return false, nil
}

// aside takes what came behind the end: a server may tell of settings, notices and notifications at any time (manual,
// 55.2.7). What was begun is read to its end, since pgconn must find the beginning of a message.
func (w *wire) aside() error {
	for w.r != w.w {
		kind, size, err := w.next()
		if err != nil {
			return err
		}
		switch kind {
		case 'S', 'N', 'A', 'E':
			if _, err := w.control(kind, size); err != nil {
				return err
			}
			if kind == 'E' { // it ended the session, or belongs to nothing
				return w.failed
			}
		default:
			return fmt.Errorf("%w: type %q follows its end", errOutOfStep, kind)
		}
	}
	return nil
}

// copyOut runs a COPY … TO STDOUT and gives its rows to out, in pieces of at most a row. Memory does not grow with the
// largest row. The session is usable afterwards, or closed. After an error its transaction has failed, which pgconn does not
// know (TxStatus is that of before): the caller must roll it back, or close the session.
func copyOut(ctx context.Context, pc *pgconn.PgConn, sql string, out io.Writer) (rows int64, err error) {
	w, err := openWire(ctx, pc, sql)
	if err != nil {
		return 0, err
	}
	done := w.watch(ctx)
	err = w.rows(out)
	switch {
	case !done():
		return 0, w.abandon(context.Cause(ctx))
	case err != nil:
		return 0, w.abandon(err)
	case w.failed != nil:
		return 0, w.failed
	}
	return w.tag.RowsAffected(), nil
}

func (w *wire) rows(out io.Writer) error {
	for {
		kind, size, err := w.next()
		if err != nil {
			return err
		}
		if kind != 'd' {
			ready, err := w.control(kind, size)
			if ready || err != nil {
				return err
			}
			continue
		}
		if size > w.w-w.r && size <= len(w.buf)-messageHeader {
			if err := w.fill(size); err != nil {
				return err
			}
		}
		for size > 0 {
			if w.r == w.w {
				if err := w.fill(1); err != nil {
					return err
				}
			}
			n := min(size, w.w-w.r)
			if _, err := out.Write(w.buf[w.r : w.r+n]); err != nil {
				return err
			}
			w.r += n
			size -= n
		}
	}
}
