package replicator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// consumer is somebody else who reads the source's WAL: a standby, or another subscriber.
type consumer struct {
	name    string
	bytes   int64         // behind the source's write position
	age     time.Duration // the same in time
	slotWAL int64         // what its slot holds back; 0 without a slot
	danger  bool          // its slot is about to lose its WAL
}

// sourceLoad is what was seen of those who share the source.
type sourceLoad struct {
	consumers []consumer
	ownSlot   int64  // what our own slot holds back; only where waiting lets it advance
	blind     string // what could not be seen, and how that is mended
}

// others reads who else depends on the source. Only connected ones count: waiting helps nobody who is not there.
func (w *watcher) others(ctx context.Context, now time.Time) (sourceLoad, error) {
	var load sourceLoad
	own := "rehome-stream-" + w.e.cfg.Replication
	var current tenant.LSN
	if err := w.conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&current); err != nil {
		return load, fmt.Errorf("read the source's position: %w", err)
	}
	w.lags.note(now, current)
	rows, err := w.conn.Query(ctx, `SELECT coalesce(nullif(application_name, ''), host(client_addr), 'pid ' || pid), state IS NULL, replay_lsn::text, coalesce(extract(epoch FROM replay_lag), 0)::float8
		FROM pg_stat_replication WHERE application_name IS DISTINCT FROM $1 AND (state IS NULL OR (state IN ('catchup', 'streaming') AND replay_lsn IS NOT NULL))`, own)
	if err != nil {
		return load, fmt.Errorf("read who else reads the source's WAL: %w", err)
	}
	var name string
	var hidden bool
	var replay *string
	var lag float64
	_, err = pgx.ForEachRow(rows, []any{&name, &hidden, &replay, &lag}, func() error {
		if hidden || replay == nil {
			load.blind = "the source's role may not see how far the others are: GRANT pg_monitor TO it"
			return nil
		}
		at, err := tenant.ParseLSN(*replay)
		if err != nil {
			return err
		}
		c := consumer{name: name, age: max(time.Duration(lag*float64(time.Second)), w.lags.age(now, at))}
		if current > at {
			c.bytes = int64(current - at)
		}
		load.consumers = append(load.consumers, c)
		return nil
	})
	if err != nil {
		return load, fmt.Errorf("read who else reads the source's WAL: %w", err)
	}
	rows, err = w.conn.Query(ctx, `SELECT slot_name, greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
			coalesce(wal_status = 'unreserved' OR safe_wal_size < $2 * pg_size_bytes(current_setting('max_slot_wal_keep_size'))::float8, false)
		FROM pg_replication_slots WHERE active AND NOT temporary AND slot_name <> $1 AND restart_lsn IS NOT NULL`, string(w.e.src.slot), dangerShare)
	if err != nil {
		return load, fmt.Errorf("read the other slots: %w", err)
	}
	var c consumer
	_, err = pgx.ForEachRow(rows, []any{&c.name, &c.slotWAL, &c.danger}, func() error {
		load.consumers = append(load.consumers, c)
		return nil
	})
	if err != nil {
		return load, fmt.Errorf("read the other slots: %w", err)
	}
	return load, nil
}

// lags remembers where the source was when, since replay_lag says nothing of a standby that stopped replaying.
type lags struct{ seen []walSample }

const (
	lagsKept  = 15 * time.Minute
	lagsEvery = careEvery / 2
)

func (l *lags) note(now time.Time, current tenant.LSN) {
	if n := len(l.seen); n > 0 {
		if current < l.seen[n-1].current {
			l.seen = nil // another server
		} else if now.Sub(l.seen[n-1].at) < lagsEvery || current == l.seen[n-1].current {
			return
		}
	}
	l.seen = append(l.seen, walSample{at: now, current: current})
	for len(l.seen) > 1 && now.Sub(l.seen[0].at) > lagsKept {
		l.seen = l.seen[1:]
	}
}

// age is for how long, at least, a consumer that is at a position has been behind.
func (l *lags) age(now time.Time, at tenant.LSN) time.Duration {
	for _, s := range l.seen {
		if s.current > at {
			return now.Sub(s.at)
		}
	}
	return 0
}

// judgeSource says why to wait, "" if there is no reason. While readers wait already, a lower limit counts, so that they do
// not start and stop all the time.
//
// What our own slot holds back is no reason to stop a copy: the slot stands still until the copy is done.
func judgeSource(set tenant.Throttle, load sourceLoad, query string, holding bool) string {
	if set.Off {
		return ""
	}
	share := 1.0
	if holding {
		share = calmShare
	}
	above := func(v, limit float64) bool { return limit > 0 && v > share*limit }
	for _, c := range load.consumers {
		switch {
		case above(float64(c.bytes), float64(set.MaxLagBytes)):
			return fmt.Sprintf("%s is %s behind the source (limit %s)", c.name, size(c.bytes), size(set.MaxLagBytes))
		case above(c.age.Seconds(), set.MaxLagSeconds):
			return fmt.Sprintf("%s is %s behind the source (limit %s)", c.name, c.age.Round(100*time.Millisecond), time.Duration(set.MaxLagSeconds*float64(time.Second)))
		case above(float64(c.slotWAL), float64(set.MaxSlotWAL)):
			return fmt.Sprintf("slot %s holds back %s of WAL (limit %s)", c.name, size(c.slotWAL), size(set.MaxSlotWAL))
		case c.danger:
			return fmt.Sprintf("slot %s is about to lose its WAL (max_slot_wal_keep_size)", c.name)
		}
	}
	if above(float64(load.ownSlot), float64(set.MaxSlotWAL)) {
		return fmt.Sprintf("the replication's own slot holds back %s of WAL (limit %s)", size(load.ownSlot), size(set.MaxSlotWAL))
	}
	return query
}

// answerOf reads the one value of an operator's query from the JSON of its row.
func answerOf(row *string) (reason string, err error) {
	if row == nil {
		return "", nil
	}
	d := json.NewDecoder(strings.NewReader(*row))
	d.UseNumber()
	var values map[string]any
	if err := d.Decode(&values); err != nil || len(values) != 1 {
		return "", errors.New("the operator's query: it must give one column")
	}
	for column, v := range values {
		switch v := v.(type) {
		case nil:
			return "", nil
		case bool:
			if v {
				return fmt.Sprintf("the operator's query says so (%s)", column), nil
			}
			return "", nil
		case json.Number:
			if n, err := v.Float64(); err == nil && n > 0 {
				return fmt.Sprintf("the operator's query says so (%s is %s)", column, v), nil
			}
			return "", nil
		}
	}
	return "", errors.New("the operator's query: its value must be a boolean or a number")
}

// size writes bytes for people.
func size(n int64) string {
	const unit = 1000
	v, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for v >= unit && i < len(units)-1 {
		v /= unit
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
