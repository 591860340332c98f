package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// VerificationMaxAge is how old a clean verification may be: what it did not see is the tail.
	VerificationMaxAge = 15 * time.Minute
	// lagSamples and lagEvery: one good sample under load is luck.
	lagSamples = 3
	lagEvery   = 150 * time.Millisecond
	// lagPatience is how long good samples are waited for.
	lagPatience = 10 * time.Second
	// maxLagBytes is about what a pause of half a second can drain; maxLagMillis is most of that pause. A longer maximum
	// pause allows a larger lag: that share of it, the rest being for the fence and the drain's own work.
	maxLagBytes  = 16 << 20
	maxLagMillis = 400.0
	lagShare     = 5
	// longTransaction is when a transaction at the source is worth naming: it can hold the fence up.
	longTransaction = 2 * time.Second
	// clientsNamed bounds the finding that lists direct clients.
	clientsNamed = 12
)

// findings gathers findings from several goroutines.
type findings struct {
	mu   sync.Mutex
	list []tenant.Finding
}

func (f *findings) add(severity tenant.Severity, code, object, remedy, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, tenant.Finding{Severity: severity, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// preflight finds what stands in the way of a cutover and fills in what the attempt needs of the present. It changes
// nothing. An error means that it could not look.
func (r *run) preflight(ctx context.Context) error {
	f := &findings{}
	if err := r.checkVerification(ctx, f); err != nil {
		return err
	}
	if err := r.checkLag(ctx, f); err != nil {
		return err
	}
	if step := catalog.Step(len(r.job.Shards)); step > 1 {
		for _, s := range r.job.Shards {
			if s.Ordinal >= step {
				f.add(tenant.Blocking, "shard-number", "shard "+s.Name, "put the database on shards that were among the first of the installation",
					"it is number %d of the installation, and sequences leave room for %d shards: two could hand out one value", s.Ordinal+1, step)
			}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.checkSource(gctx, f) })
	g.Go(func() error { return r.checkGateways(gctx, f) })
	g.Go(func() error { return r.wayBack(f).shards(gctx) })
	tops := make([]int64, len(r.job.Shards))
	for i, s := range r.job.Shards {
		g.Go(func() error {
			top, err := checkShard(gctx, s, f)
			tops[i] = top
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.shardTop = slices.Max(append(tops, 0))
	r.sorted(f)
	return nil
}

// sorted accepts what may be and was, and puts the findings in order.
func (r *run) sorted(f *findings) {
	for i := range f.list {
		// Only these may be waved through; the others would make the cutover fail or lose something.
		if code := f.list[i].Code; code == "fsync-off" || wayBackFamily(code) {
			f.list[i].Acceptable = true
			if r.goes == DirectionRollback && wayBackFamily(code) {
				f.list[i].Acceptable = false // there is no rollback without one
				continue
			}
			named := slices.Contains(r.job.Accept, f.list[i].ID())
			f.list[i].Accepted = named || wayBackFamily(code) && r.at.NoWayBack
			// Whoever accepted by name what makes a way back impossible gets none, as with --no-way-back.
			r.at.NoWayBack = r.at.NoWayBack || named && wayBackFamily(code) && code != noWayBackTrigger
		}
	}
	slices.SortStableFunc(f.list, func(a, b tenant.Finding) int {
		return strings.Compare(rank(a.Severity)+a.ID(), rank(b.Severity)+b.ID())
	})
	r.rec.Findings = f.list
}

func rank(s tenant.Severity) string {
	switch s {
	case tenant.Blocking:
		return "0"
	case tenant.Warning:
		return "1"
	}
	return "2"
}

// checkVerification demands that the latest verification is clean and fresh, and made since the authority moved last: before
// a cutover of the shards, before a rollback of the source.
func (r *run) checkVerification(ctx context.Context, f *findings) error {
	moved, err := r.c.LastMove(ctx, r.job.Replication)
	if err != nil {
		return err
	}
	const verify = "run: rehome verify"
	want := tenant.DirectionForward
	if r.goes == DirectionRollback {
		want = tenant.DirectionBack
	}
	var id string
	var raw []byte
	var finished time.Time
	err = r.c.cfg.Pool.QueryRow(ctx, `SELECT id, result, finished_at FROM rehome_control.verifications
		WHERE replication = $1 AND finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1`, r.job.Replication).Scan(&id, &raw, &finished)
	if errors.Is(err, pgx.ErrNoRows) {
		f.add(tenant.Blocking, "not-verified", r.job.Database, verify, "the replication was never verified")
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the latest verification: %w", err)
	}
	var v tenant.Verification
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("read the latest verification: %w", err)
	}
	r.rec.Verification, r.rec.Digest, r.rec.VerifiedLSN = id, v.Digest, v.LSN
	if !v.ComparedAt.IsZero() && v.ComparedAt.Before(finished) {
		finished = v.ComparedAt // one that went on at several positions is as old as its oldest part
	}
	if r.goes == DirectionRollback {
		f.warnOfShards(v.Tables)
	}
	if age := r.c.cfg.Now().Sub(finished); !v.Clean {
		f.add(tenant.Blocking, "verification-not-clean", id, "see its differences, mend them and run: rehome verify", "the latest verification found differences")
	} else if age > VerificationMaxAge {
		f.add(tenant.Blocking, "verification-too-old", id, verify, "the latest verification is %s old; at most %s is allowed", age.Round(time.Second), VerificationMaxAge)
	} else if !finished.After(moved) || !v.StartedAt.IsZero() && v.StartedAt.Before(moved) || v.Direction != want {
		f.add(tenant.Blocking, "verification-too-old", id, verify, "the latest verification is older than the last cutover or rollback, which was at %s", moved.Format(time.RFC3339))
	}
	return nil
}

// LastMove is when the authority moved last, by a cutover or a rollback of this replication; zero if it never did. A
// verification from before says nothing of what was written since.
func (c *Coordinator) LastMove(ctx context.Context, replication string) (time.Time, error) {
	var at time.Time
	err := c.cfg.Pool.QueryRow(ctx, `SELECT coalesce((report->>'decided_at')::timestamptz, finished_at) FROM rehome_control.cutovers
		WHERE replication = $1 AND finished_at IS NOT NULL AND (direction, outcome) IN (('cutover', 'target'), ('rollback', 'source'))
		ORDER BY gate_epoch DESC LIMIT 1`, replication).Scan(&at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return at, fmt.Errorf("read when the authority moved last: %w", err)
	}
	return at, nil
}

// checkLag demands that the replication is in sync and stays close behind: good samples in a row, for which it waits a
// little, since a lag that comes and goes is the rule beside busy writers.
func (r *run) checkLag(ctx context.Context, f *findings) error {
	if p := r.stream.Progress(); p.Phase != tenant.InSync && p.Phase != tenant.CuttingOver && p.Phase != tenant.RolledBack {
		f.add(tenant.Blocking, "not-in-sync", r.job.Database, "wait until rehome replication-progress says in_sync", "the replication is %s", p.Phase)
		return nil
	}
	return r.checkClose(ctx, f, "the shards", "the source", func() (int64, float64) {
		p := r.stream.Progress()
		return p.LagBytes, p.LagMillis
	})
}

// checkClose demands a short lag several times in a row.
func (r *run) checkClose(ctx context.Context, f *findings, who, whom string, lag func() (bytes int64, ms float64)) error {
	most := max(maxLagMillis, float64(r.at.MaxPause.Milliseconds())/lagShare)
	limit := time.Now().Add(lagPatience)
	for good := 0; good < lagSamples; {
		bytes, ms := lag()
		good++
		if bytes > maxLagBytes || ms > most {
			good = 0
			if time.Now().After(limit) {
				f.add(tenant.Blocking, "lag", r.job.Database, "wait for a quieter moment, or allow a longer --max-pause",
					"%s are %d bytes or %.0f ms behind %s; at most %d bytes and %.0f ms fit into the pause", who, bytes, ms, whom, int64(maxLagBytes), most)
				return nil
			}
		}
		t := time.NewTimer(lagEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
	return nil
}
