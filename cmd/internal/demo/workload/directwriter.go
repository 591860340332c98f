package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Names that the ledger counts acknowledged writes under.
const (
	SideSource = "source"
	SideShards = "shards"
)

// directWriter has a connection of its own to the source, which it gives up once the fence has sent it away.
type directWriter struct {
	w      *Writers
	gen    *generator
	name   string
	source *pgx.Conn // nil: not connected
	moved  bool      // the new side is asked first
}

func newDirectWriter(w *Writers, i int) *directWriter {
	return &directWriter{w: w, gen: newGenerator(w, 1000+uint64(i)), name: fmt.Sprintf("demo writer %d", i+1)}
}

func (d *directWriter) run(ctx, work context.Context) error {
	defer func() { d.disconnect(context.WithoutCancel(work)) }()
	for d.gen.pause(ctx, d.w.cfg.Pace) {
		d.do(work, d.next())
	}
	return nil
}

func (d *directWriter) next() Op {
	switch n := d.gen.rng.IntN(20); {
	case n < 8:
		return d.gen.transfer()
	case n < 12:
		return d.gen.document()
	case n < 15:
		return d.gen.other(KindMember)
	case n < 17:
		return d.gen.other(KindMetric)
	case n < 19 || d.moved:
		return d.gen.other(KindToken)
	}
	return d.gen.other(KindRate)
}

// do sends one write until its outcome is known or the context ends.
func (d *directWriter) do(ctx context.Context, op Op) {
	d.w.cfg.Ledger.Sent(op)
	started := time.Now()
	for try := 0; ; try++ {
		err := d.attempt(ctx, op)
		switch {
		case err == nil:
			d.w.stats.took(time.Since(started))
			return
		case errors.Is(err, ErrRefused):
			d.w.cfg.Ledger.Refused(op.ID)
			return
		case ctx.Err() != nil:
			return // stays unknown in the ledger
		case errors.Is(err, ErrMoved):
			// A fence's word is final for the side that spoke: the other one is asked next.
			d.moved = !d.moved
			d.w.stats.retry("fenced")
		default:
			d.w.cfg.Logger.DebugContext(ctx, "direct write failed", "error", err)
			d.w.stats.retry("direct: no answer")
		}
		if !wait(ctx, d.gen.backoff(try)) {
			return
		}
	}
}

func (d *directWriter) attempt(ctx context.Context, op Op) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if d.moved {
		return d.onShards(ctx, op)
	}
	if d.source == nil {
		conn, err := d.connect(ctx)
		if err != nil {
			return err
		}
		d.source = conn
	}
	_, err := Apply(ctx, d.source, op)
	if err != nil {
		if d.source.IsClosed() || errors.Is(err, ErrMoved) {
			d.disconnect(ctx)
		}
		return err
	}
	d.w.cfg.Ledger.Acknowledged(op.ID, GapDirect, SideSource)
	return nil
}

func (d *directWriter) onShards(ctx context.Context, op Op) error {
	pool, err := d.w.cfg.Resolve(ctx, op.Realm)
	if err != nil {
		d.moved = false // not known yet: the source may have been opened again
		return fmt.Errorf("find the new side of realm %s: %w", op.Realm, err)
	}
	if op.Kind == KindRate {
		// Reference tables are written at their home, not here. The write may have come through at the source, though.
		done, err := Done(ctx, pool, op.Realm, op.ID)
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("%w: reference tables are not written here", ErrRefused)
		}
	} else if _, err := Apply(ctx, pool, op); err != nil {
		return err
	}
	d.w.cfg.Ledger.Acknowledged(op.ID, GapDirect, SideShards)
	return nil
}

func (d *directWriter) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(d.w.cfg.Source.Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: not a connection string", d.w.cfg.Source)
	}
	cfg.RuntimeParams["application_name"] = d.name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.w.cfg.Source, err)
	}
	return conn, nil
}

func (d *directWriter) disconnect(ctx context.Context) {
	if d.source != nil {
		d.source.Close(ctx)
		d.source = nil
	}
}
