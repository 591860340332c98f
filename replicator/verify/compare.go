package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// compareAll deals the tables, largest first as the catalogue has them, and of large ones their parts, to workers with
// sessions of their own.
func compareAll(ctx context.Context, in Input, news *reporter, schema *schemaFindings) ([]tenant.TableVerification, error) {
	tables := in.Catalogue.Tables
	results := make([]tenant.TableVerification, len(tables))
	var pieces []piece
	for i := range tables {
		cuts := schema.cuts[tables[i].Name]
		if schema.skip[tables[i].Name] != "" {
			cuts = nil
		}
		pieces = append(pieces, newPieces(i, cuts, len(in.Shards))...)
	}
	next := make(chan piece, len(pieces))
	for _, p := range pieces {
		next <- p
	}
	close(next)
	group, ctx := errgroup.WithContext(ctx)
	for range min(in.Jobs, len(pieces)) {
		group.Go(func() error {
			s, err := openSides(ctx, in)
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			defer s.close()
			for p := range next {
				t := &tables[p.table]
				v, err := p.compare(ctx, in, s, t, schema.skip[t.Name])
				if err != nil {
					return fmt.Errorf("verify table %s: %w", t.Name, err)
				}
				if v != nil {
					results[p.table] = *v
					news.done(v)
				}
				if err := wait(ctx, in.Pause); err != nil {
					return fmt.Errorf("verify: %w", err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return results, nil
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

// compare compares a piece, and concludes on the table if it was its last; before, it returns nil.
func (p piece) compare(ctx context.Context, in Input, s *sides, t *catalog.Table, skip string) (*tenant.TableVerification, error) {
	if skip != "" {
		return &tenant.TableVerification{Table: t.Name.String(), Skipped: skip}, nil
	}
	last, err := p.scan(ctx, in, s, t)
	if err != nil || !last {
		return nil, err
	}
	v, err := p.sums.conclude(ctx, in, s, t)
	return &v, err
}

// conclude compares what the scans of all parts found, and names what differs.
func (a *tableSums) conclude(ctx context.Context, in Input, s *sides, t *catalog.Table) (tenant.TableVerification, error) {
	st := newStatements(t, transcodes(in.Catalogue.Server.Encoding))
	source, shards, moved := a.source, a.shards, a.moved
	v := tenant.TableVerification{Table: t.Name.String(), SourceRows: source.rows(), Digest: tableDigest(t, source), Equal: true}
	found := &findings{v: &v, limit: in.MaxDiffs, different: map[rowAt]int64{}}
	if t.Sharded() {
		target := digest{}
		for _, d := range shards {
			target.add(d)
		}
		v.TargetRows = target.rows()
		if err := drill(ctx, st, in, found, &s.source, refs(s.shards), source, target); err != nil {
			return v, err
		}
	} else {
		v.TargetRows = v.SourceRows
		for i, d := range shards {
			if n := d.rows(); n != v.SourceRows {
				v.TargetRows = n
			}
			if err := drill(ctx, st, in, found, &s.source, refs(s.shards[i:i+1]), source, d); err != nil {
				return v, err
			}
		}
	}
	if err := nameColumns(ctx, st, t, found, &s.source, refs(s.shards)); err != nil {
		return v, err
	}
	for i, n := range moved {
		if n == 0 {
			continue
		}
		v.Misplaced += n
		keys, err := s.shards[i].misplacedKeys(ctx, st, in.Placement, in.MaxDiffs)
		if err != nil {
			return v, err
		}
		for _, key := range keys {
			found.add(tenant.RowDiff{Key: key, Kind: Misplaced, Shard: s.shards[i].name}, 1)
		}
		found.more(n - int64(len(keys)))
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

// tableDigest is the hex SHA-256 over a table's name and classes.
func tableDigest(t *catalog.Table, d digest) string {
	text := fmt.Appendf(nil, "%s\n", t.Name.Quoted())
	for _, id := range slices.Sorted(maps.Keys(d)) {
		text = fmt.Appendf(text, "%d %d %s %s\n", id, d[id].rows, d[id].sum1, d[id].sum2)
	}
	return hexSum(text)
}

// summarise joins the tables' results. Its digest is the SHA-256 over the position and the tables' names, counts and
// digests, sorted by name.
func summarise(in Input, started time.Time, tables []tenant.TableVerification, schema *schemaFindings) tenant.Verification {
	slices.SortFunc(tables, func(a, b tenant.TableVerification) int { return strings.Compare(a.Table, b.Table) })
	out := tenant.Verification{StartedAt: started, FinishedAt: time.Now().UTC(), LSN: in.LSN, Tables: tables, Schema: schema.diffs, MoreSchema: schema.more}
	out.Clean = len(schema.diffs) == 0
	text := fmt.Appendf(nil, "%s\n", in.LSN)
	for i := range tables {
		v := &tables[i]
		out.Rows += v.SourceRows
		out.Clean = out.Clean && v.Equal && v.Misplaced == 0
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

func (r *reporter) done(v *tenant.TableVerification) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.Table = v.Table
	r.p.TablesDone++
	r.p.Rows += v.SourceRows
	r.p.RowsTotal = max(r.est, r.p.Rows)
	r.say(r.p)
}
