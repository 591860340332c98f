package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// behind is what is done behind the fence beside marker and drain, which take as long: the fence's triggers, the sequences
// frozen at the source, then set at the shards. The fence's session and the shards' aside sessions are its own meanwhile.
type behind struct {
	source chan struct{} // closed when nothing more is done at the source
	group  errgroup.Group
	cancel context.CancelFunc // ends what is done at the shards

	// After source is closed:
	sourceErr error
	frozen    []tenant.SequenceValue
	times     []timed
	// After wait:
	sets []tenant.SequenceSet
}

// timed is a step that somebody else than the attempt's own goroutine timed.
type timed struct {
	name  string
	start time.Time
	took  time.Duration
}

// beginBehind begins it; failed is called when it met an error, so that nobody waits for the drain in vain.
func (r *run) beginBehind(ctx context.Context, failed func(error)) {
	b := &behind{source: make(chan struct{})}
	r.behind = b
	shards, cancel := context.WithCancel(ctx)
	b.cancel = cancel
	b.group.Go(func() error {
		err := func() error {
			defer close(b.source)
			b.sourceErr = b.atSource(ctx, r)
			return b.sourceErr
		}()
		if err == nil {
			err = b.atShards(shards, r)
		}
		if err != nil {
			failed(err)
		}
		return err
	})
}

func (b *behind) step(name string, fn func() error) error {
	start := time.Now()
	err := fn()
	b.times = append(b.times, timed{name, start, time.Since(start)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (b *behind) atSource(ctx context.Context, r *run) error {
	if err := b.step("triggers", func() error { return r.gate.CreateTriggers(ctx) }); err != nil {
		return err
	}
	if len(r.job.catalogueSequences()) == 0 {
		return nil
	}
	return b.step("freeze", func() (err error) { b.frozen, err = r.freeze(ctx); return err })
}

// freeze makes the source's sequences stop behind the fence, and returns where they stand.
func (r *run) freeze(ctx context.Context) ([]tenant.SequenceValue, error) {
	for try := 1; ; try++ {
		values, err := catalog.ReadSequences(ctx, r.gate.Tx().Conn(), r.job.Catalogue)
		if err != nil {
			return nil, err
		}
		// A savepoint: nextval() takes no table lock, so a value may be drawn between reading and freezing.
		err = r.gate.Script(ctx, "SAVEPOINT rehome_freeze;\n"+catalog.FreezeSQL(values)+"RELEASE SAVEPOINT rehome_freeze;\n")
		if err == nil {
			return values, nil
		}
		if try == freezeTries || !isSequenceMoved(err) || ctx.Err() != nil {
			return nil, err
		}
		if _, err := r.gate.Tx().Exec(ctx, "ROLLBACK TO SAVEPOINT rehome_freeze"); err != nil {
			return nil, err
		}
	}
}

// atShards sets the shards' sequences ahead of the source's.
func (b *behind) atShards(ctx context.Context, r *run) error {
	if len(b.frozen) == 0 {
		return nil
	}
	return b.step(StepSequences, func() error {
		step := catalog.Step(len(r.shards))
		sets := make([][]tenant.SequenceSet, len(r.shards))
		g, gctx := errgroup.WithContext(ctx)
		for i, s := range r.shards {
			g.Go(func() (err error) {
				if sets[i], err = catalog.SetSequences(gctx, s.aside, b.frozen, s.Ordinal, step); err != nil {
					return fmt.Errorf("shard %s: %w", s.Name, err)
				}
				for k := range sets[i] {
					sets[i][k].Shard = s.Name
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		b.sets = slices.Concat(sets...)
		return nil
	})
}

// joinBehind waits for all of it and takes over what it made.
func (r *run) joinBehind() error {
	err := r.behind.group.Wait()
	r.behind.cancel()
	for _, t := range r.behind.times {
		s := tenant.StepTime{Step: t.name, Millis: millis(t.took), AtMillis: millis(t.start.Sub(r.began)), Pause: true}
		// Where it began, not where it was waited for.
		i := len(r.rec.Steps)
		for i > 0 && r.rec.Steps[i-1].AtMillis > s.AtMillis {
			i--
		}
		r.rec.Steps = slices.Insert(r.rec.Steps, i, s)
	}
	r.rec.Frozen, r.rec.Sequences = r.behind.frozen, r.behind.sets
	if r.rec.Sequences == nil {
		r.rec.Sequences = []tenant.SequenceSet{}
	}
	r.behind = nil
	return err
}

// leaveSource makes sure that nobody uses the fence's session any more, before it is rolled back; what is done at the
// shards is told to end, and joined later.
func (r *run) leaveSource() {
	if r.behind != nil {
		r.behind.cancel()
		<-r.behind.source
	}
}

// drain waits for the marker at every shard.
func (r *run) drain(bound, cut context.Context) (err error) {
	stop := r.watchDrain(cut)
	defer stop()
	r.rec.MarkerLSN, r.rec.Shards, err = r.stream.WaitMarker(bound, r.at.ID)
	if err != nil {
		if b, ok := errors.AsType[*behindError](context.Cause(bound)); ok { // it is why nobody waited
			return b.err
		}
		return err
	}
	if r.rec.MarkerLSN <= r.rec.VerifiedLSN {
		return fmt.Errorf("the marker's position %s is not after the verification's %s", r.rec.MarkerLSN, r.rec.VerifiedLSN)
	}
	slices.SortFunc(r.rec.Shards, func(a, b tenant.ShardPosition) int { return strings.Compare(a.Shard, b.Shard) })
	return nil
}

// behindError tells a drain that was given up for something else from one that took too long.
type behindError struct{ err error }

func (e *behindError) Error() string { return e.err.Error() }
func (e *behindError) Unwrap() error { return e.err }
