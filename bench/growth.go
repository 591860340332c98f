package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// growthRows is how many rows there are where not the rows grow.
	growthRows = 1_000_000
	// growthShards is to how many shards: rows are routed, which is what may depend on the number of realms.
	growthShards = 2
	// growthApply is the most rows that are changed for the cost of applying.
	growthApply = 1_000_000
	// growthTxn is how many rows a transaction changes, of one table.
	growthTxn = 100
	// growthRealms and growthTables are those of a point on another axis.
	growthRealms = 1000
	growthFlat   = 1.5 // the largest cost per row may be so many times the smallest
	growthDB     = "bench_growth"
	// growthWhole is the least scale at which all points are measured: with fewer rows they say nothing.
	growthWhole = 0.05
)

// Figures of a point.
const (
	copyCost     = "copy CPU s per million rows"
	applyCost    = "apply CPU s per million rows"
	copyTool     = "copy CPU tool"
	copySource   = "copy CPU source"
	copyTargets  = "copy CPU targets"
	applyTool    = "apply CPU tool"
	applySource  = "apply CPU source"
	applyTargets = "apply CPU targets"
	copyWall     = "copy s"
	applyWall    = "apply s"
	appliedRows  = "applied rows"
)

// growthPoint is a database: so many rows, evenly over so many tables and realms.
type growthPoint struct {
	rows           int64
	realms, tables int
}

func (p growthPoint) label() string {
	if p.rows == 0 {
		return "empty"
	}
	return fmt.Sprintf("%s rows, %s realms, %s tables", thousands(float64(p.rows)), thousands(float64(p.realms)), thousands(float64(p.tables)))
}

// growthAxis is what grows while the rest stays.
type growthAxis struct {
	name   string
	points []growthPoint
	at     func(growthPoint) float64
}

// growthWorkload measures what a row costs Rehome, in CPU seconds of source, targets and server together, while the number of
// rows, of realms or of tables grows.
type growthWorkload struct{ scale float64 }

func (w *growthWorkload) ID() string { return "growth" }

func (w *growthWorkload) Prepare(_ context.Context, b *Bench) error {
	w.scale = b.Options.Scale
	return nil
}

// axes of the figure. What costs the same however little there is, such as making a database and reading its catalogue, is
// that of an empty table and is left out of the cost per row.
func (w *growthWorkload) axes() []growthAxis {
	rows := growthAxis{name: "rows", at: func(p growthPoint) float64 { return float64(p.rows) }}
	realms := growthAxis{name: "realms", at: func(p growthPoint) float64 { return float64(p.realms) }}
	tables := growthAxis{name: "tables", at: func(p growthPoint) float64 { return float64(p.tables) }}
	allRows, allRealms, allTables := []int{100_000, growthRows, 10_000_000}, []int{10, growthRealms, 100_000}, []int{1, 100, 2000}
	if w.scale < growthWhole {
		allRows, allRealms, allTables = []int{100_000, growthRows}, []int{growthRealms}, []int{1, 10}
	}
	n := func(full int) int64 { return scaled(full, w.scale) }
	for _, full := range allRows {
		rows.points = append(rows.points, growthPoint{n(full), growthRealms, 1})
	}
	for _, r := range allRealms {
		realms.points = append(realms.points, growthPoint{n(growthRows), r, 1})
	}
	for _, t := range allTables {
		tables.points = append(tables.points, growthPoint{n(growthRows), growthRealms, t})
	}
	return []growthAxis{rows, realms, tables}
}

const growthCase = "growth"

// Round measures every point in odd rounds only, since they take long.
func (w *growthWorkload) Round(ctx context.Context, b *Bench, round int) error {
	if round%2 == 0 {
		return nil
	}
	done := map[growthPoint]bool{}
	points := []growthPoint{{0, growthRealms, 1}}
	for _, a := range w.axes() {
		points = append(points, a.points...)
	}
	for _, p := range points {
		if done[p] {
			continue
		}
		done[p] = true
		err := b.Turn(ctx, growthCase, p.label(), round, func(ctx context.Context, r *Run) error { return w.measure(ctx, r, p) }, nil)
		if err != nil {
			return err
		}
	}
	path := filepath.Join(filepath.Dir(b.Options.Out), growthFigure)
	if err := w.plot(b.Results, path); err != nil {
		return fmt.Errorf("draw the figure of growth: %w", err)
	}
	return nil
}

// measure copies a database and lets a backlog be applied. The sample's clock is that of the copy.
func (w *growthWorkload) measure(ctx context.Context, r *Run, p growthPoint) error {
	r.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, r.Rig.Source, growthDB) })
	bed, err := openBed(ctx, r.Rig, growthDB, "realm_id", func(ctx context.Context, b *drainBed) error { return fillGrowth(ctx, b, p) })
	if bed != nil {
		r.Cleanup(func(ctx context.Context) error { return bed.src.Close(ctx) })
	}
	if err != nil {
		return err
	}
	r.Name(bed.dsn(), "$SOURCE")
	s, err := StartServer(ctx, r, r.Rig.Targets[:growthShards]...)
	if err != nil {
		return err
	}
	if err := r.Rig.Checkpoint(ctx); err != nil {
		return err
	}
	if err := s.Replicate(ctx, bed.dsn(), r.Begin); err != nil {
		return err
	}
	if err := s.WaitPhase(ctx, tenant.InSync); err != nil {
		return err
	}
	if err := r.End(); err != nil {
		return err
	}
	r.Set(copyWall, r.wall.Seconds())
	r.Set(copyTool, r.cpu.Tool+r.cpu.Control)
	r.Set(copySource, r.cpu.Source)
	r.Set(copyTargets, r.cpu.Targets)
	return w.apply(ctx, r, bed, &rehomeFollower{bed: bed, server: s, db: TargetDB, shards: growthShards}, p)
}

func (w *growthWorkload) apply(ctx context.Context, r *Run, bed *drainBed, f *rehomeFollower, p growthPoint) error {
	if err := errors.Join(bed.caughtUp(ctx, f), f.stop(ctx)); err != nil {
		return err
	}
	rows := min(p.rows, scaled(growthApply, w.scale))
	bed.log = f.transcript() // between the pause and what comes after
	err := errors.Join(changeGrowth(ctx, bed, p, rows), bed.sentinel(ctx))
	bed.log = nil
	if err != nil {
		return err
	}
	sample, err := bed.drain(ctx, f)
	if err != nil {
		return err
	}
	r.Set(appliedRows, float64(rows))
	r.Set(applyWall, sample.Seconds)
	r.Set(applyTool, sample.CPU.Tool+sample.CPU.Control)
	r.Set(applySource, sample.CPU.Source)
	r.Set(applyTargets, sample.CPU.Targets)
	for _, line := range f.transcript().Noted() {
		r.Note(line)
	}
	tables := make([]string, p.tables)
	for n := range tables {
		tables[n] = fmt.Sprint("t", n+1)
	}
	return bed.same(ctx, f, tables)
}

func growthDDL(n int) string {
	return fmt.Sprintf("CREATE TABLE t%d (id bigint NOT NULL, realm_id int NOT NULL, n int NOT NULL)", n)
}

// fillGrowth makes the tables t1, t2, …; the rows of each have the ids 1, 2, ….
func fillGrowth(ctx context.Context, b *drainBed, p growthPoint) error {
	b.number = true
	each := p.rows / int64(p.tables)
	for n := 1; n <= p.tables; n++ {
		err := b.exec(ctx, growthDDL(n))
		if err == nil {
			err = b.exec(ctx, fmt.Sprintf(`INSERT INTO t%d SELECT g, (g * 7919::bigint + %d) %% %d, 0 FROM generate_series(1, %d) g`, n, n, p.realms, each))
		}
		if err == nil {
			err = b.exec(ctx, fmt.Sprintf(`ALTER TABLE t%d ADD PRIMARY KEY (id, realm_id)`, n))
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(b.exec(ctx, `CREATE TABLE arrived (realm_id int NOT NULL, id bigint NOT NULL, PRIMARY KEY (id, realm_id))`), b.exec(ctx, `VACUUM ANALYZE`))
}

// changeGrowth updates rows in transactions of growthTxn rows with consecutive ids, of one table after the other, at places
// that are spread over each table.
func changeGrowth(ctx context.Context, b *drainBed, p growthPoint, rows int64) error {
	if rows == 0 {
		return nil
	}
	each := p.rows / int64(p.tables)
	batch := min(growthTxn, each)
	return errors.Join(b.exec(ctx, `SET synchronous_commit = off`), b.exec(ctx, fmt.Sprintf(`DO $$
		DECLARE places int := %[2]d / %[3]d; at bigint;
		BEGIN
			FOR i IN 0 .. %[1]d / %[3]d - 1 LOOP
				at := ((i / %[4]d) * 7919::bigint %% places) * %[3]d;
				EXECUTE format('UPDATE t%%s SET n = n + 1 WHERE id > $1 AND id <= $2', i %% %[4]d + 1) USING at, at + %[3]d;
				COMMIT;
			END LOOP;
		END $$`, rows, each, batch, p.tables)), b.exec(ctx, `RESET synchronous_commit`))
}

// growthCosts are, by round, the CPU of all processes, less that of the empty database, per million rows.
func growthCosts(r *Results, p growthPoint, copied bool) map[int]float64 {
	names := [3]string{copyTool, copySource, copyTargets}
	if !copied {
		names = [3]string{applyTool, applySource, applyTargets}
	}
	empty := r.Good(growthCase, growthPoint{}.label())
	v := map[int]float64{}
	for round, s := range r.Good(growthCase, p.label()) {
		e, ok := empty[round]
		rows := float64(p.rows)
		if !copied {
			rows = s.Values[appliedRows]
		}
		if !ok || rows == 0 {
			continue
		}
		sum := 0.0
		for _, n := range names {
			sum += s.Values[n] - e.Values[n]
		}
		v[round] = sum / rows * 1e6
	}
	return v
}

// growthCost is the zero Spread without figures.
func growthCost(r *Results, p growthPoint, copied bool) Spread {
	return SpreadOf(slices.Collect(maps.Values(growthCosts(r, p, copied))))
}

// flatness is the largest of an axis's median costs over the smallest, and single has the same quotient of each round by itself. The
// largest of some costs that differ by noise alone is above the smallest, the more so the more noise there is; medians of
// rounds have less of it than single costs. Only rounds that have all points count.
func (w *growthWorkload) flatness(r *Results, a growthAxis, copied bool) (flat, single Spread) {
	costs := map[int][]float64{} // by round, in the order of the points
	for _, p := range a.points {
		for round, c := range growthCosts(r, p, copied) {
			costs[round] = append(costs[round], c)
		}
	}
	maps.DeleteFunc(costs, func(_ int, c []float64) bool { return len(c) < len(a.points) })
	if len(costs) == 0 {
		return Spread{}, Spread{}
	}
	var medians, quotients []float64
	for i := range a.points {
		var v []float64
		for _, c := range costs {
			v = append(v, c[i])
		}
		medians = append(medians, SpreadOf(v).Median)
	}
	for _, c := range costs {
		if least := slices.Min(c); least > 0 { // else a small copy cost less than the empty one
			quotients = append(quotients, slices.Max(c)/least)
		}
	}
	single = SpreadOf(quotients)
	if least := slices.Min(medians); least > 0 {
		flat = SpreadOf([]float64{slices.Max(medians) / least})
		flat.N = len(costs)
	}
	return flat, single
}

// Aims of growth.
func (w *growthWorkload) Aims(r *Results) []Aim {
	var aims []Aim
	for _, a := range w.axes() {
		for _, copied := range []bool{true, false} {
			what := "apply"
			if copied {
				what = "copy"
			}
			flat, single := w.flatness(r, a, copied)
			note := fmt.Sprintf("CPU of all processes, %.0f to %.0f %s", a.at(a.points[0]), a.at(a.points[len(a.points)-1]), a.name)
			if single.N > 0 {
				note += "; of single rounds " + single.String()
			}
			aims = append(aims, Aim{
				What: fmt.Sprintf("growth of %s: cost of a row to %s", a.name, what), Bound: fmt.Sprintf("largest median ≤ %g × smallest", growthFlat), Limit: growthFlat,
				Measured: flat, Note: note,
			})
		}
	}
	return aims
}

// Report has a row for each point, and the figure.
func (w *growthWorkload) Report(r *Results) []Section {
	s := Section{
		Title: "growth: what a row costs while rows, realms or tables grow",
		Text: fmt.Sprintf("Rehome to %d shards; narrow rows (bigint, int, int) with the key (id, realm_id), which has the order in which the source holds the rows. CPU seconds per million rows of all processes, less what an empty database costs (first row, in seconds); copy: from "+
			"`rehome start-replication` until in sync; apply: updates in transactions of %d rows of one table, drained from a stopped state.\n\n![cost of a row](%s)", growthShards, growthTxn, growthFigure),
		Head: []string{"axis", "rows, realms, tables", ">copy CPU s/million", ">apply CPU s/million", ">copy wall s", ">apply wall s", ">copy CPU tool", ">source", ">targets", ">apply CPU tool", ">source", ">targets", ">n"},
	}
	row := func(axis string, p growthPoint) {
		name := p.label()
		if len(r.Good(growthCase, name)) == 0 {
			return
		}
		v := func(n string) string { return r.Spread(growthCase, name, Value(n)).Middle() }
		s.Rows = append(s.Rows, []string{
			axis, name, growthCost(r, p, true).Middle(), growthCost(r, p, false).Middle(), v(copyWall), v(applyWall),
			v(copyTool), v(copySource), v(copyTargets), v(applyTool), v(applySource), v(applyTargets), digitsInt(len(r.Good(growthCase, name))),
		})
	}
	row("", growthPoint{})
	for _, a := range w.axes() {
		for _, p := range a.points {
			row(a.name, p)
		}
	}
	return []Section{s}
}
