package replicator_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// BenchmarkCopy copies one table of REHOME_BENCH_MB megabytes (default 48) to two shards, as a whole, in chunks of its key
// and in chunks of pages, and tells the rate up to the end of its indexes and the largest heap.
func BenchmarkCopy(b *testing.B) {
	mb, err := strconv.Atoi(os.Getenv("REHOME_BENCH_MB"))
	if err != nil {
		mb = 48
	}
	for _, way := range []struct {
		name, key string
		chunk     int64
	}{
		{"whole", "id, realm_id", 1 << 40},
		{"keys", "id, realm_id", int64(mb) << 20 / 20},
		{"pages", "realm_id, id", int64(mb) << 20 / 20},
	} {
		b.Run(way.name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				id := "b" + strconv.FormatInt(time.Now().UnixNano(), 36)
				src := pgcluster.NewDatabase(b, cluster)
				c := open(b, src)
				exec(b, c, fmt.Sprintf(`CREATE TABLE bulk (id bigint NOT NULL, realm_id text NOT NULL, pad text, PRIMARY KEY (%s));
					INSERT INTO bulk SELECT g, 'r' || (g & 255), repeat(md5(g::text), 6) FROM generate_series(1, %d) g; ANALYZE bulk; CHECKPOINT`, way.key, mb*4096))
				cfg := replicator.Config{
					Replication: id, Source: src, Slot: "rehome_" + id, Publication: "rehome_" + id, Epoch: 1, Pass: pass, State: tenant.State{Phase: tenant.Created},
					Journal: &memory{state: tenant.State{Phase: tenant.Created}}, Gate: gates{id}, Options: tenant.ReplicationOptions{ChunkBytes: way.chunk},
					Placement: tenant.Placement{Epoch: 1, Home: "s0", Ranges: []tenant.Range{{From: 0, To: 8191, Shard: "s0"}, {From: 8192, To: tenant.Buckets - 1, Shard: "s1"}}},
				}
				for i := range 2 {
					cfg.Shards = append(cfg.Shards, replicator.Shard{Name: "s" + strconv.Itoa(i), Ordinal: i, DSN: pgcluster.NewDatabase(b, cluster)})
				}
				e, err := replicator.New(cfg)
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan error, 1)
				b.StartTimer()
				go func() { done <- e.Run(ctx) }()
				var heap uint64
				tick := time.NewTicker(50 * time.Millisecond)
				for st := e.State(); st.Phase != tenant.CatchingUp && st.Phase != tenant.InSync; st = e.State() {
					<-tick.C
					if st.Phase == tenant.Paused {
						b.Fatal(st.Reason)
					}
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					heap = max(heap, m.HeapInuse)
				}
				tick.Stop()
				b.StopTimer()
				b.ReportMetric(float64(e.Progress().BytesDone)/1e6/b.Elapsed().Seconds()*float64(b.N), "MB/s")
				b.ReportMetric(float64(heap)/1e6, "MB-heap")
				cancel()
				if err := <-done; err != nil {
					b.Error(err)
				}
				if err := e.CleanUp(context.Background()); err != nil {
					b.Log(err)
				}
			}
		})
	}
}
