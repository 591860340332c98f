package replicator_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
)

// TestSlowLedger: a shard that is slow to write down how far the copy is ends no copy and keeps no worker waiting, and has the
// figures when it is quick again. None stay of what is done.
func TestSlowLedger(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn, blocker := open(t, dsn), open(t, dsn)
	exec(t, conn, replicator.InstallShardSQL)
	exec(t, conn, `INSERT INTO rehome.applier (replication, epoch) VALUES ('slow', 7)`)
	var logs syncBuilder
	book := replicator.NewBook(replicator.Config{
		Replication: "slow", Epoch: 7, Shards: []replicator.Shard{{Name: "s0", DSN: dsn}}, Logger: slog.New(slog.NewTextHandler(&logs, nil)),
	}, 20*time.Millisecond, 200*time.Millisecond)
	figures := func() string {
		return scalar[string](t, conn, `SELECT coalesce(string_agg(relation || ' ' || rows, ', ' ORDER BY relation), '') FROM rehome.unfinished WHERE replication = 'slow'`)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		book.Run(ctx, done)
	}()
	count := book.Begin("one")
	eventually(t, "the first figures are there", func() bool { return figures() == "public.one 0" })

	exec(t, blocker, `BEGIN; LOCK TABLE rehome.unfinished IN SHARE MODE`) // reading goes on
	count()
	eventually(t, "the figures cannot be written", func() bool { return strings.Contains(logs.String(), "the copy goes on") })
	more := book.Begin("two")
	more()
	book.Begin("three")
	book.Finish("three") // before there is a record of it
	book.Finish("one")
	select {
	case <-ended:
		t.Fatal("nothing is recorded any more")
	default:
	}
	exec(t, blocker, `ROLLBACK`)
	eventually(t, "the figures are there again, and none of what is done", func() bool { return figures() == "public.two 1" })

	// What is lost when the copy fails is written last.
	more()
	cancel()
	close(done)
	<-ended
	if got := figures(); got != "public.two 2" {
		t.Errorf("the last figures are %q", got)
	}
	if n := strings.Count(logs.String(), "the copy goes on"); n != 1 {
		t.Errorf("said %d times:\n%s", n, logs.String())
	}
}

type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
