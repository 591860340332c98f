package e2e

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// TestKilledServerResumesTheCopy kills the server with kill -9 in the middle of a chunked copy, under load: no chunk that
// was finished is copied again, and what had to be is shown.
func TestKilledServerResumesTheCopy(t *testing.T) {
	t.Parallel()
	r := newCrashRig(t, 6)
	load := r.load()
	control := open(t, r.control)
	r.mustApproved(append(r.args, "--chunk-size", "1MB", "--copy-jobs", "1")...)
	const finished = `SELECT count(*)::int FROM rehome_control.replication_chunks WHERE chunk > 0`
	before := map[int]time.Time{}
	for kill := range 2 {
		eventually(t, "chunks are copied", func() bool { return scalar[int](t, control, finished) >= len(before)+5 })
		r.kill()
		now := finishedChunks(t, control)
		for n, at := range before {
			if !now[n].Equal(at) {
				t.Errorf("chunk %d was copied again after kill %d", n, kill)
			}
		}
		before = now
		if phase := scalar[string](t, control, `SELECT phase FROM rehome_control.replications`); phase != string(tenant.Copying) {
			t.Fatalf("killed too late, in phase %s", phase)
		}
		r.start()
	}
	r.clean("two kills in the middle of the copy")
	for n, at := range before {
		if now := finishedChunks(t, control)[n]; !now.Equal(at) {
			t.Errorf("chunk %d, done before the last kill, was copied again", n)
		}
	}
	p := mustJSON[tenant.Progress](r.installation, "replication-progress")
	t.Logf("%d chunks were done before the last kill, %d in all; copied again: %d rows, %d of %d bytes", len(before), scalar[int](t, control, finished), p.RowsAgain, p.BytesAgain, p.BytesDone)
	if p.Percent != 100 || p.BytesAgain > p.BytesDone/3 {
		t.Errorf("progress: %+v", p)
	}
	load.stop()
	r.clean("the end of the load")
	checkTPCB(t, r.installation, r.src, r.shards)
}

func finishedChunks(t *testing.T, control *pgx.Conn) map[int]time.Time {
	t.Helper()
	out := map[int]time.Time{}
	rows, err := control.Query(t.Context(), `SELECT chunk, finished_at FROM rehome_control.replication_chunks WHERE chunk > 0 AND relation = 'public.pgbench_accounts'`)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&n, &at}, func() error { out[n] = at; return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}
