package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// pgcopydbCopier is pgcopydb clone. It also vacuums and analyses; the clock ends when keys and indexes are there.
type pgcopydbCopier struct{ jobs int }

func (c pgcopydbCopier) Name() string { return fmt.Sprintf("pgcopydb, %d jobs", c.jobs) }

func (pgcopydbCopier) Missing(_ context.Context, _ *Rig) string {
	if _, err := exec.LookPath("pgcopydb"); err != nil {
		return "not there: scripts/ensure-bench installs it where apt-get has it"
	}
	return ""
}

func (c pgcopydbCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	if err := CreateDatabase(ctx, targets[0], TargetDB); err != nil {
		return err
	}
	dir := filepath.Join(r.Rig.Dir, "pgcopydb")
	r.Cleanup(func(context.Context) error { return os.RemoveAll(dir) })
	if err := r.Begin(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		n := fmt.Sprint(c.jobs)
		ended <- r.Tool(ctx, "pgcopydb", "clone", "--source", d.DB().Reveal(), "--target", targets[0].DSN(TargetDB).Reveal(), "--dir", dir, "--table-jobs", n, "--index-jobs", n)
	}()
	var failed error
	over := false
	err := untilComplete(ctx, r, d, targets, func(context.Context) (bool, error) {
		select {
		case failed = <-ended:
			over = true
		default:
		}
		return over, nil
	})
	if !over {
		failed = <-ended // it vacuums; that is not waited for in the figure
	}
	return errors.Join(failed, err)
}
