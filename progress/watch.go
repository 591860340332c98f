package progress

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
)

const (
	// pollWithListener is for a notification that was lost with its connection, and for events that an open
	// transaction held back and that were rolled back since (nothing is notified then).
	pollWithListener = time.Second
	// pollWithoutListener is how late a watcher is when nobody listens. An index look-up each: cheap.
	pollWithoutListener = 250 * time.Millisecond
	// listenCheck is how often the listening connection is tried although silent: a dead peer is noticed then.
	listenCheck = 30 * time.Second
	// listenCheckTimeout bounds such a try.
	listenCheckTimeout = 5 * time.Second
	// maxListenBackoff bounds the pause between two attempts to listen; watchers poll meanwhile.
	maxListenBackoff = 5 * time.Second
)

// everyStream is what a watcher of the whole installation waits for; no stream is named so.
const everyStream = ""

type watcher struct {
	stream string
	wake   chan struct{} // buffered: one pending wake-up is enough
}

// Watch calls fn for every event of a stream with a sequence greater than after, in order, and blocks until ctx ends (it
// returns ctx's error) or fn fails (it returns that error). A database that cannot be read for a while is waited for.
func (l *Log) Watch(ctx context.Context, stream string, after int64, fn func(Event) error) error {
	return l.watch(ctx, stream, func() (int, error) {
		events, err := l.After(ctx, stream, after, 0)
		if err != nil {
			return 0, err
		}
		for _, e := range events {
			if err := fn(e); err != nil {
				return 0, &stopped{err}
			}
			after = e.Sequence
		}
		return len(events), nil
	})
}

// WatchAll is Watch for all streams of the installation, by id.
func (l *Log) WatchAll(ctx context.Context, afterID int64, fn func(Stored) error) error {
	return l.watch(ctx, everyStream, func() (int, error) {
		events, err := l.AfterID(ctx, afterID, 0)
		if err != nil {
			return 0, err
		}
		for _, e := range events {
			if err := fn(e); err != nil {
				return 0, &stopped{err}
			}
			afterID = e.ID
		}
		return len(events), nil
	})
}

// Follow calls step at once, and then whenever an event may have come, until ctx ends; it returns ctx's error. Step says how
// many events it found: after MaxLimit it is called again at once. For those who keep their place themselves.
func (l *Log) Follow(ctx context.Context, step func() (int, error)) error {
	return l.watch(ctx, everyStream, step)
}

// stopped carries the error with which the caller's function ended a watch.
type stopped struct{ err error }

func (s *stopped) Error() string { return s.err.Error() }

func (l *Log) watch(ctx context.Context, stream string, step func() (int, error)) error {
	w := l.subscribe(stream)
	defer l.unsubscribe(w)
	failing := false
	for {
		n, err := step()
		var s *stopped
		switch {
		case errors.As(err, &s):
			return s.err
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !failing:
			failing = true
			l.logger.WarnContext(ctx, "events cannot be read, trying again", "stream", stream, "error", err)
		case err == nil:
			failing = false
		}
		if n == MaxLimit {
			continue // there may be more
		}
		if err := w.wait(ctx, l.pollInterval()); err != nil {
			return err
		}
	}
}

func (w *watcher) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.wake:
	case <-timer.C:
	}
	return nil
}

func (l *Log) subscribe(stream string) *watcher {
	w := &watcher{stream: stream, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchers[w] = struct{}{}
	return w
}

func (l *Log) unsubscribe(w *watcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watchers, w)
}

func (l *Log) pollInterval() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listening {
		return pollWithListener
	}
	return pollWithoutListener
}

// wake wakes the watchers of a stream and of the installation; everyStream wakes all.
func (l *Log) wake(stream string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watchers {
		if stream != everyStream && w.stream != everyStream && w.stream != stream {
			continue
		}
		select {
		case w.wake <- struct{}{}:
		default: // awake already
		}
	}
}

func (l *Log) setListening(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listening = on
}

// Run listens, on one connection beside the pool, for all watchers of this process. It blocks until ctx ends and then
// returns nil; a lost connection is made anew.
func (l *Log) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = maxListenBackoff
	for ctx.Err() == nil {
		l.listenOnce(ctx, pause)
	}
	return nil
}

// listenOnce listens until the connection is lost, and pauses then.
func (l *Log) listenOnce(ctx context.Context, pause *backoff.ExponentialBackOff) {
	err := l.listen(ctx, pause.Reset)
	l.setListening(false)
	if ctx.Err() != nil {
		return
	}
	d := pause.NextBackOff()
	l.logger.WarnContext(ctx, "listening for events was interrupted", "error", err, "retry_in", d)
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (l *Log) listen(ctx context.Context, connected func()) error {
	conn, err := pgx.ConnectConfig(ctx, l.pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to listen for events: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "LISTEN "+Channel); err != nil {
		return fmt.Errorf("listen for events: %w", err)
	}
	connected()
	l.setListening(true)
	l.wake(everyStream) // for what came before we listened
	for {
		waitCtx, cancel := context.WithTimeout(ctx, listenCheck)
		n, err := conn.WaitForNotification(waitCtx)
		cancel()
		switch {
		case err == nil:
			l.wake(n.Payload)
		case ctx.Err() != nil:
			return ctx.Err()
		case waitCtx.Err() != nil: // silence: is the peer there?
			pingCtx, cancel := context.WithTimeout(ctx, listenCheckTimeout)
			err := conn.Ping(pingCtx)
			cancel()
			if err != nil {
				return fmt.Errorf("check the listening connection: %w", err)
			}
		default:
			return fmt.Errorf("wait for events: %w", err)
		}
	}
}
