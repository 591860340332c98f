package gate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// Culprit is a session, or a prepared transaction, that a lock waits for.
type Culprit struct {
	PID         int           // 0: a prepared transaction
	Application string        //
	User        string        //
	State       string        // "idle in transaction", "active"; empty: hidden from our role, as are Age and Query
	Age         time.Duration // of its transaction
	Query       string        // its last statement, cut to 200 characters
}

// String is the culprit as reports name it.
func (c Culprit) String() string {
	if c.PID == 0 {
		return fmt.Sprintf("prepared transaction %s (user %s), open for %s", c.Query, c.User, c.Age.Round(time.Second))
	}
	who := c.User
	if c.Application != "" {
		who += ", " + c.Application
	}
	if c.State == "" {
		return fmt.Sprintf("pid %d (%s); what it does is hidden from this role (GRANT pg_read_all_stats shows it)", c.PID, who)
	}
	return fmt.Sprintf("pid %d (%s), %s, transaction open for %s: %s", c.PID, who, c.State, c.Age.Round(100*time.Millisecond), c.statement())
}

// statement is the query on one line. Reports, events and findings carry it, so one that may set a password is left out.
func (c Culprit) statement() string {
	if strings.Contains(strings.ToLower(c.Query), "passw") {
		return "(a statement about a password)"
	}
	return strings.Join(strings.Fields(c.Query), " ")
}

// selectBlockers: who a session waits for. pg_blocking_pids gives 0 for prepared transactions; those that hold any lock in
// this database are named then.
const selectBlockers = `
SELECT a.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, ''),
       extract(epoch FROM coalesce(clock_timestamp() - coalesce(a.xact_start, a.query_start), interval '0'))::float8, left(coalesce(a.query, ''), 200)
FROM unnest(pg_catalog.pg_blocking_pids($1::int)) b(pid) JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
UNION ALL
SELECT 0, '', x.owner::text, 'prepared', extract(epoch FROM clock_timestamp() - x.prepared)::float8, left(x.gid, 200)
FROM pg_catalog.pg_prepared_xacts x
WHERE x.database = current_database() AND 0 = ANY (pg_catalog.pg_blocking_pids($1::int))`

// Blockers names who the session with the process id waits for just now.
func Blockers(ctx context.Context, q Querier, pid uint32) ([]Culprit, error) {
	rows, err := q.Query(ctx, selectBlockers, int32(pid))
	if err != nil {
		return nil, fmt.Errorf("look for who is in the way: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Culprit, error) {
		var c Culprit
		var seconds float64
		err := row.Scan(&c.PID, &c.Application, &c.User, &c.State, &seconds, &c.Query)
		c.Age = time.Duration(seconds * float64(time.Second))
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for who is in the way: %w", err)
	}
	return out, nil
}

// SessionsBlockers names who the sessions of an application in this database wait for just now: the lanes' at a shard.
func SessionsBlockers(ctx context.Context, q Querier, application string) ([]Culprit, error) {
	rows, err := q.Query(ctx, `SELECT pid FROM pg_catalog.pg_stat_activity
		WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'`, application)
	if err != nil {
		return nil, fmt.Errorf("look for who is in the way: %w", err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return nil, fmt.Errorf("look for who is in the way: %w", err)
	}
	var out []Culprit
	for _, pid := range pids {
		found, err := Blockers(ctx, q, uint32(pid))
		if err != nil {
			return nil, err
		}
		out = Blame(out, found)
	}
	return out, nil
}

func (a *Attempt) blockers(ctx context.Context) ([]Culprit, error) {
	return Blockers(ctx, a.second, a.pid)
}

// watch looks, by the second session, at who blocks the fence's statement until stop is called, and cancels the statement
// if they wait for each other; stop waits for the watcher.
func (a *Attempt) watch(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		for {
			select {
			case <-done:
				return nil
			case <-t.C:
			}
			found, err := a.blockers(ctx)
			if err != nil {
				return nil
			}
			a.blame(found)
			if len(found) == 0 {
				continue
			}
			stuck, err := a.learn(ctx)
			if err != nil {
				return nil
			}
			if stuck {
				// It would time out, and writers would wait until then. It ends as by a timeout.
				_, _ = a.second.Exec(ctx, `SELECT pg_catalog.pg_cancel_backend($1::int)`, int32(a.pid))
				return nil
			}
		}
	})
	return func() {
		close(done)
		_ = g.Wait() // the watcher returns no error
	}
}

// blame remembers culprits, the latest look at each.
func (a *Attempt) blame(found []Culprit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.culprits = Blame(a.culprits, found)
}

// Blame adds culprits to a list, the latest look at each, and puts the longest transaction first.
func Blame(list, found []Culprit) []Culprit {
next:
	for _, c := range found {
		for i, old := range list {
			if old.PID == c.PID && (c.PID != 0 || old.Query == c.Query) {
				list[i] = c
				continue next
			}
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b Culprit) int { return cmp.Compare(b.Age, a.Age) })
	return list
}

// Culprits names who was in the way of the locks, the longest transaction first: a writer may be in the way for a moment too.
func (a *Attempt) Culprits() []Culprit {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Culprit(nil), a.culprits...)
}
