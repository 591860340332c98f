package redirect

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// route is what the gateway knows of a database. It is immutable.
type route struct {
	name     string
	state    string // "" where only a redirect is left
	ready    bool   // false while the database is being created
	moving   bool   // a replication of it has not ended: it may be held
	epoch    int64  // of the gate whose decision the upstream follows; 0: none was made
	upstream *url.URL
	redirect *Redirect
	target   *url.URL // of the redirect
}

// moved reports whether a redirect is in force at now.
func (r *route) moved(now time.Time) bool {
	return r.redirect != nil && (r.redirect.TombstoneUntil == nil || now.Before(*r.redirect.TombstoneUntil))
}

// gone reports whether nothing will ever be here again.
func (r *route) gone(now time.Time) bool {
	if r.redirect != nil && r.redirect.TombstoneUntil != nil && !now.Before(*r.redirect.TombstoneUntil) {
		return true
	}
	return r.redirect == nil && (r.state == "deleted" || r.state == "purged")
}

// routesQuery reads databases and redirects. Where a cutover moves a database, its clients go to source_upstream_url before
// and to upstream_url after it; a database that is the source of another's replication hands its clients on to that one.
const routesQuery = `SELECT COALESCE(d.name, r.database), COALESCE(d.state, ''), COALESCE(d.kind = 'adopted' OR d.placement_epoch > 0, true),
		COALESCE(EXISTS (SELECT FROM rehome_control.replications p WHERE (p.database = d.name OR p.source_database = d.name) AND p.phase NOT IN ('completed', 'cancelled')), false),
		COALESCE(s.epoch, m.epoch, 0),
		COALESCE(CASE
			WHEN m.upstream_url <> '' THEN m.upstream_url
			WHEN d.source_upstream_url <> '' AND COALESCE(s.side, 'source') = 'source' THEN d.source_upstream_url
			ELSE d.upstream_url END, ''),
		r.target_url, r.mode, r.permanent, r.created_at, r.created_by, r.tombstone_until
	FROM rehome_control.databases d
	FULL JOIN rehome_control.redirects r ON r.database = d.name
	LEFT JOIN rehome_control.routes s ON s.database = d.name
	LEFT JOIN LATERAL (
		SELECT t.upstream_url, ts.epoch FROM rehome_control.replications p
		JOIN rehome_control.databases t ON t.name = p.database
		JOIN rehome_control.routes ts ON ts.database = p.database AND ts.replication = p.id
		WHERE p.source_database = d.name AND ts.side = 'target'
		ORDER BY p.created_at DESC LIMIT 1) m ON true`

// liveHold is a hold as the control database has it, by one of the names that clients use.
type liveHold struct {
	id, name string
	until    time.Time // by this process' clock
}

// untilOf is the end of every database's pause.
func untilOf(live []liveHold) map[string]time.Time {
	out := map[string]time.Time{}
	for _, l := range live {
		if l.until.After(out[l.name]) {
			out[l.name] = l.until
		}
	}
	return out
}

// queueHolds reads the holds. The caller must have looked at the clock before.
func queueHolds(b *pgx.Batch, asked time.Time, into *[]liveHold) {
	b.Queue(heldNames + ` SELECT id, name, extract(epoch FROM until - clock_timestamp())::float8 FROM held`).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l liveHold, err error) {
			var left float64
			err = row.Scan(&l.id, &l.name, &left)
			l.until = asked.Add(time.Duration(left * float64(time.Second)))
			return l, err
		})
		*into = stillHeld(*into, asked)
		return err
	})
}

// stillHeld are the holds that were not over when they were asked for. One may end while the query runs, after it was found
// live: it would be in force, in the past, until the holds are next read, and who waits for it would ask for ever what the
// latest reading says of it.
func stillHeld(live []liveHold, asked time.Time) []liveHold {
	return slices.DeleteFunc(live, func(l liveHold) bool { return !l.until.After(asked) })
}

// load reads all routes, and before them, in the same round trip, the holds: a hold that is over has its decision's
// routes in force.
func (g *Gateway) load(ctx context.Context) (t *table, live []liveHold, err error) {
	t = &table{domains: map[string]string{}}
	b := &pgx.Batch{}
	queueHolds(b, time.Now(), &live)
	b.Queue(routesQuery).Query(func(rows pgx.Rows) (err error) {
		t.routes, err = g.readRoutes(ctx, rows)
		return err
	})
	b.Queue(`SELECT domain, database FROM rehome_control.domains`).Query(func(rows pgx.Rows) error {
		var domain, database string
		_, err := pgx.ForEachRow(rows, []any{&domain, &database}, func() error { t.domains[domain] = database; return nil })
		return err
	})
	if err := g.ask(ctx, b); err != nil {
		return nil, nil, fmt.Errorf("read routes: %w", err)
	}
	return t, live, nil
}

// ask reads for as long as a lease at most: who reads has all others wait, and a session whose peer vanished must not keep this
// gateway deaf, which goes on promising that it hears.
func (g *Gateway) ask(ctx context.Context, b *pgx.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTime)
	defer cancel()
	return g.cfg.Pool.SendBatch(ctx, b).Close()
}

func (g *Gateway) readRoutes(ctx context.Context, rows pgx.Rows) (map[string]*route, error) {
	out := map[string]*route{}
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		var r route
		var upstream string
		var to, mode, by *string
		var permanent *bool
		var at, until *time.Time
		if err := row.Scan(&r.name, &r.state, &r.ready, &r.moving, &r.epoch, &upstream, &to, &mode, &permanent, &at, &by, &until); err != nil {
			return struct{}{}, err
		}
		if upstream != "" {
			if u, err := url.Parse(upstream); err == nil && u.Host != "" {
				r.upstream = u
			} else {
				g.cfg.Logger.WarnContext(ctx, "upstream is not a url", "database", r.name)
			}
		}
		if to != nil {
			u, err := url.Parse(*to)
			if err != nil || u.Host == "" {
				g.cfg.Logger.WarnContext(ctx, "redirect is not a url", "database", r.name)
			} else {
				r.target = u
				r.redirect = &Redirect{Database: r.name, To: *to, Mode: Mode(*mode), Permanent: *permanent, CreatedAt: *at, CreatedBy: *by, TombstoneUntil: until}
			}
		}
		out[r.name] = &r
		return struct{}{}, nil
	})
	return out, err
}

// Reload reads routes and holds now, lets held requests go whose hold is over, and tells WebSockets whose database moved
// or stopped.
func (g *Gateway) Reload(ctx context.Context) error {
	_, err := g.reload(ctx)
	return err
}

func (g *Gateway) reload(ctx context.Context) ([]liveHold, error) {
	g.reloading.Lock() // or an older reading could replace a newer one
	defer g.reloading.Unlock()
	return g.reloadLocked(ctx)
}

func (g *Gateway) reloadLocked(ctx context.Context) (live []liveHold, err error) {
	defer func() {
		if err != nil {
			g.metrics.reloadErrors.Inc()
			g.failedAt = time.Now()
		}
	}()
	// First the lease, then the holds: those who begin one afterwards wait for this gateway.
	if !g.lease.believed(time.Now()) {
		if err = g.renew(ctx); err != nil {
			return nil, err
		}
	}
	asked := time.Now()
	t, live, err := g.load(ctx)
	if err != nil {
		return nil, err
	}
	g.routes.Store(t) // before any hold ends
	g.loadedAt = asked
	g.metrics.reloaded.SetToCurrentTime()
	for _, name := range g.holds.apply(untilOf(live)) {
		g.sockets.announce(name)
	}
	g.sockets.follow(t, g.cfg)
	g.lease.read(asked, time.Now())
	return live, nil
}

// look reads the holds. Routes are read with them if a hold is over.
func (g *Gateway) look(ctx context.Context) ([]liveHold, error) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	var live []liveHold
	b := &pgx.Batch{}
	queueHolds(b, time.Now(), &live)
	if err := g.ask(ctx, b); err != nil {
		return nil, fmt.Errorf("read holds: %w", err)
	}
	if until := untilOf(live); !g.holds.ends(until) {
		for _, name := range g.holds.apply(until) {
			g.sockets.announce(name)
		}
		return live, nil
	}
	return g.reloadLocked(ctx)
}

// freshen makes sure that routes and holds are not older than since. One request asks for all that wait.
func (g *Gateway) freshen(ctx context.Context, since time.Time) error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	if g.loadedAt.After(since) {
		return nil
	}
	if time.Since(g.failedAt) < freshenAgain {
		return errNotFresh
	}
	_, err := g.reloadLocked(ctx)
	return err
}

var errNotFresh = errors.New("the control database did not answer just now")

func (g *Gateway) route(name string) *route {
	if t := g.routes.Load(); t != nil {
		return t.routes[name]
	}
	return nil
}

// watch keeps the routes fresh until ctx ends: by NOTIFY, and at least every RefreshEvery.
func (g *Gateway) watch(ctx context.Context, grp *errgroup.Group) error {
	for ctx.Err() == nil {
		if err := g.listen(ctx, grp); err != nil && ctx.Err() == nil {
			g.cfg.Logger.WarnContext(ctx, "routes cannot be read, the last ones stay in force", "error", err)
			wait(ctx, g.cfg.RefreshEvery/2+rand.N(g.cfg.RefreshEvery)) //nolint:gosec // jitter needs no secrecy
		}
	}
	return nil
}

// listen holds one session that listens, until it breaks.
func (g *Gateway) listen(ctx context.Context, grp *errgroup.Group) error {
	acquired, err := g.cfg.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("listen for routes: %w", err)
	}
	conn := acquired.Hijack() // a session that listens must not go back to the pool
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	for _, channel := range []string{RoutesChannel, HoldsChannel, acksChannel} {
		if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
			return fmt.Errorf("listen for routes: %w", err)
		}
	}
	read := g.reload // first: what came before LISTEN
	for {
		if read != nil {
			live, err := read(ctx)
			if err != nil {
				return err
			}
			g.acknowledge(ctx, grp, live)
		}
		wctx, cancel := context.WithTimeout(ctx, g.cfg.RefreshEvery)
		n, err := conn.WaitForNotification(wctx)
		timeout := wctx.Err() != nil
		cancel()
		read = g.reload
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !timeout:
			return fmt.Errorf("listen for routes: %w", err)
		case err == nil && n.Channel == HoldsChannel:
			read = g.look
		case err == nil && n.Channel == acksChannel:
			read = nil
			g.acks.tell(n.Payload)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// SetRedirect sets a database's redirect, or changes it; a tombstone's end stays. This gateway follows at once, the
// others by NOTIFY. That the old side no longer takes writes is the caller's to check.
func (g *Gateway) SetRedirect(ctx context.Context, r Redirect) (Redirect, error) {
	if r.Mode == "" {
		r.Mode = ModeRedirect
	}
	if r.Mode != ModeRedirect && r.Mode != ModeProxy && r.Mode != ModeRefuse {
		return Redirect{}, tenant.Errorf(tenant.KindInvalid, "bad-redirect-mode", "use redirect, proxy or refuse", "%q is not a mode of a redirect", r.Mode)
	}
	to, err := tenant.ParseDatabaseURL(r.To)
	if err != nil {
		return Redirect{}, err
	}
	r.To = to.String()
	err = pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `INSERT INTO rehome_control.redirects AS r (database, target_url, mode, permanent, created_at, created_by)
			SELECT d.name, $2, $3, $4, $5, $6 FROM rehome_control.databases d WHERE d.name = $1
			ON CONFLICT (database) DO UPDATE SET target_url = $2, mode = $3, permanent = $4, created_at = $5, created_by = $6
			RETURNING created_at, tombstone_until`, r.Database, r.To, r.Mode, r.Permanent, g.cfg.Now(), r.CreatedBy).Scan(&r.CreatedAt, &r.TombstoneUntil)
		if err != nil {
			return err
		}
		return notify(ctx, tx)
	})
	if isNoRows(err) {
		return Redirect{}, tenant.Errorf(tenant.KindNotFound, "database-unknown", "list them with: rehome databases", "there is no database %q", r.Database)
	}
	if err != nil {
		return Redirect{}, fmt.Errorf("record the redirect of %s: %w", r.Database, err)
	}
	g.follow(ctx)
	return r, nil
}

// ClearRedirect takes a redirect back.
func (g *Gateway) ClearRedirect(ctx context.Context, database string) error {
	return g.changeRedirect(ctx, database, `DELETE FROM rehome_control.redirects WHERE database = $1`)
}

// SetTombstone says until when a redirect answers; afterwards it is 410.
func (g *Gateway) SetTombstone(ctx context.Context, database string, until time.Time) error {
	return g.changeRedirect(ctx, database, `UPDATE rehome_control.redirects SET tombstone_until = $2 WHERE database = $1`, until)
}

func (g *Gateway) changeRedirect(ctx context.Context, database, sql string, args ...any) error {
	err := pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, append([]any{database}, args...)...)
		if err != nil {
			return fmt.Errorf("change the redirect of %s: %w", database, err)
		}
		if tag.RowsAffected() == 0 {
			return noRedirect(database)
		}
		return notify(ctx, tx)
	})
	if err != nil {
		return err
	}
	g.follow(ctx)
	return nil
}

// follow lets this gateway see a committed change before its answer, as all gateways will. That it could not is no failure of
// the change: a second try would find it made.
func (g *Gateway) follow(ctx context.Context) {
	if err := g.Reload(ctx); err != nil {
		g.cfg.Logger.WarnContext(ctx, "reload the routes", "error", err)
	}
}

// RedirectOf reads a redirect from the control database. KindNotFound if there is none.
func (g *Gateway) RedirectOf(ctx context.Context, database string) (Redirect, error) {
	r := Redirect{Database: database}
	err := g.cfg.Pool.QueryRow(ctx, `SELECT target_url, mode, permanent, created_at, created_by, tombstone_until FROM rehome_control.redirects WHERE database = $1`, database).
		Scan(&r.To, &r.Mode, &r.Permanent, &r.CreatedAt, &r.CreatedBy, &r.TombstoneUntil)
	if isNoRows(err) {
		return Redirect{}, noRedirect(database)
	}
	if err != nil {
		return Redirect{}, fmt.Errorf("read the redirect of %s: %w", database, err)
	}
	return r, nil
}

func noRedirect(database string) error {
	return tenant.Errorf(tenant.KindNotFound, "no-redirect", "set one with: rehome redirect --from … --to …", "database %q has no redirect", database)
}

func notify(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `SELECT pg_notify($1, '')`, RoutesChannel); err != nil {
		return fmt.Errorf("tell the gateways: %w", err)
	}
	return nil
}
