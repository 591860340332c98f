package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// cutTimeout bounds what may still take after the cut: parts that hang must not keep the process.
const cutTimeout = 10 * time.Second

// loadAgain is between two tries to load the routes.
const loadAgain = 200 * time.Millisecond

// errEnded says that a part ended although nobody asked it to.
var errEnded = errors.New("it ended by itself")

// loadRoutes is the gateway's first look at the control database. One try of it is as long as a lease, since it is made for a server that
// serves; one that starts has time.
func (s *Server) loadRoutes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var last error
	for first := true; ; first = false {
		err := s.gateway.Reload(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil { // that the time was over says less than what took it
			last = err
		}
		if first {
			s.log.WarnContext(ctx, "cannot load the routes yet; it is tried again", "error", err)
		}
		if !s.pause(ctx, loadAgain) {
			return fmt.Errorf("load the routes: %w", last)
		}
	}
}

// Run serves until ctx ends and then stops: first it drains (no new connections, /readyz says so, requests in flight
// finish, at most DrainTimeout), then it cuts what is left, with a cause. It returns nil after a stop that was asked
// for, and the first error of a part that failed.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.loadRoutes(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // it was stopped before it had begun
		}
		return err
	}
	// The parts' context outlives ctx by the drain.
	work, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(errStopping)
	g, parts := errgroup.WithContext(work)
	run := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			err := f(parts)
			if parts.Err() != nil {
				if err != nil && !errors.Is(err, context.Canceled) {
					s.log.WarnContext(ctx, "part ended with an error while stopping", "part", name, "error", err)
				}
				return nil
			}
			if err == nil {
				err = errEnded
			}
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	run("gateway", s.gateway.Run)
	run("events", s.events.Run)
	run("news", s.news.Run)
	run("jobs", s.runJobs)
	run("notifier", s.notifier.Run)
	if s.worker != nil {
		run("worker", s.worker.Run)
	}
	run("profiles", s.profiles.run)
	hs := s.httpServer(parts)
	g.Go(func() error {
		if err := hs.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			s.log.InfoContext(ctx, "stopping: drain", "cause", context.Cause(ctx))
		case <-parts.Done():
		}
		s.drain(hs, cut)
		return nil
	})
	if s.profiles.listener != nil {
		s.log.InfoContext(ctx, "profiles are served", "address", s.profiles.listener.Addr().String())
	}
	s.log.InfoContext(ctx, "serving", "address", s.Addr().String(), "url", s.installation.BaseURL, "installation", s.installation.ID, "server", s.name, "nats", s.news.Describe())

	done := make(chan error, 1)
	go func() { done <- g.Wait() }() // waited for below, or given up with the process
	select {
	case err := <-done:
		return err
	case <-work.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(cutTimeout):
		return errors.New("stop: parts of the server did not end in time")
	}
}

// drain lets requests in flight finish, within the bound, and then cuts what is left and closes the connections: in this order,
// so that a request knows that its client is not the one who went.
func (s *Server) drain(hs *http.Server, cut context.CancelCauseFunc) {
	s.beginDrain()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	g := errgroup.Group{}
	g.Go(func() error { return hs.Shutdown(ctx) })
	g.Go(func() error { return s.gateway.Drain(ctx) })
	if err := g.Wait(); err != nil {
		s.log.Warn("stopping: cut what did not finish", "error", err)
	}
	cut(errStopping)
	if err := hs.Close(); err != nil {
		s.log.Warn("close connections", "error", err)
	}
}
