package torture

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// Check proves the promises for everything up to now, while the witness goes on writing: one side at a time accepted, as
// the recorded decisions say; every acknowledged write is on the side that has the authority, once, and nothing else is;
// and that side and no other accepts. target says who has the authority by the records, and had it in the beginning
// (before all decisions): from. Nothing may be under way that moves it.
func (w *Witness) Check(ctx context.Context, from, target bool) error {
	w.mu.Lock()
	decisions := slices.Clone(w.decisions)
	w.mu.Unlock()
	writes := w.history() // before the look: what is acknowledged by now must be there
	if err := Authority(from, decisions, writes); err != nil {
		return fmt.Errorf("both sides were open: %w", err)
	}
	if err := w.accepts(ctx, target); err != nil {
		return err
	}
	k, err := w.look(ctx, target)
	if err != nil {
		return err
	}
	w.mu.Lock()
	refused, last := maps.Clone(w.refused), w.last
	w.mu.Unlock()
	return Settled(k, writes, func(id int64) bool { return refused[id] }, func(id int64) bool { return id <= last })
}

// OpenSides asks each side whether it accepts writes; the writes are part of the history.
func (w *Witness) OpenSides(ctx context.Context) (map[string]bool, error) {
	open := map[string]bool{}
	for _, at := range append([]string{AtSource}, slices.Sorted(maps.Keys(w.shards))...) {
		ok, err := w.open(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("ask %s whether it accepts writes: %w", at, err)
		}
		open[at] = ok
	}
	return open, nil
}

func (w *Witness) open(ctx context.Context, at string) (bool, error) {
	conn, err := pgx.Connect(ctx, w.DSN(at).Reveal())
	if err != nil {
		return false, err
	}
	defer hangUp(conn)
	err = w.Put(ctx, conn, at, w.Realm(at))
	if err == ErrRefused { //nolint:errorlint // it is our own, unwrapped
		return false, nil
	}
	return err == nil, err
}

// DSN is how the witness reaches a side.
func (w *Witness) DSN(at string) tenant.DSN {
	if at == AtSource {
		return w.source
	}
	return w.shards[at]
}

// accepts checks that the side with the authority accepts, all of it, and the other does not.
func (w *Witness) accepts(ctx context.Context, target bool) error {
	open, err := w.OpenSides(ctx)
	if err != nil {
		return err
	}
	for at, is := range open {
		if is != ((at != AtSource) == target) {
			return fmt.Errorf("the %s has the authority, and %s accepts writes: %v", sideName(target), at, is)
		}
	}
	return nil
}

// look reads the side with the authority. Each database is read under one snapshot, in which rows and tallies agree also
// while clients write.
func (w *Witness) look(ctx context.Context, target bool) (Kept, error) {
	at := []string{AtSource}
	if target {
		at = slices.Sorted(maps.Keys(w.shards))
	}
	parts := make([]Kept, len(at))
	g, gctx := errgroup.WithContext(ctx)
	tickets := make([]map[int64]int64, len(at))
	for i, name := range at {
		g.Go(func() (err error) {
			parts[i], tickets[i], err = w.read(gctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Kept{}, err
	}
	all := Kept{Times: map[int64]int{}}
	drawn := map[int64]int64{}
	for i, p := range parts {
		for id, n := range p.Times {
			all.Times[id] += n
		}
		all.Wrong = append(all.Wrong, p.Wrong...)
		for ticket, id := range tickets[i] {
			if other, twice := drawn[ticket]; twice {
				all.Wrong = append(all.Wrong, fmt.Sprintf("writes %d and %d got the same value %d of a sequence", other, id, ticket))
			}
			drawn[ticket] = id
		}
	}
	return all, nil
}

func (w *Witness) read(ctx context.Context, at string) (k Kept, tickets map[int64]int64, err error) {
	k.Times, tickets = map[int64]int{}, map[int64]int64{}
	conn, err := pgx.Connect(ctx, w.DSN(at).Reveal())
	if err != nil {
		return k, nil, fmt.Errorf("read %s: %w", at, err)
	}
	defer hangUp(conn)
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT realm_id, id, ticket FROM witness`)
		if err != nil {
			return err
		}
		var realm string
		var id, ticket int64
		count, astray := map[string]int64{}, map[string]int{}
		if _, err := pgx.ForEachRow(rows, []any{&realm, &id, &ticket}, func() error {
			k.Times[id]++
			count[realm]++
			if other, twice := tickets[ticket]; twice {
				k.Wrong = append(k.Wrong, fmt.Sprintf("writes %d and %d got the same value %d of a sequence", other, id, ticket))
			}
			tickets[ticket] = id
			if at != AtSource && w.owner(realm) != at {
				astray[realm]++
			}
			return nil
		}); err != nil {
			return err
		}
		for realm, n := range astray {
			k.Wrong = append(k.Wrong, fmt.Sprintf("%d rows of realm %s are on %s, which does not own it", n, realm, at))
		}
		rows, err = tx.Query(ctx, `SELECT realm_id, n FROM tally`)
		if err != nil {
			return err
		}
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&realm, &n}, func() error {
			if n != count[realm] {
				k.Wrong = append(k.Wrong, fmt.Sprintf("%s: the tally of realm %s is %d, and there are %d rows of it", at, realm, n, count[realm]))
			}
			delete(count, realm)
			return nil
		})
		for realm, n := range count {
			k.Wrong = append(k.Wrong, fmt.Sprintf("%s: %d rows of realm %s, which has no tally", at, n, realm))
		}
		return err
	})
	if err != nil {
		return k, nil, fmt.Errorf("read %s: %w", at, err)
	}
	return k, tickets, nil
}

// Pauses are how long the longest times were in which no write was acknowledged anywhere, around each decision.
func (w *Witness) Pauses() []time.Duration {
	writes := w.history()
	slices.SortFunc(writes, func(a, b Accepted) int { return int(a.Acked - b.Acked) })
	w.mu.Lock()
	decisions := slices.Clone(w.decisions)
	w.mu.Unlock()
	out := make([]time.Duration, len(decisions))
	for i := 1; i < len(writes); i++ {
		for n, d := range decisions {
			if from, to := writes[i-1].Acked, writes[i].Acked; to >= d.After && from <= d.Till {
				out[n] = max(out[n], to-from)
			}
		}
	}
	return out
}
