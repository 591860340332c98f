package progress_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/progress"
)

func TestAppendIsCloudEvents(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	ev := mustAppend(t, l, pool, entry("r1", "progress", map[string]any{"rows": 9007199254740993, "text": "a\x00b"}))
	mustAppend(t, l, pool, entry("r1", "paused", nil))

	got, err := l.After(t.Context(), "r1", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[1].Sequence != 2 || got[1].Data != nil {
		t.Fatalf("got %+v", got)
	}
	if diff := cmp.Diff(ev, got[0]); diff != "" {
		t.Errorf("what Append returned is not what readers get: %s", diff)
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{
		"specversion": "1.0", "source": "https://own.example", "type": "dev.rehome.replication.progress", "stream": "r1",
		"subject": "rehome.v1.inst1.acme.replication.r1.progress", "sequence": 1.0, "datacontenttype": "application/json",
	} {
		if m[k] != want {
			t.Errorf("%s is %v, want %v", k, m[k], want)
		}
	}
	if string(ev.Data) == "" || !json.Valid(ev.Data) {
		t.Errorf("data %s", ev.Data)
	}
}

func TestRollbackGivesTheNumberBack(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	tx := begin(t, pool)
	mustAppend(t, l, tx, entry("r1", "lost", nil))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ev := mustAppend(t, l, pool, entry("r1", "kept", nil)); ev.Sequence != 1 {
		t.Errorf("sequence %d after a rollback, want 1", ev.Sequence)
	}
}

// Ids of concurrent transactions become visible out of order; the installation's feed must not step over one.
func TestAfterIDWaitsForSmallerIDs(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	mustAppend(t, l, pool, entry("r0", "first", nil))
	slow := begin(t, pool)
	mustAppend(t, l, slow, entry("r1", "slow", nil)) // id 2, open
	mustAppend(t, l, pool, entry("r2", "fast", nil)) // id 3, visible
	wantEvents(t, l, 0, "first")                     // not "fast": its reader would never see "slow"
	wantStream(t, l, "r2", "fast")                   // its own stream has it
	mustCommit(t, slow)                              //
	wantEvents(t, l, 0, "first", "slow", "fast")     //
	lost := begin(t, pool)                           //
	mustAppend(t, l, lost, entry("r1", "lost", nil)) // id 4
	mustAppend(t, l, pool, entry("r2", "more", nil)) // id 5
	wantEvents(t, l, 0, "first", "slow", "fast")     //
	if err := lost.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, l, 3, "more")
}

// A transaction that only writes elsewhere, however long, does not hold the feed back.
func TestAfterIDIgnoresOtherTransactions(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	other := begin(t, pool)
	if _, err := other.Exec(t.Context(), `INSERT INTO rehome_control.settings (name) VALUES ('x')`); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, pool, entry("r1", "seen", nil))
	wantEvents(t, l, 0, "seen")
}

func wantEvents(t *testing.T, l *progress.Log, after int64, want ...string) {
	t.Helper()
	stored, err := l.AfterID(t.Context(), after, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range stored {
		got = append(got, s.Event.Subject[len(s.Event.Subject)-len(lastToken(s.Event.Subject)):])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after %d: %s", after, diff)
	}
}

func wantStream(t *testing.T, l *progress.Log, stream string, want ...string) {
	t.Helper()
	events, err := l.After(t.Context(), stream, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, lastToken(e.Subject))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stream %s: %s", stream, diff)
	}
}

func lastToken(subject string) string {
	for i := len(subject) - 1; i >= 0; i-- {
		if subject[i] == '.' {
			return subject[i+1:]
		}
	}
	return subject
}

// Many writers, some of which roll back or dawdle; readers of the installation and of each stream, all at once.
func TestReadersSeeEverythingOnceInOrder(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	const writers, each, streams = 6, 40, 3
	running, stop := make(chan struct{}), make(chan struct{})
	var feed []progress.Stored
	var reader errgroup.Group
	reader.Go(func() error {
		close(running)
		after, finished := int64(0), false
		for {
			select {
			case <-stop:
				finished = true
			default:
			}
			got, err := l.AfterID(t.Context(), after, 7)
			if err != nil {
				return err
			}
			if len(got) == 0 && finished {
				return nil
			}
			for _, s := range got {
				after = s.ID
				feed = append(feed, s)
			}
		}
	})
	<-running
	var writing errgroup.Group
	for w := range writers {
		rnd := rand.New(rand.NewPCG(1, uint64(w)))
		writing.Go(func() error {
			for i := range each {
				tx, err := pool.Begin(t.Context())
				if err != nil {
					return err
				}
				if _, err := l.Append(t.Context(), tx, entry(fmt.Sprintf("s%d", rnd.IntN(streams)), "e", i)); err != nil {
					return err
				}
				if rnd.IntN(4) == 0 {
					if _, err := tx.Exec(t.Context(), `SELECT pg_sleep(0.005)`); err != nil {
						return err
					}
				}
				if rnd.IntN(5) == 0 {
					err = tx.Rollback(t.Context())
				} else {
					err = tx.Commit(t.Context())
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := writing.Wait(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	if err := reader.Wait(); err != nil {
		t.Fatal(err)
	}
	var rows int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.events`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	if len(feed) != rows {
		t.Errorf("the feed had %d events, the table %d", len(feed), rows)
	}
	seqs := map[string]int64{}
	for _, s := range feed {
		if seqs[s.Event.Stream]++; s.Event.Sequence != seqs[s.Event.Stream] {
			t.Fatalf("stream %s: sequence %d, want %d", s.Event.Stream, s.Event.Sequence, seqs[s.Event.Stream])
		}
	}
}

func TestPruneKeepsTheLastAndTheUnpublished(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	for range 3 {
		mustAppend(t, l, pool, entry("r1", "e", nil))
	}
	mustAppend(t, l, pool, entry("r2", "e", nil))
	mustAppend(t, l, pool, entry("r2", "e", nil))
	if err := l.MarkPublished(t.Context(), pool, []int64{1, 2, 3, 5}); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Prune(t.Context(), time.Hour); err != nil || n != 0 {
		t.Fatalf("pruned %d, %v; all are young", n, err)
	}
	n, err := l.Prune(t.Context(), 0)
	if err != nil || n != 2 {
		t.Fatalf("pruned %d, %v", n, err)
	}
	for stream, want := range map[string]int{"r1": 1, "r2": 2} {
		if got, err := l.After(t.Context(), stream, 0, 0); err != nil || len(got) != want {
			t.Errorf("%s keeps %d, %v", stream, len(got), err)
		}
	}
	if last, err := l.Last(t.Context(), "r1"); err != nil || last != 3 {
		t.Errorf("last %d, %v", last, err)
	}
}
