package gate

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// The order in which one LOCK statement takes its tables decides whether it can succeed beside busy writers. A
// transaction takes its tables one after the other; whoever locks a late one first stops transactions that still hold the
// early ones, and then waits for them in vain until the statement times out. Locked in the writers' own order, the first
// lock is granted when the transactions in flight have ended, and all others at once.
//
// That order is not known, but it can be seen: a table that is taken early is held by more of the transactions in flight
// than one that is taken late. So the locks held are counted now and then, and the tables that are held most go first.
// Where the counts say nothing, a try that waits in vain does: a writer that holds one table and waits for another takes
// them in that order. What was seen so goes before the counts, and a try that stopped whom it waits for is ended at once.

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

// seenOrder lists pairs of tables of which a writer that waits holds the first and wants the second. The last column says
// that our session waits for it at the first and has the second: neither goes on by itself.
const seenOrder = `
SELECT h.relation, w.relation,
       EXISTS (SELECT FROM pg_catalog.pg_locks o WHERE o.pid = $1::int AND o.locktype = 'relation' AND o.relation = h.relation AND o.database = h.database AND NOT o.granted)
   AND EXISTS (SELECT FROM pg_catalog.pg_locks o WHERE o.pid = $1::int AND o.locktype = 'relation' AND o.relation = w.relation AND o.database = w.database AND o.granted
                 AND o.mode = 'ShareRowExclusiveLock')
FROM pg_catalog.pg_locks w JOIN pg_catalog.pg_locks h ON h.pid = w.pid AND h.database = w.database
WHERE w.locktype = 'relation' AND w.mode = 'RowExclusiveLock' AND NOT w.granted AND w.pid <> $1::int
  AND h.locktype = 'relation' AND h.mode = 'RowExclusiveLock' AND h.granted
  AND w.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
GROUP BY 1, 2, h.database, w.database`

// pair is two tables that some writer takes in this order.
type pair struct{ first, second uint32 }

// learn notes in which order writers take their tables, as their waiting shows, on the second session. stuck: our LOCK
// statement waits for a writer that it stops itself.
func (a *Attempt) learn(ctx context.Context) (stuck bool, err error) {
	rows, err := a.second.Query(ctx, seenOrder, int32(a.pid))
	if err != nil {
		return false, fmt.Errorf("look at the writers' order: %w", err)
	}
	var p pair
	var ours bool
	_, err = pgx.ForEachRow(rows, []any{&p.first, &p.second, &ours}, func() error {
		if !slices.Contains(a.pairs, p) {
			a.pairs = append(a.pairs, p)
		}
		stuck = stuck || ours
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look at the writers' order: %w", err)
	}
	return stuck, nil
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
	a.obey()
}

// obey puts the first table of each learned pair before the second, among those of one depth. Writers that contradict each
// other leave some pair as it is.
func (a *Attempt) obey() {
	at := func(oid uint32) int {
		return slices.IndexFunc(a.tables, func(t Table) bool { return t.OID == oid })
	}
	for range a.pairs { // a chain of pairs is in order after as many rounds as it has links
		moved := false
		for _, p := range a.pairs {
			i, j := at(p.first), at(p.second)
			if i < 0 || j < 0 || i < j || a.tables[i].depth != a.tables[j].depth {
				continue
			}
			t := a.tables[i]
			a.tables = slices.Insert(slices.Delete(a.tables, i, i+1), j, t)
			moved = true
		}
		if !moved {
			return
		}
	}
}
