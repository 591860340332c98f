package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
)

const (
	// leaseTTL is how long a replication stands still after its server died. Longer than a pause of the garbage
	// collector or a slow commit, short enough that nobody is woken for it.
	leaseTTL = 10 * time.Second
	// renewEvery leaves two more tries before a lease runs out.
	renewEvery = 3 * time.Second
	// renewWithin is how long one try may take: what is left of the lease when it is made. The next does not wait for it: a
	// session whose peer vanished must not take the others' time, and one that is slow must not begin from the start, behind
	// another server that waits for the same row.
	renewWithin = leaseTTL - renewEvery
)

// errNoLease says that another server holds the lease.
var errNoLease = errors.New("another server holds the lease")

func resource(replication string) string { return "replication:" + replication }

// takeLease takes a lease that is free, expired or our own from before, and raises its epoch.
func (s *Supervisor) takeLease(ctx context.Context, replication string) (epoch int64, err error) {
	err = s.cfg.Pool.QueryRow(ctx, `INSERT INTO rehome_control.leases (resource, holder, epoch, expires_at) VALUES ($1, $2, 1, now() + $3)
		ON CONFLICT (resource) DO UPDATE SET holder = $2, epoch = rehome_control.leases.epoch + 1, expires_at = now() + $3
		WHERE rehome_control.leases.expires_at < now() OR rehome_control.leases.holder = $2
		RETURNING epoch`, resource(replication), s.cfg.Server, leaseTTL).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, errNoLease
	}
	if err != nil {
		return 0, fmt.Errorf("take the lease of replication %s: %w", replication, err)
	}
	return epoch, nil
}

// keepLease renews until the context ends (nil) or another server has taken over (replicator.ErrFenced). A control
// database that cannot be reached is waited for.
func (s *Supervisor) keepLease(ctx context.Context, replication string, epoch int64) error {
	return keepRenewed(ctx, func(tctx context.Context) error {
		err := s.renewLease(tctx, replication, epoch)
		if err != nil && ctx.Err() == nil && !errors.Is(err, replicator.ErrFenced) {
			s.log.Warn("renew a lease", "replication", replication, "error", err)
		}
		return err
	})
}

// keepRenewed calls renew every renewEvery, also while earlier calls have not returned, until the context ends (nil) or one
// says replicator.ErrFenced.
func keepRenewed(ctx context.Context, renew func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var tries sync.WaitGroup // three at most, as renewWithin says
	defer func() {
		cancel()
		tries.Wait()
	}()
	fenced := make(chan error, 1)
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-fenced:
			return err
		case <-tick.C:
		}
		tries.Go(func() {
			tctx, cancel := context.WithTimeout(ctx, renewWithin)
			defer cancel()
			if err := renew(tctx); errors.Is(err, replicator.ErrFenced) {
				select {
				case fenced <- err:
				default: // another said so
				}
			}
		})
	}
}

// renewLease lengthens the lease, or returns ErrFenced. One whose time is over is still ours until another server takes it,
// which raises its epoch.
func (s *Supervisor) renewLease(ctx context.Context, replication string, epoch int64) error {
	// One that waited for a later one takes nothing back. It does not wait for the disk, and so neither does who waits for the
	// row: where a crash forgets a renewal the lease ends sooner, and its epoch guards against that.
	tag, err := s.cfg.Pool.Exec(ctx, `WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		UPDATE rehome_control.leases SET expires_at = greatest(expires_at, now() + $4) FROM quick WHERE resource = $1 AND holder = $2 AND epoch = $3`,
		resource(replication), s.cfg.Server, epoch, leaseTTL)
	if err == nil && tag.RowsAffected() == 0 {
		return replicator.ErrFenced
	}
	return err
}

// dropLease gives a lease back at once, so that another server need not wait for its end.
func (s *Supervisor) dropLease(ctx context.Context, replication string, epoch int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewEvery)
	defer cancel()
	_, err := s.cfg.Pool.Exec(ctx, `UPDATE rehome_control.leases SET expires_at = now() - interval '1 second' WHERE resource = $1 AND holder = $2 AND epoch = $3`,
		resource(replication), s.cfg.Server, epoch)
	if err != nil {
		s.log.Warn("give a lease back", "replication", replication, "error", err)
	}
}
