package replicator

import (
	"context"
	"errors"
	"fmt"
)

// DiscardShards drops the way back's part at every shard, for a source that is gone for good. It may be repeated; what
// cannot be reached is an error, and the rest is dropped all the same.
func (b *Back) DiscardShards(ctx context.Context) error {
	return b.exclusive(ctx, func() error {
		if err := b.owned(ctx); err != nil {
			return err
		}
		errs := make([]error, 0, len(b.side))
		for _, s := range b.side {
			if err := b.removeShard(ctx, s); err != nil {
				errs = append(errs, fmt.Errorf("drop the way back: shard %s: %w", s.shard.Name, s.translated(err)))
			}
		}
		return errors.Join(errs...)
	})
}
