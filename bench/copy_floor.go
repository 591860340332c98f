package main

import (
	"context"
	"path/filepath"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// floorCopier is what anybody can do with psql: one table after the other through one pipe, then keys and indexes.
type floorCopier struct{}

func (floorCopier) Name() string { return floorName }

func (floorCopier) Missing(context.Context, *Rig) string { return "" }

func (floorCopier) Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error {
	source, target := d.DB().Reveal(), targets[0].DSN(TargetDB).Reveal()
	if err := CreateDatabase(ctx, targets[0], TargetDB); err != nil {
		return err
	}
	if err := r.Begin(); err != nil {
		return err
	}
	if err := dumpSchema(ctx, r, d, "pre-data", target); err != nil {
		return err
	}
	for _, t := range d.Tables {
		name := tenant.QuoteIdent(t)
		if err := r.Pipe(ctx, psql(source, "COPY "+name+" TO STDOUT (FORMAT binary)"), psql(target, "COPY "+name+" FROM STDIN (FORMAT binary)")); err != nil {
			return err
		}
	}
	if err := dumpSchema(ctx, r, d, "post-data", target); err != nil {
		return err
	}
	return r.End()
}

// psql is the command line of one statement.
func psql(dsn, sql string) []string { return []string{"psql", "-Xq", dsn, "-c", sql} }

// dumpSchema brings a section of the schema over: pre-data (tables), post-data (keys, indexes).
func dumpSchema(ctx context.Context, r *Run, d *Dataset, section, target string) error {
	return r.Pipe(ctx, []string{"pg_dump", "-s", "--section=" + section, "-d", d.DB().Reveal()}, []string{"psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", target})
}

// dumpArchive writes the schema to an archive, of which pg_restore builds keys and indexes side by side.
func dumpArchive(ctx context.Context, r *Run, d *Dataset) (string, error) {
	path := filepath.Join(r.Rig.Dir, "schema.dump")
	return path, r.Tool(ctx, "pg_dump", "-s", "-Fc", "-f", path, "-d", d.DB().Reveal())
}
