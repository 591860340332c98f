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

// compareAll deals the tables, largest first as the catalogue has them, to workers with sessions of their own.
func compareAll(ctx context.Context, in Input, news *reporter, skip map[tenant.TableName]string) ([]tenant.TableVerification, error) {
	tables := in.Catalogue.Tables
	results := make([]tenant.TableVerification, len(tables))
	next := make(chan int, len(tables))
	for i := range tables {
		next <- i
	}
	close(next)
	group, ctx := errgroup.WithContext(ctx)
	for range min(in.Jobs, len(tables)) {
		group.Go(func() error {
			s, err := openSides(ctx, in)
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			defer s.close()
			for i := range next {
				if why := skip[tables[i].Name]; why != "" {
					results[i] = tenant.TableVerification{Table: tables[i].Name.String(), Skipped: why}
				} else if results[i], err = compareTable(ctx, in, s, &tables[i]); err != nil {
					return fmt.Errorf("verify table %s: %w", tables[i].Name, err)
				}
				news.done(&results[i])
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

// compareTable scans a table on all sides at the same time and names what differs.
func compareTable(ctx context.Context, in Input, s *sides, t *catalog.Table) (tenant.TableVerification, error) {
	st := newStatements(t, transcodes(in.Catalogue.Server.Encoding))
	var source digest
	shards := make([]digest, len(s.shards))
	moved := make([]int64, len(s.shards))
	movedKeys := make([][]string, len(s.shards))
	group, scanCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		source, err = s.source.scan(scanCtx, st.classes)
		return err
	})
	for i := range s.shards {
		group.Go(func() (err error) {
			if shards[i], err = s.shards[i].scan(scanCtx, st.classes); err != nil || !t.Sharded() {
				return err
			}
			moved[i], movedKeys[i], err = s.shards[i].misplaced(scanCtx, st, in.Placement, in.MaxDiffs)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return tenant.TableVerification{}, err
	}

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
		v.Misplaced += n
		for _, key := range movedKeys[i] {
			found.add(tenant.RowDiff{Key: key, Kind: Misplaced, Shard: s.shards[i].name}, 1)
		}
		found.more(n - int64(len(movedKeys[i])))
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
