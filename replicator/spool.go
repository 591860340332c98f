package replicator

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// defaultSpoolMemory is how many bytes of transactions in progress are kept in memory, all of them together. The source
// streams when it has gathered 16 MB on our session (decodesLittle), of which some 6 MB reach us: so what stays in memory are
// a transaction of two or three such blocks, and many small ones; a larger one ends up on disk, and so do most where the
// source gathers its own 64 MB because nothing may run ahead.
const defaultSpoolMemory = 16 << 20

const (
	// spoolBuffer is the size of reads of a spool's file.
	spoolBuffer = 256 << 10
	// spoolBlock is the size of writes to it, once there is one: a buffer of that size is used again and again.
	spoolBlock = 1 << 20
)

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
	open  *spool       // the transaction whose block is being read
	kept  atomic.Int64 // bytes in memory and in files, for showing
}

// spool is one transaction in progress: records of a length (4 bytes) and a message.
type spool struct {
	xid     uint32
	aborted map[uint32]struct{} // sub-transactions whose rows do not count
	ahead   aheadTry

	mu      sync.Mutex // held by whoever changes what follows, and by a follower that reads it
	mem     []byte
	file    *os.File // nil: all is in mem
	written int64
}

func newSpools(bound int) *spools {
	if bound <= 0 {
		bound = defaultSpoolMemory
	}
	return &spools{bound: bound, byXID: map[uint32]*spool{}}
}

// begin opens a block of a transaction.
func (s *spools) begin(xid uint32) {
	if s.byXID[xid] == nil {
		s.byXID[xid] = &spool{xid: xid}
	}
	s.open = s.byXID[xid]
}

// add appends a message of the open block.
func (s *spools) add(raw []byte) error {
	sp := s.open
	if sp == nil {
		return errors.New("stream: a message of a transaction in progress, of which no block is open")
	}
	sp.mu.Lock()
	sp.mem = binary.BigEndian.AppendUint32(sp.mem, uint32(len(raw)))
	sp.mem = append(sp.mem, raw...)
	sp.mu.Unlock()
	s.inMem += 4 + len(raw)
	s.kept.Add(int64(4 + len(raw)))
	if sp.file != nil && len(sp.mem) >= spoolBlock {
		return s.write(sp)
	}
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
	return s.write(largest)
}

// write moves what a transaction has in memory to its file.
func (s *spools) write(sp *spool) error {
	n := len(sp.mem)
	if err := sp.flush(); err != nil {
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
	if s.open == sp {
		s.open = nil
	}
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

// size is how many bytes the transaction has. Only the reader of the stream asks.
func (sp *spool) size() int64 { return sp.written + int64(len(sp.mem)) }

// readAt reads what the transaction has from an offset on, as much as fits, behind the reader of the stream. 0: nothing is
// there yet.
func (sp *spool) readAt(buf []byte, from int64) (int, error) {
	sp.mu.Lock()
	if from >= sp.written {
		defer sp.mu.Unlock()
		return copy(buf, sp.mem[min(from-sp.written, int64(len(sp.mem))):]), nil
	}
	f, n := sp.file, min(int64(len(buf)), sp.written-from)
	sp.mu.Unlock()
	return f.ReadAt(buf[:n], from) // what is written stays as it is
}

func (sp *spool) flush() error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
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
	if cap(sp.mem) > 2*spoolBlock {
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
