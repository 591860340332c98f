package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// limitsCase is the case of the limits in the samples.
const limitsCase = "A, limits"

// limitRounds is in how many rounds, from the first on, the limits are measured: they say what the hardware allows, nobody is compared
// with them.
const limitRounds = 1

// limit is COPY alone, of the two large tables of dataset A, on one session of one server.
type limit struct {
	name   string
	in     bool // from a file into an empty table without indexes; else to /dev/null
	format string
	freeze bool // TRUNCATE and COPY FREEZE in one transaction
}

var limits = [...]limit{
	{name: "COPY TO /dev/null, text", format: "text"},
	{name: "COPY TO /dev/null, binary", format: "binary"},
	{name: "COPY FROM a file, text", in: true, format: "text"},
	{name: "COPY FROM a file, binary", in: true, format: "binary"},
	{name: "COPY FROM a file, text, FREEZE", in: true, format: "text", freeze: true},
	{name: "COPY FROM a file, binary, FREEZE", in: true, format: "binary", freeze: true},
}

func (w *copyWorkload) limits(ctx context.Context, b *Bench, round int) (err error) {
	dir := filepath.Join(b.Rig.Dir, "limits")
	if err := os.Mkdir(dir, 0o750); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // the server's account writes the files
		return fmt.Errorf("open a folder: %w", err)
	}
	for _, l := range Rotate(limits[:], round) {
		err := b.Turn(ctx, limitsCase, l.name, round, func(ctx context.Context, r *Run) error { return l.run(ctx, r, w.data, dir) }, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// run measures one; files that are not in the folder yet are written before the clock.
func (l limit) run(ctx context.Context, r *Run, d *Dataset, dir string) error {
	r.Name(d.DB(), "$SOURCE")
	tables := d.Tables[:2]
	if !l.in {
		if err := r.Begin(); err != nil {
			return err
		}
		for _, t := range tables {
			if err := r.SQL(ctx, d.DB(), fmt.Sprintf("COPY %s TO '/dev/null' (FORMAT %s)", tenant.QuoteIdent(t), l.format)); err != nil {
				return err
			}
		}
		return r.End()
	}
	target := r.Rig.Targets[0]
	r.Name(target.DSN(TargetDB), "$TARGET1")
	r.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, target, TargetDB) })
	if err := CreateDatabase(ctx, target, TargetDB); err != nil {
		return err
	}
	if err := dumpSchema(ctx, r, d, "pre-data", target.DSN(TargetDB).Reveal()); err != nil {
		return err
	}
	var in []string
	for _, t := range tables {
		file, name := filepath.Join(dir, t+"."+l.format), tenant.QuoteIdent(t)
		if !exists(file) {
			if err := Exec(ctx, d.DB(), fmt.Sprintf("COPY %s TO '%s' (FORMAT %s)", name, file, l.format)); err != nil {
				return err
			}
		}
		if l.freeze {
			in = append(in, fmt.Sprintf("BEGIN; TRUNCATE %s; COPY %s FROM '%s' (FORMAT %s, FREEZE); COMMIT", name, name, file, l.format))
		} else {
			in = append(in, fmt.Sprintf("COPY %s FROM '%s' (FORMAT %s)", name, file, l.format))
		}
	}
	if err := r.Begin(); err != nil {
		return err
	}
	for _, sql := range in {
		if err := r.SQL(ctx, target.DSN(TargetDB), sql); err != nil {
			return err
		}
	}
	return r.End()
}

// limitsSection reports the limits.
func limitsSection(r *Results) Section {
	s := Section{
		Title: "A: what COPY alone allows",
		Text: "One session of one server copies the two large tables (" + strings.Join(DatasetA().Tables[:2], ", ") + "), nothing else runs. The files are in the page cache. FREEZE: TRUNCATE and COPY (FREEZE) in one transaction, the tables one after the other. " +
			"Each is one sample, of the first round: small differences say nothing.",
		Head: []string{"", ">wall s", ">CPU of the server", ">n"},
	}
	for _, l := range limits {
		wall := r.Spread(limitsCase, l.name, Wall)
		if wall.N == 0 {
			continue
		}
		cpu := r.Spread(limitsCase, l.name, func(s Sample) float64 { return s.CPU.Source + s.CPU.Targets })
		s.Rows = append(s.Rows, []string{l.name, wall.String(), cpu.Middle(), fmt.Sprint(wall.N)})
	}
	if len(s.Rows) == 0 {
		return Section{}
	}
	return s
}
