package replicator

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// streamedInsert is an Insert message of a streamed block (manual, "Logical Replication Message Formats") with one value.
func streamedInsert(xid uint32, value string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, xid)
	b = binary.BigEndian.AppendUint32(b, 4711)
	b = append(b, 'N', 0, 1, 't')
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

func TestSpools(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, bound := range []int{1, 60, 1 << 20} {
		s := newSpools(bound)
		add := func(top, xid uint32, values ...string) {
			t.Helper()
			s.begin(top)
			for _, v := range values {
				if err := s.add(streamedInsert(xid, v)); err != nil {
					t.Fatal(err)
				}
			}
		}
		commit := func(xid uint32) (got []string) {
			t.Helper()
			err := s.commit(xid, func(m *pgoutput.Message) error {
				got = append(got, string(m.New[0].Data))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		abort := func(xid, sub uint32) {
			t.Helper()
			if err := s.abort(xid, sub); err != nil {
				t.Fatal(err)
			}
		}
		add(10, 10, "a1")
		add(20, 20, "b1")
		add(10, 11, "a2", "a3")
		add(30, 30, "c1")
		add(20, 21, "b2")
		add(10, 12, "a4")
		abort(10, 11) // a sub-transaction
		abort(30, 30) // a whole transaction
		abort(20, 99) // a sub-transaction that had nothing for us
		abort(98, 98) // a transaction that was never seen
		add(10, 10, "a5")
		if inMemory := s.inMem; inMemory > bound {
			t.Errorf("%d bytes are in memory, the bound is %d", inMemory, bound)
		}
		if got, want := commit(20), []string{"b1", "b2"}; !slices.Equal(got, want) {
			t.Errorf("bound %d: B gave %q, not %q", bound, got, want)
		}
		if got, want := commit(10), []string{"a1", "a4", "a5"}; !slices.Equal(got, want) {
			t.Errorf("bound %d: A gave %q, not %q", bound, got, want)
		}
		if got := commit(30); got != nil {
			t.Errorf("bound %d: the aborted transaction gave %q", bound, got)
		}
		add(40, 40, "left open")
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		if s.inMem != 0 || s.kept.Load() != 0 || len(s.byXID) != 0 {
			t.Errorf("bound %d: %d bytes in memory, %d kept, %d transactions after all have ended", bound, s.inMem, s.kept.Load(), len(s.byXID))
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || len(left) > 0 {
		t.Errorf("files are left behind: %v %v", left, err)
	}
}

func TestSpoolWithoutRoom(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "not there"))
	s := newSpools(1)
	s.begin(1)
	err := s.add(streamedInsert(1, "x"))
	if reason, remedy := describe(err); IsRetryable(err) || reason == "" || remedy == "" {
		t.Errorf("no room for a spool gives %v (%s, %s)", err, reason, remedy)
	}
}
