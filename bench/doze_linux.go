package main

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// doze waits for less than a millisecond. The runtime's timers are that coarse where nothing else runs (it waits in epoll_wait,
// whose unit they are), so that a pause of 0.1 ms would take more than ten times as long.
func doze(ctx context.Context, d time.Duration) error {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil) // a signal ends it early, which is an early look
	return context.Cause(ctx)
}
