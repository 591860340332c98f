package redirect

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowRenewals: a lease does not end while each renewal takes over a second and one of five is never answered.
func TestSlowRenewals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l lease
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var mu sync.Mutex
		n, running, most, got := 0, 0, 0, false
		keepRenewed(ctx, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, leaseTime)
			defer cancel()
			mu.Lock()
			n++
			running++
			most = max(most, running)
			hangs := n%5 == 3
			mu.Unlock()
			defer func() {
				mu.Lock()
				running--
				mu.Unlock()
			}()
			asked := time.Now()
			if hangs {
				<-ctx.Done()
				return ctx.Err()
			}
			wait(ctx, 1300*time.Millisecond) // a fake clock's
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			if got && l.lapsed(time.Now()) != nil {
				t.Errorf("the lease ended, renewal %d", n)
			}
			l.renewed(asked, time.Now())
			if !got {
				got = true
				l.read(time.Now(), time.Now())
			}
			return nil
		})
		if n < 60 || running != 0 || most > 4 {
			t.Errorf("%d renewals, %d still running, %d at once", n, running, most)
		}
	})
}

// TestLeaseThatWasLost is there again only with a reading that was asked for after the renewal, whatever the order in which
// renewals are answered.
func TestLeaseThatWasLost(t *testing.T) {
	t.Parallel()
	epoch := time.Now()
	at := func(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }
	var l lease
	is := func(ms int, live bool) {
		t.Helper()
		if got := l.lapsed(at(ms)) == nil; got != live {
			t.Errorf("at %d: live: %v", ms, got)
		}
	}
	is(0, false)
	opened := l.lapsed(at(0))
	l.read(at(0), at(100)) // without a lease it says nothing
	is(100, false)
	l.renewed(at(200), at(1000))
	is(1000, false)
	l.read(at(900), at(1100)) // asked for before
	is(1100, false)
	if isClosed(opened) {
		t.Error("who waits was let go")
	}
	l.read(at(1000), at(1200))
	is(1200, true)
	if !isClosed(opened) {
		t.Error("who waits was forgotten")
	}
	is(3199, true)
	is(3200, false) // counted from before the question

	// Two are under way, and the later is answered first.
	l.renewed(at(1800), at(3000))
	l.renewed(at(1000), at(3100))
	is(4799, true)
	is(4800, false)

	// It ended, if only for a moment: what was read before counts no more, a reading that is under way neither.
	l.renewed(at(4000), at(4800))
	is(4801, false)
	l.read(at(4799), at(4900))
	is(4901, false)
	if !l.believed(at(6999)) || l.believed(at(7000)) {
		t.Error("believed for another time than promised")
	}
	l.renewed(at(5000), at(5100)) // keeps it
	l.read(at(4801), at(7100))
	is(7100, true)
	l.renewed(at(7200), at(10300)) // answered when it is of no use
	l.read(at(10300), at(10300))
	is(10300, false)
}

// TestSlowControlDatabase: a gateway whose renewals take over a second starts, and gets its lease.
func TestSlowControlDatabase(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil })
	b.exec(t, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.2); RETURN NEW; END $$`)
	b.exec(t, `CREATE TRIGGER slow BEFORE INSERT ON rehome_control.gateways FOR EACH STATEMENT EXECUTE FUNCTION slow()`)
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, placement_epoch) VALUES ('acme', 'sharded', 1)`)
	b.moving(t, "acme", "")
	must(t, b.Reload(t.Context()))
	b.run(t)
	eventually(t, "the gateway has a lease", func() bool { return b.closed("acme") == nil })
	// Each renewal promises what it did not take from another: the control database never believes less than the gateway.
	for range 3 {
		b.lease.mu.Lock()
		until := b.lease.until
		b.lease.mu.Unlock()
		var left float64
		now := time.Now()
		must(t, b.pool.QueryRow(t.Context(), `SELECT extract(epoch FROM lease_expires_at - clock_timestamp())::float8 FROM rehome_control.gateways WHERE server = 'one'`).Scan(&left))
		if believed := now.Add(time.Duration(left * float64(time.Second))); believed.Before(until) && time.Since(now) < until.Sub(believed) {
			t.Errorf("the control database ends the lease %s before the gateway does", until.Sub(believed))
		}
		eventually(t, "another renewal", func() bool {
			b.lease.mu.Lock()
			defer b.lease.mu.Unlock()
			return b.lease.until.After(until)
		})
	}
}
