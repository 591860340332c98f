package supervisor

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
)

// TestRenewalsThatHang: others are made beside one that is never answered, and beside such as take seconds, so that the lease
// never ends; not without bound. One that finds another owner is heard although an earlier one hangs.
func TestRenewalsThatHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		made, running, most := 0, 0, 0
		until := time.Now().Add(leaseTTL)
		began := time.Now()
		err := keepRenewed(t.Context(), func(ctx context.Context) error {
			mu.Lock()
			made++
			n, asked := made, time.Now()
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() {
				mu.Lock()
				running--
				mu.Unlock()
			}()
			if n%3 == 1 {
				<-ctx.Done() // its peer vanished
				return ctx.Err()
			}
			if err := pauseFor(ctx, 3500*time.Millisecond); err != nil { // of a fake clock
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if !time.Now().Before(until) {
				t.Errorf("the lease ended %s after the beginning", until.Sub(began))
			}
			until = asked.Add(leaseTTL)
			if n == 30 {
				return replicator.ErrFenced
			}
			return nil
		})
		if !errors.Is(err, replicator.ErrFenced) || running != 0 || most > 3 {
			t.Errorf("%v, %d still running, %d at once", err, running, most)
		}
	})
}

// TestRenewLease renews in the control database: also a lease whose time is over, unless it is another's.
func TestRenewLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	a, b := w.supervisor("a"), w.supervisor("b")
	epoch, err := a.takeLease(t.Context(), w.id)
	must(t, err)
	past := `UPDATE rehome_control.leases SET expires_at = now() - interval '1 second' WHERE resource = $1`
	_, err = w.pool.Exec(t.Context(), past, resource(w.id))
	must(t, err)
	must(t, a.renewLease(t.Context(), w.id, epoch))
	if h := w.holder(); h != "a" {
		t.Errorf("%q holds it", h)
	}

	// One that had to wait for the row finds that it is another's.
	tx, err := w.pool.Begin(t.Context())
	must(t, err)
	_, err = tx.Exec(t.Context(), past, resource(w.id))
	must(t, err)
	waited := make(chan error, 1)
	go func() { waited <- a.renewLease(t.Context(), w.id, epoch) }()
	eventually(t, "it waits", func() bool {
		var n int
		must(t, w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n))
		return n == 1
	})
	_, err = tx.Exec(t.Context(), `UPDATE rehome_control.leases SET holder = 'b', epoch = epoch + 1, expires_at = now() + interval '1 minute' WHERE resource = $1`, resource(w.id))
	must(t, err)
	must(t, tx.Commit(t.Context()))
	if err := <-waited; !errors.Is(err, replicator.ErrFenced) {
		t.Errorf("of another's lease: %v", err)
	}
	must(t, b.renewLease(t.Context(), w.id, epoch+1))
	must(t, pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error { // nothing of it stays with the session
		var v string
		if err := tx.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&v); err != nil || v != "on" {
			t.Errorf("synchronous_commit is %s, %v", v, err)
		}
		return nil
	}))
}
