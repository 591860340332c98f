package gate

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// The order in which one LOCK statement takes its tables decides whether it can succeed beside busy writers. A
// transaction takes its tables one after the other; whoever locks a late one first stops transactions that still hold the
// early ones, and then waits for them in vain until the statement times out. Locked in the writers' own order, the first
// lock is granted when the transactions in flight have ended, and all others at once.
//
// That order is not known, but it can be seen: a table that is taken early is held by more of the transactions in flight
// than one that is taken late. So the locks held are counted now and then, and the tables that are held most go first.

const (
	// heatLooks and heatPause: how often and at which distance the locks are looked at before the first try: long enough
	// to meet transactions at every stage.
	heatLooks, heatPause = 12, 8 * time.Millisecond
	// shuffleFrom is the try from which every second order is left to chance: transactions may take the same tables in
	// different orders, and then no single order is right for long.
	shuffleFrom = 4
)

const lookAtLocks = `
SELECT relation, count(*) FROM pg_catalog.pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
GROUP BY relation`

// feel counts which tables writers hold just now, on the second session.
func (a *Attempt) feel(ctx context.Context) error {
	rows, err := a.second.Query(ctx, lookAtLocks)
	if err != nil {
		return fmt.Errorf("look at the writers' locks: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var oid uint32
		var n int
		if err := rows.Scan(&oid, &n); err != nil {
			return fmt.Errorf("look at the writers' locks: %w", err)
		}
		a.heat[oid] += n
	}
	return rows.Err()
}

// feelFor looks at the locks for a while.
func (a *Attempt) feelFor(ctx context.Context, looks int) error {
	if a.heat == nil {
		a.heat = map[uint32]int{}
	}
	for range looks {
		if err := a.feel(ctx); err != nil {
			return err
		}
		if err := sleep(ctx, jitter(heatPause)); err != nil {
			return err
		}
	}
	return nil
}

// order sorts the tables for the next try: roots before leaves always, and the most held ones first.
func (a *Attempt) order() {
	if a.tries >= shuffleFrom && a.tries%2 == 0 {
		rand.Shuffle(len(a.tables), func(i, j int) { a.tables[i], a.tables[j] = a.tables[j], a.tables[i] }) //nolint:gosec // an order needs no secrecy
		slices.SortStableFunc(a.tables, func(x, y Table) int { return cmp.Compare(x.depth, y.depth) })
		return
	}
	slices.SortStableFunc(a.tables, func(x, y Table) int {
		return cmp.Or(cmp.Compare(x.depth, y.depth), cmp.Compare(a.heat[y.OID], a.heat[x.OID]))
	})
}
