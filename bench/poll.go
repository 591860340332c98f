package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// poll waits until a condition holds that is looked at every so often. The error says what was waited for.
func poll(ctx context.Context, within, every time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %s: %s", within, what))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, err := ok()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// dial opens a session of the benchmark's own.
func dial(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", dsn, err)
	}
	return c, nil
}
