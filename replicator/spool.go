package replicator

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// defaultSpoolMemory is how many bytes of transactions in progress are kept in memory, all of them together. The source
// begins to stream a transaction at its logical_decoding_work_mem, 64 MB by default, so most end up on disk; what stays
// in memory are the many small ones of a source where that is set low.
const defaultSpoolMemory = 16 << 20

// spoolBuffer is the size of reads and writes of a spool's file.
const spoolBuffer = 256 << 10

// spools keeps the transactions that the source streams before they end (protocol 2), each apart from the others, since
// their blocks come interleaved. Nothing of them is looked at before the end: an abort drops a transaction, or exactly the
// rows of a sub-transaction, and a table's description within belongs to it alone until it commits.
//
// What goes beyond the bound of memory goes to temporary files (in TMPDIR) that have no name any more when the first byte
// is written, so that nothing is left behind whatever happens. A stream that ends loses its spools: the source sends the
// transactions again from their beginning.
type spools struct {
	bound int // bytes in memory, of all together
	inMem int
	byXID map[uint32]*spool
	open  uint32       // the transaction whose block is being read
	kept  atomic.Int64 // bytes in memory and in files, for showing
}

// spool is one transaction in progress: records of a length (4 bytes) and a message.
type spool struct {
	mem     []byte
	file    *os.File // nil: all is in mem
	written int64
	aborted map[uint32]struct{} // sub-transactions whose rows do not count
}

func newSpools(bound int) *spools {
	if bound <= 0 {
		bound = defaultSpoolMemory
	}
	return &spools{bound: bound, byXID: map[uint32]*spool{}}
}

// begin opens a block of a transaction.
func (s *spools) begin(xid uint32) {
	s.open = xid
	if s.byXID[xid] == nil {
		s.byXID[xid] = &spool{}
	}
}

// add appends a message of the open block.
func (s *spools) add(raw []byte) error {
	sp := s.byXID[s.open]
	if sp == nil {
		return fmt.Errorf("stream: a message of transaction %d, of which no block is open", s.open)
	}
	sp.mem = binary.BigEndian.AppendUint32(sp.mem, uint32(len(raw)))
	sp.mem = append(sp.mem, raw...)
	s.inMem += 4 + len(raw)
	s.kept.Add(int64(4 + len(raw)))
	for s.inMem > s.bound {
		if err := s.spill(); err != nil {
			return err
		}
	}
	return nil
}

// spill writes what the largest transaction has in memory to its file.
func (s *spools) spill() error {
	var largest *spool
	for _, sp := range s.byXID {
		if largest == nil || len(sp.mem) > len(largest.mem) {
			largest = sp
		}
	}
	n := len(largest.mem)
	if err := largest.flush(); err != nil {
		return stop("no-spool", "make room there (or set TMPDIR for the server), then: rehome resume-replication",
			"a large transaction in progress cannot be kept in %s: %v", os.TempDir(), err)
	}
	s.inMem -= n
	return nil
}

// abort drops a transaction, or the rows of one of its sub-transactions. Either may never have been seen: a transaction is
// named that had nothing for us.
func (s *spools) abort(xid, sub uint32) error {
	sp := s.byXID[xid]
	if sp == nil {
		return nil
	}
	if xid == sub {
		return s.drop(xid)
	}
	if sp.aborted == nil {
		sp.aborted = map[uint32]struct{}{}
	}
	sp.aborted[sub] = struct{}{}
	return nil
}

func (s *spools) drop(xid uint32) error {
	sp := s.byXID[xid]
	if sp == nil {
		return nil
	}
	delete(s.byXID, xid)
	s.inMem -= len(sp.mem)
	s.kept.Add(-sp.written - int64(len(sp.mem)))
	return sp.close()
}

// commit gives the transaction's messages to fn, in their order, and drops it.
func (s *spools) commit(xid uint32, fn func(*pgoutput.Message) error) error {
	sp := s.byXID[xid]
	if sp == nil {
		return nil
	}
	if err := sp.replay(fn); err != nil {
		return errors.Join(err, s.drop(xid))
	}
	return s.drop(xid)
}

func (s *spools) close() error {
	var errs []error
	for xid := range s.byXID {
		errs = append(errs, s.drop(xid))
	}
	return errors.Join(errs...)
}

func (sp *spool) flush() error {
	if sp.file == nil {
		f, err := os.CreateTemp("", "rehome-spool-*")
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			return errors.Join(err, f.Close())
		}
		sp.file = f
	}
	n, err := sp.file.Write(sp.mem)
	sp.written += int64(n)
	if cap(sp.mem) > spoolBuffer {
		sp.mem = nil // a transaction that goes on gets a small buffer again
	} else {
		sp.mem = sp.mem[:0]
	}
	return err
}

func (sp *spool) close() error {
	if sp.file == nil {
		return nil
	}
	return sp.file.Close()
}

// replay reads the messages that count. Those of an aborted sub-transaction are left out, its tables' descriptions too.
func (sp *spool) replay(fn func(*pgoutput.Message) error) error {
	var src io.Reader = bytes.NewReader(sp.mem)
	if sp.file != nil {
		if _, err := sp.file.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read a spooled transaction: %w", err)
		}
		src = io.MultiReader(sp.file, src)
	}
	in := bufio.NewReaderSize(src, spoolBuffer)
	var m pgoutput.Message
	var buf []byte
	var head [4]byte
	for {
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a spooled transaction: %w", err)
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(in, buf); err != nil {
			return fmt.Errorf("read a spooled transaction: %w", err)
		}
		_, xid, err := pgoutput.Peek(buf, true)
		if err == nil {
			if _, gone := sp.aborted[xid]; gone && xid != 0 {
				continue
			}
			err = pgoutput.Parse(buf, true, &m)
		}
		if err != nil {
			return badMessage(err)
		}
		if err := fn(&m); err != nil {
			return err
		}
		if cap(buf) > spoolBuffer {
			buf = nil // one huge value must not stay for the rest of the transaction
		}
	}
}
