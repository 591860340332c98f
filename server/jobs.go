package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/shard"
)

const (
	// purgeEvery is how late a purge may be; the grace is 30 days.
	purgeEvery = 10 * time.Minute
	pruneEvery = time.Hour
	// purgeTimeout bounds one run: an adopted database is emptied in throttled batches. What is left, the next run does.
	purgeTimeout = 6 * time.Hour
	pruneTimeout = 10 * time.Minute
	// jobWorkers is enough: there is hardly ever more than one job.
	jobWorkers = 2
	// jobsStopTimeout is how long running jobs may finish in a stop; they go on at the next start.
	jobsStopTimeout = 5 * time.Second

	eventsKept     = 30 * 24 * time.Hour // what a subscriber may miss and still catch up
	challengesKept = 90 * 24 * time.Hour // what was approved stays in the audit log
)

// purgeArgs asks for the purge of all databases whose grace is over.
type purgeArgs struct{}

// Kind implements river.JobArgs.
func (purgeArgs) Kind() string { return "purge-databases" }

// pruneArgs asks for the removal of what is kept for a time only.
type pruneArgs struct{}

// Kind implements river.JobArgs.
func (pruneArgs) Kind() string { return "prune" }

type purgeWorker struct {
	river.WorkerDefaults[purgeArgs]
	s *Server
}

// Timeout implements river.Worker.
func (purgeWorker) Timeout(*river.Job[purgeArgs]) time.Duration { return purgeTimeout }

// Work implements river.Worker.
func (w purgeWorker) Work(ctx context.Context, _ *river.Job[purgeArgs]) error {
	return errors.Join(w.s.abandonExpired(ctx), w.s.purgeDue(ctx))
}

type pruneWorker struct {
	river.WorkerDefaults[pruneArgs]
	s *Server
}

// Timeout implements river.Worker.
func (pruneWorker) Timeout(*river.Job[pruneArgs]) time.Duration { return pruneTimeout }

// Work implements river.Worker.
func (w pruneWorker) Work(ctx context.Context, _ *river.Job[pruneArgs]) error { return w.s.prune(ctx) }

func (s *Server) newJobs() (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, purgeWorker{s: s})
	river.AddWorker(workers, pruneWorker{s: s})
	river.AddWorker(workers, sampleWorker{s: s})
	s.notifier.AddWorkers(workers)
	queues := s.notifier.Queues()
	queues[river.QueueDefault] = river.QueueConfig{MaxWorkers: jobWorkers}
	queues[samplesQueue] = river.QueueConfig{MaxWorkers: 1}
	// One job of a kind at a time, however many servers there are.
	once := &river.InsertOpts{MaxAttempts: 3, UniqueOpts: river.UniqueOpts{ByArgs: true}}
	periodic := func(every time.Duration, args river.JobArgs) *river.PeriodicJob {
		return river.NewPeriodicJob(river.PeriodicInterval(every), func() (river.JobArgs, *river.InsertOpts) {
			opts := *once
			opts.UniqueOpts.ByPeriod = every
			return args, &opts
		}, &river.PeriodicJobOpts{RunOnStart: true})
	}
	c, err := river.NewClient(riverpgxv5.New(s.pool), &river.Config{
		Schema: migrations.Schema, Workers: workers, Logger: s.log, SoftStopTimeout: jobsStopTimeout,
		Queues:       queues,
		PeriodicJobs: []*river.PeriodicJob{periodic(purgeEvery, purgeArgs{}), periodic(pruneEvery, pruneArgs{}), s.sampling()},
		// Jobs that may take longer than this say so (Timeout), and are left alone until then.
		RescueStuckJobsAfter: s.notifier.Rescue(),
	})
	if err != nil {
		return nil, fmt.Errorf("make the job queue: %w", err)
	}
	s.notifier.Use(c)
	return c, nil
}

// sampling is one sample a minute, however many servers there are; one that failed is not made up for.
func (s *Server) sampling() *river.PeriodicJob {
	return river.NewPeriodicJob(river.PeriodicInterval(sampleEvery), func() (river.JobArgs, *river.InsertOpts) {
		return sampleArgs{}, &river.InsertOpts{MaxAttempts: 1, Queue: samplesQueue, UniqueOpts: river.UniqueOpts{ByArgs: true, ByPeriod: sampleEvery}}
	}, &river.PeriodicJobOpts{RunOnStart: true})
}

// startJobs tries for as long as the first connection may take: the control database may restart while we start.
func (s *Server) startJobs(ctx context.Context) error {
	const again = 500 * time.Millisecond
	for until := time.Now().Add(connectTimeout); ; {
		err := s.jobs.Start(context.WithoutCancel(ctx))
		if err == nil || time.Now().After(until) {
			return err
		}
		s.log.Warn("the job queue could not be started, it is tried again", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(again):
		}
	}
}

// runJobs works on jobs until ctx ends; running ones may finish within jobsStopTimeout.
func (s *Server) runJobs(ctx context.Context) error {
	if err := s.startJobs(ctx); err != nil {
		return fmt.Errorf("start the job queue: %w", err)
	}
	<-ctx.Done()
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobsStopTimeout)
	defer cancel()
	if err := s.jobs.Stop(stopCtx); err != nil {
		cutCtx, cancelCut := context.WithTimeout(context.WithoutCancel(ctx), jobsStopTimeout)
		defer cancelCut()
		return s.jobs.StopAndCancel(cutCtx)
	}
	return nil
}

// purgeDue destroys the databases whose grace is over. One that fails does not keep the others.
func (s *Server) purgeDue(ctx context.Context) error {
	names, err := s.catalogue.DuePurges(ctx)
	if err != nil {
		return fmt.Errorf("find databases to purge: %w", err)
	}
	var all error
	for _, name := range names {
		result, err := s.catalogue.Purge(ctx, name, shard.PurgeOptions{})
		detail := map[string]any{"dropped": result.Dropped, "rows_deleted": result.RowsDeleted, "left": result.Left}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("purge %s: %w", name, err))
			detail["code"] = known(err).Code
		}
		if aerr := s.audit(ctx, auditRow{actor: "server " + s.name, action: "purge-database", object: name, outcome: outcomeOf(err), detail: detail}); aerr != nil {
			all = errors.Join(all, aerr)
		}
		if err == nil {
			if _, err := s.events.Append(ctx, s.pool, progress.Entry{Database: name, Kind: "database", ID: name, Stream: progress.StreamInstallation, Event: "purged", Data: detail}); err != nil {
				all = errors.Join(all, err)
			}
		}
	}
	return all
}

// prune removes what is kept for a time only.
func (s *Server) prune(ctx context.Context) error {
	n, err := s.events.Prune(ctx, eventsKept)
	if err != nil {
		return fmt.Errorf("prune events: %w", err)
	}
	if _, err := s.otp.Prune(ctx, challengesKept); err != nil {
		return fmt.Errorf("prune challenges: %w", err)
	}
	if _, err := s.notifier.Prune(ctx); err != nil {
		return err
	}
	if err := s.gateway.RollUp(ctx); err != nil {
		return fmt.Errorf("roll statistics up: %w", err)
	}
	now := s.cfg.Now()
	for what, stmt := range map[string]struct {
		sql  string
		kept time.Duration
	}{
		"idempotency keys": {`DELETE FROM rehome_control.idempotency_keys WHERE created_at < $1`, idempotencyKept},
	} {
		if _, err := s.pool.Exec(ctx, stmt.sql, now.Add(-stmt.kept)); err != nil {
			return fmt.Errorf("prune %s: %w", what, err)
		}
	}
	s.log.DebugContext(ctx, "pruned", "events", n)
	return nil
}
