package cutover_test

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// carrier stands in for the engine of the way back: when a rollback's markers have come, it copies what every shard began
// to write before its marker to the source, and nothing that began later: what slips in between fence and marker is
// missing there.
type carrier struct {
	source tenant.DSN
	shards []cutover.Shard

	mu                  sync.Mutex
	prepared, discarded int
	there               bool
	refuse              error // of Prepare and Discard
	state               tenant.WayBackState
	lag                 int64
}

func (c *carrier) Prepare(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	for _, s := range c.shards {
		conn, err := pgx.Connect(ctx, s.DSN.Reveal())
		if err != nil {
			return err
		}
		err = gate.InstallBack(ctx, conn)
		_ = conn.Close(ctx)
		if err != nil {
			return err
		}
	}
	c.prepared++
	c.there, c.state = true, tenant.WayBackRunning
	return nil
}

func (c *carrier) Discard(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.discarded++
	c.there, c.state = false, tenant.WayBackNone
	return nil
}

func (c *carrier) Progress() tenant.WayBack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return tenant.WayBack{State: c.state, LagBytes: c.lag, Reason: "a reason", Remedy: "a remedy"}
}

func (c *carrier) has() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.there
}

func (c *carrier) WaitMarkers(ctx context.Context, attempt string) ([]tenant.ShardPosition, error) {
	if !c.has() {
		return nil, errors.New("there is no way back")
	}
	src, err := pgx.Connect(ctx, c.source.Reveal())
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close(context.WithoutCancel(ctx)) }()
	if err := gate.SetPass(ctx, src, pass); err != nil {
		return nil, err
	}
	var pos []tenant.ShardPosition
	for _, s := range c.shards {
		p, err := c.carry(ctx, s, src, attempt)
		if err != nil {
			return nil, err
		}
		pos = append(pos, p)
	}
	return pos, nil
}

func (c *carrier) carry(ctx context.Context, s cutover.Shard, src *pgx.Conn, attempt string) (p tenant.ShardPosition, err error) {
	conn, err := pgx.Connect(ctx, s.DSN.Reveal())
	if err != nil {
		return p, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	p.Shard = s.Name
	for n := 0; n == 0; {
		if err := conn.QueryRow(ctx, `SELECT count(*), pg_current_wal_lsn()::text FROM rehome.marker WHERE attempt = $1 AND kind = 'rollback'`, attempt).Scan(&n, &p.LSN); err != nil {
			return p, err
		}
		if n == 0 {
			select {
			case <-ctx.Done():
				return p, context.Cause(ctx)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	p.Durable = p.LSN
	rows, err := conn.Query(ctx, `SELECT id, realm_id FROM entries
		WHERE xmin::text::bigint < (SELECT xmin::text::bigint FROM rehome.marker WHERE attempt = $1 AND kind = 'rollback')`, attempt)
	if err != nil {
		return p, err
	}
	var ids, realms []string
	var id, realm string
	if _, err := pgx.ForEachRow(rows, []any{&id, &realm}, func() error {
		ids, realms = append(ids, id), append(realms, realm)
		return nil
	}); err != nil {
		return p, err
	}
	_, err = src.Exec(ctx, `INSERT INTO entries SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (id) DO NOTHING`, ids, realms)
	return p, err
}
