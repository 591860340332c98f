package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// rehomeCopier is Rehome as people run it: from `rehome start-replication` with its code on.
type rehomeCopier struct{}

func (rehomeCopier) Name() string { return rehomeName }

func (rehomeCopier) Missing(context.Context, *Rig) string { return "" }

// Further figures of a copy by Rehome.
const (
	analysedSeconds = "analysed s"      // wall time until the copy counts as done: also analysed, slot and positions noted
	analysedTool    = "analysed tool"   // CPU seconds of the tool until then
	analysedSum     = "analysed sum"    // CPU seconds of all processes until then
	inSyncSeconds   = "in sync s"       // wall time until the stream has caught up
	peakRSS         = "peak RSS MiB"    // of the server
	serverCPU       = "server CPU s"    // of the server alone, without pg_dump, pg_restore and the command line
	rowsPerSecond   = "rows per second" // of the dataset
)

func (rehomeCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	s, err := StartServer(ctx, r, targets...)
	if err != nil {
		return err
	}
	before, err := readStat(s.Pid())
	if err != nil {
		return err
	}
	if err := s.Replicate(ctx, d.DB(), r.Begin, d.Realm...); err != nil {
		return err
	}
	// The finish line of everybody: all tables, rows, keys and indexes are there. Rows come before keys and indexes, and are
	// counted and compared afterwards.
	if err := waitSchema(ctx, r, s, d, targets); err != nil {
		return err
	}
	if err := s.WaitPhase(ctx, tenant.CatchingUp, tenant.InSync); err != nil {
		return err
	}
	wall, cpu, err := r.Since()
	if err != nil {
		return err
	}
	r.Set(analysedSeconds, wall.Seconds())
	r.Set(analysedTool, cpu.Tool)
	r.Set(analysedSum, cpu.Sum())
	after, err := readStat(s.Pid())
	if err != nil {
		return err
	}
	r.Set(serverCPU, after.own-before.own)
	if err := s.WaitPhase(ctx, tenant.InSync); err != nil {
		return err
	}
	if wall, _, err = r.Since(); err != nil {
		return err
	}
	r.Set(inSyncSeconds, wall.Seconds())
	rss, err := s.PeakRSS()
	r.Set(peakRSS, rss)
	return err
}

// schemaPause is how often a target's catalogue is asked; the sessions stay open.
const schemaPause = 50 * time.Millisecond

// waitSchema waits until every target has all keys and indexes, and ends the clock.
func waitSchema(ctx context.Context, r *Run, s *Server, d *Dataset, targets []*pgcluster.Cluster) error {
	for i, c := range targets {
		conn, err := pgx.Connect(ctx, c.DSN(TargetDB).Reveal())
		if err != nil {
			return fmt.Errorf("connect to target %d: %w", i+1, err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		tick := time.NewTicker(schemaPause)
		defer tick.Stop()
		for late := false; ; {
			var there string
			if err := conn.QueryRow(ctx, schemaSQL).Scan(&there); err != nil {
				return fmt.Errorf("look at target %d: %w", i+1, err)
			}
			if there == d.schema {
				break
			}
			if late {
				return fmt.Errorf("the copy is done, but target %d has %s", i+1, there)
			}
			phase, err := s.Phase(ctx)
			if err != nil {
				return err
			}
			// It may have come to its end since the catalogue was read: that is read once more.
			if late = phase != tenant.Created && phase != tenant.Preparing && phase != tenant.Copying; late {
				continue
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
