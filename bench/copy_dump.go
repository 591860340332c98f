package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// dumpCopier is pg_dump into a directory, then pg_restore.
type dumpCopier struct{}

func (dumpCopier) Name() string { return fmt.Sprintf("pg_dump + pg_restore, %d jobs", jobs) }

func (dumpCopier) Missing(context.Context, *Rig) string { return "" }

func (dumpCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	if err := CreateDatabase(ctx, targets[0], TargetDB); err != nil {
		return err
	}
	dir := filepath.Join(r.Rig.Dir, "dump")
	r.Cleanup(func(context.Context) error { return os.RemoveAll(dir) })
	if err := r.Begin(); err != nil {
		return err
	}
	if err := r.Tool(ctx, "pg_dump", "-Fd", fmt.Sprintf("-j%d", jobs), "-Z0", "-f", dir, "-d", d.DB().Reveal()); err != nil {
		return err
	}
	if err := r.Tool(ctx, "pg_restore", fmt.Sprintf("-j%d", jobs), "-d", targets[0].DSN(TargetDB).Reveal(), dir); err != nil {
		return err
	}
	return r.End()
}
