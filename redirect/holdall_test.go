package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// another makes one more gateway of the same installation. Its pool may be replaced.
func (b *bundle) another(t *testing.T, name string, change func(*Config)) *bundle {
	t.Helper()
	c := Config{Pool: b.pool, Server: name}
	if change != nil {
		change(&c)
	}
	o := &bundle{Gateway: New(c), pool: b.pool, clock: b.clock, http: b.http}
	must(t, o.Reload(t.Context()))
	o.srv = b.serve(t, o.Gateway)
	return o
}

// moving records a replication into a database, so that it counts as being moved.
func (b *bundle) moving(t *testing.T, database, source string) (id string) {
	t.Helper()
	id = "r" + database
	b.exec(t, `INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch, source_database)
		VALUES ($1, $2, '', '', '', '{}', '{}', 'in_sync', '', '', 1, $3)`, id, database, source)
	return id
}

// bodies is an application that keeps what it was sent.
type bodies struct {
	mu   sync.Mutex
	got  []string
	name string
}

func (s *bodies) serve(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut short
	}
	s.mu.Lock()
	s.got = append(s.got, string(raw))
	s.mu.Unlock()
	_, _ = io.WriteString(w, s.name)
}

func (s *bodies) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.got))
}

// 200 requests wait in two gateways, and 20 clients more that leave. All that stay land on the new side, once and whole;
// of those that left the applications see nothing. After a rollback the next ones land on the old side.
func TestHeldRequestsLandOnTheNewSide(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil })
	b.run(t)
	two := b.another(t, "two", nil)
	two.run(t)
	before, after := &bodies{name: "old"}, &bodies{name: "new"}
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, source_upstream_url, upstream_url, placement_epoch) VALUES ('acme', 'sharded', $1, $2, 1)`, app(t, before.serve).URL, app(t, after.serve).URL)
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, upstream_url) VALUES ('hosted', 'adopted', $1)`, app(t, before.serve).URL)
	id := b.moving(t, "acme", "hosted")
	must(t, b.Reload(t.Context()))
	must(t, two.Reload(t.Context()))

	moves := []struct {
		target bool
		lands  *bodies
		other  *bodies
	}{{true, after, before}, {false, before, after}}
	for round, move := range moves {
		attempt, epoch := fmt.Sprintf("attempt%d", round), int64(round+1)
		began := time.Now()
		release, culprits, err := b.Hold(t.Context(), "acme", attempt, time.Now().Add(time.Minute))
		must(t, err)
		t.Logf("held by both gateways within %s", time.Since(began))
		if len(culprits) > 0 {
			t.Errorf("culprits: %s", culprits)
		}
		move.lands.got, move.other.got = nil, nil
		gates := []*bundle{b, two}
		names := []string{"acme", "hosted"}
		var g errgroup.Group
		var want []string
		for i := range 200 {
			body := fmt.Sprintf("%d %d %s", round, i, strings.Repeat("x", i*500))
			want = append(want, body)
			g.Go(func() error {
				a, err := gates[i%2].try(t.Context(), "POST", "/"+names[i/2%2]+"/x", strings.NewReader(body))
				if err == nil && (a.status != 200 || a.body != move.lands.name) {
					err = fmt.Errorf("request %d: %d %s", i, a.status, a.body)
				}
				return err
			})
		}
		ctx, leave := context.WithCancel(t.Context())
		var left sync.WaitGroup
		for i := range 20 {
			left.Go(func() {
				_, _ = gates[i%2].try(ctx, "POST", "/acme/left", strings.NewReader("left"+strings.Repeat("y", i*20000)))
			})
		}
		eventually(t, "all wait", func() bool { return b.holds.held()+two.holds.held() == 220 })
		leave()
		left.Wait()
		must(t, b.Switch(t.Context(), "acme", id, epoch, move.target, attempt))
		release() // it is ended already
		must(t, g.Wait())
		slices.Sort(want)
		if d := cmp.Diff(want, move.lands.seen()); d != "" {
			t.Errorf("round %d: what landed: %s", round, d)
		}
		if other := move.other.seen(); len(other) > 0 {
			t.Errorf("round %d: %d requests at the other side", round, len(other))
		}
		eventually(t, "nobody waits", func() bool { return b.holds.held()+two.holds.held() == 0 })
	}
	// A late word of the former decision changes nothing.
	must(t, two.Switch(t.Context(), "acme", id, 1, true))
	if a := two.do(t, "GET", "/acme/x"); a.body != "old" {
		t.Errorf("%+v", a)
	}
}

// Requests that may write and came before the hold end before it is acknowledged; reading ones are not waited for.
func TestHoldWaitsForEarlierWrites(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil; c.DrainHeld = 10 * time.Second })
	b.run(t)
	two := b.another(t, "two", func(c *Config) { c.DrainHeld = 10 * time.Second })
	two.run(t)
	arrived, goOn := make(chan string, 4), make(chan struct{})
	b.database(t, "acme", app(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.Method
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
	}).URL)
	must(t, two.Reload(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, r := range []struct {
		at     *bundle
		method string
	}{{two, "POST"}, {b, "GET"}, {two, "GET"}} {
		wg.Go(func() { _, _ = r.at.try(ctx, r.method, "/acme/slow", nil) })
		<-arrived
	}
	held := make(chan []string, 1)
	go func() {
		release, culprits, err := b.Hold(ctx, "acme", "a", time.Now().Add(time.Minute))
		if err == nil {
			release()
		}
		held <- culprits
	}()
	eventually(t, "it is held", func() bool { return two.holds.left("acme") > 0 })
	select {
	case <-held:
		t.Error("acknowledged while an earlier request may still write")
	case <-time.After(300 * time.Millisecond):
	}
	close(goOn) // the readers' as well, but they were not waited for: see below
	if c := <-held; len(c) > 0 {
		t.Errorf("culprits: %s", c)
	}

	// Readers that do not end delay nothing; writers that do not end delay it at most so long, and are named.
	must(t, two.Switch(t.Context(), "acme", "", 1, true))
	two.cfg.DrainHeld = 100 * time.Millisecond
	goOn = make(chan struct{})
	wg.Go(func() { _, _ = b.try(ctx, "GET", "/acme/slow", nil) })
	<-arrived
	began := time.Now()
	b.hold(t, "acme", time.Now().Add(time.Minute))()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	wg.Go(func() { _, _ = two.try(ctx, "POST", "/acme/slow", nil) })
	<-arrived
	release, culprits, err := b.Hold(ctx, "acme", "a", time.Now().Add(time.Minute))
	must(t, err)
	release()
	if len(culprits) != 1 || culprits[0] != "gateway two (1 requests from before the hold still ran)" {
		t.Errorf("culprits: %s", culprits)
	}
}

// A gateway that lives by its lease and says nothing delays a hold until the lease is over, or the deadline comes, and is
// named.
func TestSilentGateway(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil })
	b.run(t)
	b.database(t, "acme", app(t, nil).URL)
	dead := func(lease time.Duration) {
		t.Helper()
		b.exec(t, `INSERT INTO rehome_control.gateways (server, seen_at, lease_expires_at) VALUES ('dead', clock_timestamp() - interval '1 second', clock_timestamp() + make_interval(secs => $1))
			ON CONFLICT (server) DO UPDATE SET lease_expires_at = excluded.lease_expires_at`, lease.Seconds())
	}
	dead(500 * time.Millisecond)
	began := time.Now()
	release, culprits, err := b.Hold(t.Context(), "acme", "a", time.Now().Add(time.Minute))
	must(t, err)
	if took := time.Since(began); took < 400*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(culprits) != 1 || !strings.HasPrefix(culprits[0], "gateway dead (last seen 1.") {
		t.Errorf("culprits: %s", culprits)
	}
	release()

	dead(time.Hour)
	why := errors.New("the maximum pause is over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, why)
	defer cancel()
	_, culprits, err = b.Hold(ctx, "acme", "b", time.Now().Add(time.Minute))
	if !errors.Is(err, why) || len(culprits) != 1 || !strings.HasPrefix(culprits[0], "gateway dead (last seen ") {
		t.Errorf("%v, culprits: %s", err, culprits)
	}
	if a := b.do(t, "GET", "/acme/x"); a.status != 200 { // nothing is held
		t.Errorf("%+v", a)
	}
}

// A gateway that loses the control database keeps requests of databases that are being moved waiting, for a bounded time,
// and serves all others. When the control database is back, they go on, by the routes of then.
func TestGatewayWithoutLeaseClosesItsGates(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil })
	b.run(t)
	role := "gateway_" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "_"))
	b.exec(t, `CREATE ROLE `+role+` LOGIN SUPERUSER PASSWORD 'gateway'`)
	t.Cleanup(func() { _, _ = b.pool.Exec(context.Background(), `DROP ROLE `+role) })
	cfg := b.pool.Config()
	cfg.ConnConfig.User, cfg.ConnConfig.Password = role, "gateway"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	t.Cleanup(pool.Close)
	before, after := &bodies{name: "old"}, &bodies{name: "new"}
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, source_upstream_url, upstream_url, placement_epoch) VALUES ('acme', 'sharded', $1, $2, 1)`, app(t, before.serve).URL, app(t, after.serve).URL)
	id := b.moving(t, "acme", "")
	b.database(t, "other", app(t, nil).URL)
	two := b.another(t, "two", func(c *Config) { c.Pool = pool; c.MaxWait = time.Minute })
	two.run(t)
	if a := two.do(t, "POST", "/acme/x"); a.body != "old" {
		t.Fatalf("%+v", a)
	}

	b.exec(t, `ALTER ROLE `+role+` NOLOGIN`)
	b.exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, role)
	eventually(t, "its lease is over", func() bool { return two.closed("acme") != nil })
	began := time.Now()
	release, _, err := b.Hold(t.Context(), "acme", "a", time.Now().Add(time.Minute)) // nobody waits for it any more
	must(t, err)
	if took := time.Since(began); took > leaseTime {
		t.Errorf("the hold took %s", took)
	}
	var wg errgroup.Group
	wg.Go(func() error {
		a, err := two.try(t.Context(), "POST", "/acme/x", strings.NewReader("late"))
		if err == nil && (a.status != 200 || a.body != "new") {
			err = fmt.Errorf("%d %s", a.status, a.body)
		}
		return err
	})
	eventually(t, "it waits", func() bool { return two.holds.held() == 1 })
	if a := two.do(t, "GET", "/other/x"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	must(t, b.Switch(t.Context(), "acme", id, 1, true, "a"))
	release()
	if a := b.do(t, "POST", "/acme/x"); a.body != "new" {
		t.Errorf("%+v", a)
	}
	two.cfg.MaxWait = 200 * time.Millisecond
	if a := two.do(t, "POST", "/acme/x"); a.status != 503 || a.prob.Code != "held-too-long" || a.header.Get("Retry-After") == "" {
		t.Errorf("%+v", a)
	}
	b.exec(t, `ALTER ROLE `+role+` LOGIN`)
	must(t, wg.Wait())
}

// A hold whose coordinator died ends by its time, and the held go by routes that were read after that.
func TestHoldThatNobodyEnds(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil; c.RefreshEvery = time.Hour })
	before, after := &bodies{name: "old"}, &bodies{name: "new"}
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, source_upstream_url, upstream_url, placement_epoch) VALUES ('acme', 'sharded', $1, $2, 1)`, app(t, before.serve).URL, app(t, after.serve).URL)
	must(t, b.Reload(t.Context()))
	b.hold(t, "acme", time.Now().Add(500*time.Millisecond))
	// Without a NOTIFY: nobody hears of it.
	b.exec(t, `INSERT INTO rehome_control.routes (database, epoch, side) VALUES ('acme', 7, 'target')`)
	began := time.Now()
	a := b.do(t, "POST", "/acme/x")
	if took := time.Since(began); a.body != "new" || took < 300*time.Millisecond {
		t.Errorf("%s: %+v", took, a)
	}
	if got := before.seen(); len(got) > 0 {
		t.Errorf("%d requests at the old side", len(got))
	}
}

// TestHoldCost measures what acknowledging takes, since it is within the pause.
func TestHoldCost(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil })
	b.run(t)
	b.database(t, "acme", app(t, nil).URL)
	for _, name := range []string{"two", "three"} {
		b.another(t, name, nil).run(t)
	}
	var all []time.Duration
	for i := range 50 {
		began := time.Now()
		release, culprits, err := b.Hold(t.Context(), "acme", fmt.Sprint("a", i), time.Now().Add(time.Minute))
		all = append(all, time.Since(began))
		must(t, err)
		if len(culprits) > 0 {
			t.Errorf("culprits: %s", culprits)
		}
		release()
	}
	slices.Sort(all)
	t.Logf("acknowledged by three gateways: p50 %s, p95 %s, max %s", all[25], all[47], all[49])
	if all[25] > 250*time.Millisecond { // busy machines are slow, but this is not a matter of polling
		t.Errorf("half of all holds took longer than %s", all[25])
	}
}
