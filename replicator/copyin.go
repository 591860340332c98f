package replicator

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// A transaction that runs ahead, and inserts rows of one table for a while, does so by a COPY … FROM STDIN that goes on from
// group to group: the server has no arrays to take apart and no executor between them and the table, and writes many rows to a
// page at once. That saves a fifth to a quarter of a row's price, if the COPY is a long one; one of a single group costs as much as a
// statement over arrays (docs/decisions/0015-one-lane-a-shard.md has the measurement).
//
// The COPY is one of the statements that are sent without waiting, its rows right behind it (manual, 55.2.3 and 55.2.6): a
// server that refuses it, or a row of it, ignores the rest, as it ignores all that follows an error up to the synchronisation
// point. Whatever is wrong with it, the transaction gives way, and is applied in its turn as statements that tell more.

const (
	// minCopy is the least number of rows that a group must have for a COPY to begin with it: of small groups not many follow.
	minCopy = 500
	// copyChunk is what is sent of a COPY's rows at a time, so that the server writes some while others are being made.
	copyChunk = 64 << 10
	// copyMost is how many bytes of rows a COPY has before it ends and another begins: an error shows behind its end only, and the
	// 16 MB of buffers that a COPY writes by (BAS_BULKWRITE), into which these fit with their heads, must not come round, for
	// then it waits for the disk.
	copyMost = 4 << 20
	// copyRow bounds the values of a row of a COPY, in bytes: escaped they may be twice as long, and no message, of which a row
	// is never more than one, may have more than 1 GB.
	copyRow = 64 << 20
)

// copyAnswers is what a session reads by that has a COPY among other statements. Its one answer that others do not have, that
// rows may come, is left out, so that the driver takes it for one of them.
type copyAnswers struct {
	r    io.Reader
	head int    // bytes that were read of a message's head
	kind byte   // of the message
	rest uint32 // bytes of the message that are still to come; while its head is read: its length so far
}

// copyFrontend is the frontend of a session that takes a COPY for a statement.
func copyFrontend(r io.Reader, w io.Writer) *pgproto3.Frontend {
	return pgproto3.NewFrontend(&copyAnswers{r: r}, w)
}

// Read implements io.Reader.
func (a *copyAnswers) Read(p []byte) (int, error) {
	for {
		n, err := a.r.Read(p)
		n = a.keep(p[:n])
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// keep moves what is to be read to the beginning of what came.
func (a *copyAnswers) keep(p []byte) int {
	const copyInResponse, head, length = 'G', 5, 4 // manual, 55.7; the length counts itself
	kept := 0
	for i := 0; i < len(p); {
		n := 1
		switch {
		case a.head == 0:
			a.kind, a.head, a.rest = p[i], 1, 0
		case a.head < head:
			a.rest = a.rest<<8 | uint32(p[i])
			if a.head++; a.head == head {
				a.rest -= min(a.rest, length)
			}
		default:
			n = int(min(a.rest, uint32(len(p)-i)))
			a.rest -= uint32(n)
		}
		if a.head == head && a.rest == 0 {
			a.head = 0
		}
		if a.kind != copyInResponse {
			if kept != i {
				copy(p[kept:], p[i:i+n])
			}
			kept += n
		}
		i += n
	}
	return kept
}

// tableSet is what a shard's lane and its sides have learned of tables.
type tableSet struct {
	mu   sync.Mutex
	oids map[uint32]struct{}
}

func (u *tableSet) has(oid uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, there := u.oids[oid]
	return there
}

func (u *tableSet) add(oid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.oids == nil {
		u.oids = map[uint32]struct{}{}
	}
	u.oids[oid] = struct{}{}
}

// copying is the COPY that is open.
type copying struct {
	rel   *relation
	rows  int
	bytes int
}

// takes reports whether the run's rows may go on in the COPY.
func (c *copying) takes(run *changeRun) bool {
	return c.rel == run.rel && run.op == opInsert && copyable(run.rows)
}

// copyable reports whether rows can be sent by a COPY.
func copyable(rows []*change) bool {
	for _, c := range rows {
		bytes := 0
		for _, v := range c.row {
			if bytes += len(v.Data); v.Kind == pgoutput.Unchanged || bytes > copyRow {
				return false
			}
		}
	}
	return true
}

// further applies a group of a transaction that goes on. It may leave a COPY open, which ends when anything else is sent.
func (r *pipelineRun) further(ctx context.Context, cs []change) error {
	if r.copy.bytes >= copyMost {
		r.endCopy()
	}
	r.l.plan.copies = true
	runs := r.l.plan.plan(cs)
	for _, run := range runs {
		if r.copy.rel != nil && !r.copy.takes(run) {
			r.endCopy()
		}
		if r.copy.rel == nil && len(runs) == 1 && len(run.rows) >= minCopy && run.op == opInsert && !r.l.uncopied.has(run.rel.table.OID) && copyable(run.rows) {
			r.beginCopy(run.rel)
		}
		var err error
		if r.copy.rel != nil {
			r.arrange(run)
			err = r.copyRows(run.rows)
		} else {
			err = r.set(ctx, run)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// beginCopy opens a COPY. The driver knows it as a statement.
func (r *pipelineRun) beginCopy(rel *relation) {
	shape := rel.shape('C', "")
	st, ok := r.l.prepared[shape]
	if !ok {
		all := make([]int, len(rel.columns))
		for i := range all {
			all[i] = i
		}
		st = r.prepare(shape, "COPY "+rel.name.Quoted()+" ("+rel.columnList("", all)+") FROM STDIN")
	}
	r.p.SendQueryStatement(st, nil, nil, nil)
	r.want = append(r.want, expected{})
	r.copy = copying{rel: rel}
}

// copyRows sends rows of the open COPY.
func (r *pipelineRun) copyRows(rows []*change) error {
	c := r.l.conn.PgConn()
	r.copy.rows += len(rows)
	for m := (copyRows{left: rows}); len(m.left) > 0; {
		r.l.room.ahead(c, 2*copyChunk)
		c.Frontend().Send(&m)
		if err := r.begin(); err != nil {
			return err
		}
		r.copy.bytes += m.bytes
	}
	return nil
}

// endCopy ends the COPY that is open, if there is one. What it hit is the last result that is wanted so far: while it was open
// nothing else was sent.
func (r *pipelineRun) endCopy() {
	if r.copy.rel == nil {
		return
	}
	r.l.conn.PgConn().Frontend().Send(&pgproto3.CopyDone{})
	r.want[len(r.want)-1] = expected{copied: r.copy.rel, counts: true, set: r.copy.rows}
	r.l.copied += int64(r.copy.rows)
	r.copy = copying{}
}

// failCopy gives the COPY up that is open, if there is one: within it the server ignores a synchronisation point.
func (r *pipelineRun) failCopy() {
	if r.copy.rel == nil {
		return
	}
	r.l.conn.PgConn().Frontend().Send(&pgproto3.CopyFail{Message: "given up"})
	r.copy = copying{}
}

// noCopy takes note of what a server says of a COPY: a table with row level security takes none (SQLSTATE 0A000).
func (r *pipelineRun) noCopy(rel *relation, pe *pgconn.PgError) {
	if pe.Code == "0A000" {
		r.l.uncopied.add(rel.table.OID)
	}
}

// copyRows is a message of rows in the text format of COPY (manual, COPY, "Text Format"). Each time that it is sent it is the
// next ones.
type copyRows struct {
	left  []*change
	bytes int // of the last message
}

// Encode implements pgproto3.FrontendMessage.
func (m *copyRows) Encode(dst []byte) ([]byte, error) {
	at := len(dst)
	dst = append(dst, 'd', 0, 0, 0, 0)
	n := 0
	for ; n < len(m.left) && len(dst)-at < copyChunk; n++ {
		for i, v := range m.left[n].row {
			if i > 0 {
				dst = append(dst, '\t')
			}
			if v.Kind != pgoutput.Text {
				dst = append(dst, `\N`...)
				continue
			}
			dst = appendCopied(dst, v.Data)
		}
		dst = append(dst, '\n')
	}
	m.left, m.bytes = m.left[n:], len(dst)-at
	binary.BigEndian.PutUint32(dst[at+1:], uint32(len(dst)-at-1))
	return dst, nil
}

// Decode implements pgproto3.FrontendMessage.
func (m *copyRows) Decode([]byte) error { return errors.ErrUnsupported }

// Frontend marks it as a message that a client sends.
func (m *copyRows) Frontend() {}

// appendCopied appends a value as it stands in a column of a COPY. The session's encoding is UTF-8, where a byte below 128
// stands for itself.
func appendCopied(b, v []byte) []byte {
	from := 0
	for i, x := range v {
		if x > '\r' && x != '\\' {
			continue
		}
		switch x {
		case '\n':
			x = 'n'
		case '\r':
			x = 'r'
		case '\t':
			x = 't'
		case '\\':
		default:
			continue
		}
		b = append(b, v[from:i]...)
		b = append(b, '\\', x)
		from = i + 1
	}
	return append(b, v[from:]...)
}
