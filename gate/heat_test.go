package gate_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
)

// TestBusyWritersDoNotKeepTheFenceOut: writers whose transactions take the tables in the reverse of the order in which
// they were created, as pgbench's do, on few rows, all the time. Locking in the order of creation would wait in vain for
// transactions that it stops itself.
func TestBusyWritersDoNotKeepTheFenceOut(t *testing.T) {
	t.Parallel()
	s := setup(t, `CREATE SCHEMA app; CREATE TABLE late (id int PRIMARY KEY, n int); INSERT INTO late SELECT g, 0 FROM generate_series(1, 3) g;
		CREATE TABLE middle (id int PRIMARY KEY, n int); INSERT INTO middle SELECT g, 0 FROM generate_series(1, 3) g;
		CREATE TABLE early (id int PRIMARY KEY, n int); INSERT INTO early SELECT g, 0 FROM generate_series(1, 3) g;`)
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for w := range 6 {
		conn := connect(t, s.client)
		g.Go(func() error {
			for i := 0; ctx.Err() == nil; i++ {
				for _, sql := range []string{
					"BEGIN", fmt.Sprintf("UPDATE early SET n = n + 1 WHERE id = %d", 1+(i+w)%3), fmt.Sprintf("UPDATE middle SET n = n + 1 WHERE id = %d", 1+(i+w)%3),
					"SELECT pg_sleep(0.003)", fmt.Sprintf("UPDATE late SET n = n + 1 WHERE id = %d", 1+(i+w)%3), "COMMIT",
				} {
					if _, err := conn.Exec(context.Background(), sql); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	for round := range 5 {
		a := open(t, s, 1)
		must(t, a.Prelock(t.Context()))
		if err := a.Fence(t.Context(), time.Now().Add(10*time.Second)); err != nil {
			t.Fatalf("round %d, after %d tries: %v (%v)", round, a.Tries(), err, a.Culprits())
		}
		t.Logf("round %d: %d tries", round, a.Tries())
		if a.Tries() > 3 {
			t.Errorf("round %d took %d tries; the tables that writers hold most must go first", round, a.Tries())
		}
		a.Rollback(t.Context())
		a.Close(t.Context())
	}
	stop()
	must(t, g.Wait())
}

// TestTheOrderIsLearnedByWaiting: writers that take both tables at once and keep them for a while hold one as often as the
// other, and nothing but a try that waits in vain tells which comes first.
func TestTheOrderIsLearnedByWaiting(t *testing.T) {
	t.Parallel()
	s := setup(t, `CREATE SCHEMA app; CREATE TABLE second (id int PRIMARY KEY, n int); INSERT INTO second SELECT g, 0 FROM generate_series(1, 8) g;
		CREATE TABLE first (id int PRIMARY KEY, n int); INSERT INTO first SELECT g, 0 FROM generate_series(1, 8) g;`)
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for w := range 8 {
		conn := connect(t, s.client)
		g.Go(func() error {
			for ctx.Err() == nil {
				sql := fmt.Sprintf("BEGIN; UPDATE first SET n = n + 1 WHERE id = %d; UPDATE second SET n = n + 1 WHERE id = %d; SELECT pg_sleep(%f); COMMIT",
					1+w, 1+w, float64(w)/200)
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					return err
				}
			}
			return nil
		})
	}
	worst := time.Duration(0)
	for round := range 10 {
		a := open(t, s, 1)
		must(t, a.Prelock(t.Context()))
		began := time.Now()
		if err := a.Fence(t.Context(), time.Now().Add(10*time.Second)); err != nil {
			t.Fatalf("round %d, after %d tries: %v (%v)", round, a.Tries(), err, a.Culprits())
		}
		worst = max(worst, time.Since(began))
		if a.Tries() > 2 {
			t.Errorf("round %d took %d tries; what the first one's waiting shows must do", round, a.Tries())
		}
		a.Rollback(t.Context())
		a.Close(t.Context())
	}
	t.Logf("the longest fence took %s", worst)
	stop()
	must(t, g.Wait())
}
