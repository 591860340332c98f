package main

import (
	"context"
	"fmt"
	"time"
)

const (
	// pollEvery is how often a finish line is looked at: short beside every figure, long beside the cost of looking.
	pollEvery = 20 * time.Millisecond
	// slotsWithin bounds the end of a walsender.
	slotsWithin = 30 * time.Second
	// turnWithin bounds one contender's turn: what hangs must not cost the others their figures.
	turnWithin = 10 * time.Minute
)

// eventually polls until a condition holds. The error says what was waited for.
func eventually(ctx context.Context, within time.Duration, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %s: %s", within, what))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		switch {
		case done && err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
