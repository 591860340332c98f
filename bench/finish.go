package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// schemaPause is how often a target's catalogue is asked whether all is there.
const schemaPause = 50 * time.Millisecond

// errIncomplete says that a contender is done, in its own opinion, and things are missing.
var errIncomplete = errors.New("done, but keys or indexes are missing")

// untilComplete waits until every target has all keys and indexes of a dataset, and ends the clock. It is the finish line of
// contenders that do more after it (analyse, vacuum, catch up), and whose rows precede keys and indexes. done reports whether
// the contender has ended in its own opinion; then nothing more will come.
func untilComplete(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster, done func(context.Context) (bool, error)) error {
	tick := time.NewTicker(schemaPause)
	defer tick.Stop()
	for i, c := range targets {
		conn, err := pgx.Connect(ctx, c.DSN(TargetDB).Reveal())
		if err != nil {
			return fmt.Errorf("connect to target %d: %w", i+1, err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		for last := false; ; {
			var parts int64
			if err := conn.QueryRow(ctx, partsSQL).Scan(&parts); err != nil {
				return fmt.Errorf("look at target %d: %w", i+1, err)
			}
			if parts == d.parts { // that they are the right ones is checked after the clock
				break
			}
			if last {
				return fmt.Errorf("target %d: %w", i+1, errIncomplete)
			}
			if last, err = done(ctx); err != nil {
				return err
			}
			if last {
				continue // it may have become complete since it was looked at
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-tick.C:
			}
		}
	}
	return r.End()
}
