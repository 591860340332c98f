package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// comparison is one run of Compare.
type comparison struct {
	in      Input
	started time.Time
	news    *reporter
	schema  *schemaFindings // nil until the schemas were compared
	watch   *watch

	mu     sync.Mutex
	tables []*tableResult // as in the catalogue
	oldest time.Time      // when the oldest position's comparison ended; zero: all was compared now
	first  tenant.LSN     // the oldest position
	aside  map[unitAt]bool
	why    error // something was set aside; nil: nothing was
}

// all deals the tables, largest first as the catalogue has them, and of large ones their parts, to workers with
// sessions of their own.
func (c *comparison) all(ctx context.Context) error {
	in, tables := c.in, c.in.Catalogue.Tables
	c.first = in.LSN
	var pieces []piece
	ends := map[tenant.LSN]time.Time{}
	c.mu.Lock()
	for i := range tables {
		t := &tables[i]
		units := unitsOf(i, t, in.Placement, c.schema.bounds[t.Name])
		if c.schema.skip[t.Name] != "" {
			units = units[:1]
		}
		r := newTableResult(t, len(units), in.MaxDiffs)
		c.tables = append(c.tables, r)
		var open []unit
		for _, u := range units {
			p := u.done(t, in.Done)
			if p == nil || c.schema.skip[t.Name] != "" {
				open = append(open, u)
				continue
			}
			ends[p.LSN] = later(ends[p.LSN], p.At)
			c.first = min(c.first, p.LSN)
			last := r.add(u.number, tenant.TableVerification{SourceRows: p.Rows, TargetRows: p.Rows, Equal: true, Digest: p.Digest}, p.LSN)
			c.news.add(r.v.Table, p.Rows, last)
		}
		for _, group := range groupsOf(open, c.schema.scattered[t.Name]) {
			cuts := c.schema.cuts[t.Name]
			if (len(group) == 1 && len(units) > 1) || c.schema.skip[t.Name] != "" {
				cuts = nil // a range of keys is small enough
			}
			pieces = append(pieces, newPieces(group, cuts, len(in.Shards))...)
		}
	}
	for _, at := range ends {
		if c.oldest.IsZero() || at.Before(c.oldest) {
			c.oldest = at
		}
	}
	c.mu.Unlock()
	next := make(chan piece, len(pieces))
	for _, p := range pieces {
		next <- p
	}
	close(next)
	group, ctx := errgroup.WithContext(ctx)
	for range min(in.Jobs, len(pieces)) {
		group.Go(func() error { return c.work(ctx, next) })
	}
	return group.Wait()
}

// work compares pieces with sessions of its own, which hold locks only while a piece is compared.
func (c *comparison) work(ctx context.Context, next <-chan piece) (err error) {
	var s *sides
	defer func() {
		if s != nil {
			s.close()
		}
	}()
	for p := range next {
		if c.in.Admit != nil {
			if err := c.in.Admit(ctx); err != nil {
				return fmt.Errorf("verify: %w", err)
			}
		}
		if c.isAside(p.units[0]) {
			continue
		}
		if s == nil {
			if s, err = openSides(ctx, c.in); err != nil {
				return fmt.Errorf("verify: %w", err)
			}
		}
		t := &c.in.Catalogue.Tables[p.units[0].table]
		err := c.one(ctx, s, p, t)
		switch {
		case errors.Is(err, errGaveWay), errors.Is(err, errChanged):
			c.setAside(p.units, err)
			s.close() // the locks go at once, and what may still be running ends
			s = nil
		case err != nil:
			return fmt.Errorf("verify table %s: %w", t.Name, err)
		default:
			if err := s.release(ctx); err != nil {
				return fmt.Errorf("verify: %w", err)
			}
		}
		if err := wait(ctx, c.in.Pause); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	return nil
}

// one compares a piece, and takes note of its units if it was their last.
func (c *comparison) one(ctx context.Context, s *sides, p piece, t *catalog.Table) error {
	skip := c.schema.skip[t.Name]
	var found []tenant.TableVerification
	err := c.watch.guard(ctx, s, func(ctx context.Context) (err error) {
		if found, err = p.compare(ctx, c.in, s, t, skip); err != nil || skip != "" || !readAgain(found) {
			return err // unchanged when it was read: see piece.read
		}
		return s.unchanged(ctx, t)
	})
	if err != nil {
		return err
	}
	for i := range found {
		if err := c.concluded(p.units[i], found[i]); err != nil {
			return err
		}
	}
	return nil
}

// readAgain reports whether a table was read once more, to name what differs.
func readAgain(found []tenant.TableVerification) bool {
	return slices.ContainsFunc(found, func(v tenant.TableVerification) bool { return !v.Equal || v.Misplaced > 0 })
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// concluded takes note of a unit that was compared.
func (c *comparison) concluded(u unit, v tenant.TableVerification) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.tables[u.table].add(u.number, v, c.in.LSN)
	c.news.add(v.Table, v.SourceRows, last)
	if !v.Equal || v.Misplaced > 0 || len(v.ShardsDiffer) > 0 || v.Skipped != "" {
		return nil
	}
	return c.in.OnPart(Part{Table: v.Table, Shape: u.shape, Number: u.number, Bounds: u.bounds, LSN: c.in.LSN, At: time.Now().UTC(), Rows: v.SourceRows, Digest: v.Digest})
}

// elsewhere reports whether a side's rows of a table need not be the source's: see Home.
func (in Input) elsewhere(t *catalog.Table, side string) bool {
	return in.Home != "" && side != "" && side != in.Home && !t.Sharded()
}

// wait sleeps, unless the context ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// compare compares a piece, and concludes on its units if it was their last; before, it returns nothing.
func (p piece) compare(ctx context.Context, in Input, s *sides, t *catalog.Table, skip string) ([]tenant.TableVerification, error) {
	if skip != "" {
		return []tenant.TableVerification{{Table: t.Name.String(), Skipped: skip}}, nil
	}
	last, err := p.scan(ctx, in, s, t)
	if err != nil || !last {
		return nil, err
	}
	out := make([]tenant.TableVerification, len(p.units))
	for i := range out {
		if out[i], err = p.conclude(ctx, in, s, t, i); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// conclude compares what the scans of all parts found of a unit, and names what differs.
func (p piece) conclude(ctx context.Context, in Input, s *sides, t *catalog.Table, unit int) (tenant.TableVerification, error) {
	statements := sync.OnceValue(func() statements {
		return newStatementsWithin(t, transcodes(in.Catalogue.Server.Encoding), p.units[unit].where, "")
	})
	source, shards := p.sums.source[unit], make([]class, len(p.sums.shards))
	for i := range shards {
		shards[i] = p.sums.shards[i][unit]
	}
	v := tenant.TableVerification{Table: t.Name.String(), SourceRows: source.rows, Digest: tableDigest(t, source), Equal: true}
	found := &findings{v: &v, limit: in.MaxDiffs, different: map[rowAt]int64{}, table: t, keyed: len(identityColumns(t)) > 0, tell: in.OnDiff}
	if t.Sharded() {
		var target class
		for _, sum := range shards {
			target = target.plus(sum)
		}
		v.TargetRows = target.rows
		if !target.equal(source) {
			if err := findDifferences(ctx, statements(), in, found, &s.source, refs(s.shards)); err != nil {
				return v, err
			}
		}
	} else {
		v.TargetRows = v.SourceRows
		for i, sum := range shards {
			if in.elsewhere(t, s.shards[i].name) {
				if !sum.equal(source) {
					v.ShardsDiffer = append(v.ShardsDiffer, s.shards[i].name)
				}
				continue
			}
			if sum.rows != v.SourceRows {
				v.TargetRows = sum.rows
			}
			if !sum.equal(source) {
				if err := findDifferences(ctx, statements(), in, found, &s.source, refs(s.shards[i:i+1])); err != nil {
					return v, err
				}
			}
		}
	}
	if len(found.different) > 0 {
		if err := nameColumns(ctx, statements(), t, found, &s.source, refs(s.shards)); err != nil {
			return v, err
		}
	}
	for i, n := range p.sums.moved {
		if n > 0 && len(p.units) > 1 { // in which of them?
			var err error
			if n, err = s.shards[i].misplaced(ctx, statements(), in.Placement); err != nil {
				return v, err
			}
		}
		if n == 0 {
			continue
		}
		v.Misplaced += n
		limit := in.MaxDiffs
		if in.OnDiff != nil {
			limit = misplacedTold
		}
		rows, err := s.shards[i].misplacedRows(ctx, statements(), in.Placement, limit)
		if err != nil {
			return v, err
		}
		for _, e := range rows {
			found.say(e)
		}
		for _, e := range rows[:min(len(rows), in.MaxDiffs)] {
			found.addAlways(tenant.RowDiff{Key: e.key, Kind: Misplaced, Shard: s.shards[i].name})
		}
		found.more(n - int64(min(len(rows), in.MaxDiffs)))
	}
	return v, nil
}

func refs(s []side) []*side {
	out := make([]*side, len(s))
	for i := range s {
		out[i] = &s[i]
	}
	return out
}

// transcodes reports whether texts have to be hashed as UTF-8: shards are UTF8, and SQL_ASCII passes bytes as they are.
func transcodes(encoding string) bool {
	return encoding != "" && encoding != "UTF8" && encoding != "SQL_ASCII"
}

// tableDigest is the hex SHA-256 over a table's name and what its rows add up to.
func tableDigest(t *catalog.Table, sum class) string {
	return hexSum(fmt.Appendf(nil, "%s\n%d %s %s\n", t.Name.Quoted(), sum.rows, &sum.sum1, &sum.sum2))
}

// summarise joins the tables' results. Its digest is the SHA-256 over the positions and the tables' names, counts and
// digests, sorted by name.
func (c *comparison) summarise() tenant.Verification {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.in
	out := tenant.Verification{StartedAt: c.started, FinishedAt: time.Now().UTC(), LSN: in.LSN, Clean: c.schema != nil && len(c.tables) == len(in.Catalogue.Tables)}
	out.ComparedAt = out.FinishedAt
	if !c.oldest.IsZero() && c.oldest.Before(out.ComparedAt) {
		out.ComparedAt = c.oldest
	}
	if c.first != 0 && c.first < in.LSN {
		out.FirstLSN = c.first
	}
	if c.schema != nil {
		out.Schema, out.MoreSchema = c.schema.diffs, c.schema.more
	}
	out.Clean = out.Clean && len(out.Schema) == 0
	out.Unfinished = len(in.Catalogue.Tables) - len(c.tables)
	for _, r := range c.tables {
		if r.left > 0 {
			out.Unfinished++
			out.Clean = false
			if r.v.Equal && r.v.Misplaced == 0 && len(r.v.ShardsDiffer) == 0 {
				continue // nothing can be said of it yet
			}
		}
		if r.v.LSN == in.LSN {
			r.v.LSN = 0
		}
		out.Tables = append(out.Tables, r.v)
	}
	slices.SortFunc(out.Tables, func(a, b tenant.TableVerification) int { return strings.Compare(a.Table, b.Table) })
	text := fmt.Appendf(nil, "%s\n", in.LSN)
	for i := range out.Tables {
		v := &out.Tables[i]
		out.Rows += v.SourceRows
		out.Clean = out.Clean && v.Equal && (v.Misplaced == 0 || in.Home != "")
		if v.LSN != 0 {
			text = fmt.Appendf(text, "at %s: ", v.LSN)
		}
		text = fmt.Appendf(text, "%s %d %s\n", v.Table, v.SourceRows, v.Digest)
	}
	out.Digest = hexSum(text)
	return out
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// reporter tells of progress, from all workers, one at a time.
type reporter struct {
	mu  sync.Mutex
	p   Progress
	est int64
	say func(Progress)
}

func newReporter(in Input) *reporter {
	r := &reporter{say: in.OnProgress, p: Progress{TablesTotal: len(in.Catalogue.Tables)}}
	for i := range in.Catalogue.Tables {
		r.est += in.Catalogue.Tables[i].Rows
	}
	return r
}

// add tells of a part, which may have been its table's last.
func (r *reporter) add(table string, rows int64, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.Table = table
	if last {
		r.p.TablesDone++
	}
	r.p.Rows += rows
	r.p.RowsTotal = max(r.est, r.p.Rows)
	r.say(r.p)
}
