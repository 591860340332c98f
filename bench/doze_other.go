//go:build !linux

package main

import (
	"context"
	"time"
)

// doze waits for less than a millisecond, as far as the system's timers can.
func doze(ctx context.Context, d time.Duration) error { return pause(ctx, d) }
