package main

import (
	"context"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// rehomeCopier is Rehome as people run it: from `rehome start-replication` with its code on.
type rehomeCopier struct{}

func (rehomeCopier) Name() string { return rehomeName }

func (rehomeCopier) Missing(context.Context, *Rig) string { return "" }

// Further figures of a copy by Rehome.
const (
	analysedSeconds = "analysed s"    // wall time until the copy counts as done: also analysed, slot and positions noted
	analysedTool    = "analysed tool" // CPU seconds of the tool until then
	analysedSum     = "analysed sum"  // CPU seconds of all processes until then
	inSyncSeconds   = "in sync s"     // wall time until the stream has caught up
	peakRSS         = "peak RSS MiB"  // of the server
	serverCPU       = "server CPU s"  // of the server alone, without pg_dump, pg_restore and the command line
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
	copied := func(ctx context.Context) (bool, error) {
		phase, err := s.Phase(ctx)
		return phase != tenant.Created && phase != tenant.Preparing && phase != tenant.Copying, err
	}
	if err := untilComplete(ctx, r, d, targets, copied); err != nil {
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
