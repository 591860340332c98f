package redirect

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	// HoldsChannel is the NOTIFY channel that tells gateways that holds began or ended.
	HoldsChannel = "rehome_holds"
	// acksChannel tells whoever holds that a gateway has acknowledged; the payload is the hold's id.
	acksChannel = "rehome_hold_acks"
	// askAgain is how late an acknowledgement is noticed whose NOTIFY was lost.
	askAgain = 50 * time.Millisecond
	// releaseWithin bounds the end of a hold in the control database; after it the hold ends by its time.
	releaseWithin = 5 * time.Second
)

// Hold makes new requests of a database wait in every gateway of the installation until release is called or until has
// come, at most MaxHold from now. It returns when every gateway with a live lease has acknowledged that it holds and that
// the requests from before, as far as they may write, have ended (at most DrainHeld is waited for those), or when the
// lease of one that says nothing has ended: that one then keeps requests waiting by itself. WebSockets are told that a
// move is under way.
//
// The culprits are gateways that were waited for in vain, and such whose earlier requests had not ended. With an error
// nothing is held; a context that ended is reported with its cause, after the culprits were named.
func (g *Gateway) Hold(ctx context.Context, database, attempt string, until time.Time) (release func(), culprits []string, err error) {
	id := strings.ToLower(rand.Text()[:16])
	most := min(until.Sub(g.cfg.Now()), g.cfg.MaxHold)
	acked := g.acks.subscribe(id)
	defer g.acks.forget(id)
	names, err := g.begin(ctx, id, database, attempt, most)
	if err != nil {
		return nil, nil, err
	}
	release = g.releaser(ctx, id)
	var grp errgroup.Group
	var running int
	grp.Go(func() error {
		running = g.drain(ctx, names)
		return nil
	})
	culprits, err = g.awaitAcks(ctx, id, acked)
	_ = grp.Wait()
	if running > 0 {
		culprits = append(culprits, runningCulprit(g.cfg.Server, running))
	}
	if err != nil {
		release()
		return nil, culprits, err
	}
	return release, culprits, nil
}

// begin records a hold and holds in this process, as one step in the eyes of Reload.
func (g *Gateway) begin(ctx context.Context, id, database, attempt string, most time.Duration) (names []string, err error) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	asked := time.Now()
	err = pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		// In one round trip; a hold that a crash forgets is a hold that ended.
		b := &pgx.Batch{}
		b.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
		b.Queue(`DELETE FROM rehome_control.holds WHERE until < clock_timestamp() - interval '1 hour'`)
		b.Queue(`INSERT INTO rehome_control.holds (id, database, attempt, until) VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))`, id, database, attempt, most.Seconds())
		b.Queue(`SELECT pg_notify($1, '')`, HoldsChannel)
		b.Queue(heldNames+` SELECT name FROM held WHERE id = $1`, id).Query(func(rows pgx.Rows) (err error) {
			names, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", database, err)
	}
	for _, name := range names {
		if g.holds.add(name, asked.Add(most)) {
			g.sockets.announce(name)
		}
	}
	return names, nil
}

// heldNames are the live holds by the names that clients use: the database's, and that of its source where this
// installation has it.
const heldNames = `WITH held AS (
	SELECT h.id, h.database AS name, h.until FROM rehome_control.holds h WHERE h.until > clock_timestamp()
	UNION
	SELECT h.id, r.source_database, h.until FROM rehome_control.holds h JOIN rehome_control.replications r ON r.database = h.database
	WHERE h.until > clock_timestamp() AND r.source_database <> '' AND r.phase NOT IN ('completed', 'cancelled'))`

// drain waits for requests that came before the hold.
func (g *Gateway) drain(ctx context.Context, names []string) int {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.DrainHeld)
	defer cancel()
	return g.holds.drained(ctx, names...)
}

// releaser makes the function that ends a hold. A second call does nothing.
func (g *Gateway) releaser(ctx context.Context, id string) func() {
	ended := false
	return func() {
		if ended {
			return
		}
		ended = true
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWithin)
		defer cancel()
		err := pgx.BeginFunc(rctx, g.cfg.Pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(rctx, `DELETE FROM rehome_control.holds WHERE id = $1`, id)
			if err != nil || tag.RowsAffected() == 0 { // Switch has ended it
				return err
			}
			_, err = tx.Exec(rctx, `SELECT pg_notify($1, '')`, HoldsChannel)
			return err
		})
		if err == nil {
			err = g.Reload(rctx)
		}
		if err != nil {
			g.cfg.Logger.WarnContext(rctx, "a hold could not be ended, it ends by its time", "error", err)
		}
	}
}

// waiting is a gateway that has not acknowledged.
type silentGateway struct {
	server string
	seen   time.Duration // ago
}

func (s silentGateway) String() string {
	return fmt.Sprintf("gateway %s (last seen %s ago)", s.server, s.seen.Round(time.Millisecond))
}

func runningCulprit(server string, n int) string {
	return fmt.Sprintf("gateway %s (%d requests from before the hold still ran)", server, n)
}

// awaitAcks waits until no gateway with a live lease is left that has not acknowledged.
func (g *Gateway) awaitAcks(ctx context.Context, id string, acked <-chan struct{}) (culprits []string, err error) {
	missing := map[string]silentGateway{}
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		pending, acks, err := g.readAcks(ctx, id)
		if err == nil {
			for server := range missing {
				if _, ok := acks[server]; ok {
					delete(missing, server)
				}
			}
			for _, p := range pending {
				missing[p.server] = p
			}
		}
		if ctx.Err() == nil && err == nil && len(pending) == 0 {
			for server, n := range acks {
				if n > 0 {
					culprits = append(culprits, runningCulprit(server, n))
				}
			}
			return named(culprits, missing), nil
		}
		if ctx.Err() == nil && err != nil {
			return named(nil, missing), err
		}
		select {
		case <-ctx.Done():
			return named(nil, missing), fmt.Errorf("wait for the gateways to hold: %w", context.Cause(ctx))
		case <-acked:
		case <-again.C:
		}
	}
}

// named lists culprits in an order that does not change.
func named(culprits []string, missing map[string]silentGateway) []string {
	for _, s := range missing {
		culprits = append(culprits, s.String())
	}
	slices.Sort(culprits)
	return culprits
}

// readAcks returns who has acknowledged a hold, and the live others.
func (g *Gateway) readAcks(ctx context.Context, id string) (pending []silentGateway, acks map[string]int, err error) {
	rows, err := g.cfg.Pool.Query(ctx, `SELECT coalesce(g.server, a.server), a.running, coalesce(extract(epoch FROM clock_timestamp() - g.seen_at), 0)::float8
		FROM (SELECT * FROM rehome_control.gateways WHERE lease_expires_at > clock_timestamp() AND server <> $2) g
		FULL JOIN (SELECT * FROM rehome_control.hold_acks WHERE hold = $1) a ON a.server = g.server`, id, g.cfg.Server)
	if err != nil {
		return nil, nil, fmt.Errorf("ask who holds: %w", err)
	}
	acks = map[string]int{}
	var server string
	var running *int
	var seen float64
	_, err = pgx.ForEachRow(rows, []any{&server, &running, &seen}, func() error {
		if running != nil {
			acks[server] = *running
		} else {
			pending = append(pending, silentGateway{server: server, seen: time.Duration(seen * float64(time.Second))})
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("ask who holds: %w", err)
	}
	return pending, acks, nil
}

// acknowledge answers holds of others, once each: at once where no request from before runs, else when they have ended.
func (g *Gateway) acknowledge(ctx context.Context, grp *errgroup.Group, live []liveHold) {
	byID := map[string][]string{}
	for _, l := range live {
		byID[l.id] = append(byID[l.id], l.name)
	}
	for id, names := range byID {
		if !g.acks.first(id) {
			continue
		}
		grp.Go(func() error {
			running := g.drain(ctx, names)
			actx, cancel := context.WithTimeout(ctx, leaseTime)
			defer cancel()
			err := pgx.BeginFunc(actx, g.cfg.Pool, func(tx pgx.Tx) error {
				b := &pgx.Batch{}
				b.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
				b.Queue(`INSERT INTO rehome_control.hold_acks (hold, server, running) SELECT id, $2, $3 FROM rehome_control.holds WHERE id = $1 ON CONFLICT DO NOTHING`, id, g.cfg.Server, running)
				b.Queue(`SELECT pg_notify($1, $2)`, acksChannel, id)
				return tx.SendBatch(actx, b).Close()
			})
			if err != nil {
				g.acks.again(id) // with the next reading
				if ctx.Err() == nil {
					g.cfg.Logger.WarnContext(ctx, "a hold could not be acknowledged", "error", err)
				}
			}
			return nil
		})
	}
	g.acks.keep(byID)
}
