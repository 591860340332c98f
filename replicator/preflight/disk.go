package preflight

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
)

// spaceFactor is how much of the heaps' size a target needs for heaps, indexes and the WAL of the copy.
const spaceFactor = 2.5

// disk compares sizes with the free space at a shard. Postgres does not tell it: it can be measured only where the shard's
// data directory is on this machine.
func (c *checker) disk(ctx context.Context, tx pgx.Tx, side, host string) error {
	share := float64(c.facts.bytes) / float64(max(1, c.in.Shards))
	for _, t := range c.cat.Tables {
		if !t.Sharded() {
			share += float64(t.Bytes) * (1 - 1/float64(max(1, c.in.Shards))) // whole on every shard
		}
	}
	need := int64(share * spaceFactor)
	var dir string
	if isLocal(host) {
		if err := tx.QueryRow(ctx, `SELECT CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') ELSE '' END`).Scan(&dir); err != nil {
			return err
		}
	}
	free, ok := int64(0), false
	if dir != "" {
		if _, err := os.Stat(dir); err == nil {
			free, ok = freeSpace(dir)
		}
	}
	switch {
	case !ok:
		c.notice("disk-space-unknown", side, "make sure that there is room", "about %s are needed at the %s; what is free there cannot be seen from here", size(need), side)
	case free < need:
		c.blockAcceptable("disk-space", side, "make room, or add a shard", "about %s are needed at the %s, %s are free", size(need), side, size(free))
	}
	return nil
}

func isLocal(host string) bool {
	if strings.HasPrefix(host, "/") || host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func size(n int64) string {
	const unit = 1024
	v := float64(n)
	for _, u := range []string{"bytes", "KiB", "MiB", "GiB"} {
		if v < unit {
			return fmt.Sprintf("%.0f %s", v, u)
		}
		v /= unit
	}
	return fmt.Sprintf("%.1f TiB", v)
}
