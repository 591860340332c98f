package gate

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// FenceSession is the session that holds the fence.
func (a *Attempt) FenceSession() *pgx.Conn { return a.fence }

// TryLock is one try to lock all tables against writers.
func (a *Attempt) TryLock(ctx context.Context, timeout time.Duration) (retry bool, err error) {
	return a.lockOnce(ctx, "SHARE ROW EXCLUSIVE", timeout, "")
}
