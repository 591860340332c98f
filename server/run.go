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

// errEnded says that a part ended although nobody asked it to.
var errEnded = errors.New("it ended by itself")

// Run serves until ctx ends and then stops: first it drains (no new connections, /readyz says so, requests in flight
// finish, at most DrainTimeout), then it cuts what is left, with a cause. It returns nil after a stop that was asked
// for, and the first error of a part that failed.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.gateway.Reload(ctx); err != nil {
		return fmt.Errorf("load the routes: %w", err)
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
		s.drain(hs)
		cut(errStopping)
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

// drain lets requests in flight finish, within the bound, and then closes their connections.
func (s *Server) drain(hs *http.Server) {
	s.beginDrain()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	g := errgroup.Group{}
	g.Go(func() error { return hs.Shutdown(ctx) })
	g.Go(func() error { return s.gateway.Drain(ctx) })
	if err := g.Wait(); err != nil {
		s.log.Warn("stopping: cut what did not finish", "error", err)
	}
	if err := hs.Close(); err != nil {
		s.log.Warn("close connections", "error", err)
	}
}
