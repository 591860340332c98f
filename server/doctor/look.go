package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// sourceView is what was seen at a replication's source.
type sourceView struct {
	systemID   string
	slot       *slot
	published  bool
	gate       *gate.State // nil: none is installed
	tables     []gate.Table
	marks      bool     // rehome.marker or rehome.heartbeat is there
	indexes    []string // made for replica identities
	otherSlots []string // named like ours, of other replications
	shared     bool     // publications named like ours, of other replications, or a shard's schema rehome
}

// slot is a replication slot as its server shows it.
type slot struct {
	status    string // wal_status: reserved, extended, unreserved, lost
	active    bool
	held      int64 // bytes of WAL that it holds back
	confirmed tenant.LSN
}

// shardView is what was seen of a replication's database at one of its shards.
type shardView struct {
	shard  string
	dsn    tenant.DSN
	err    error // it could not be looked at
	gate   *gate.State
	tables []gate.Table
	epoch  int64      // rehome.applier's of the replication; 0: there is no row
	lsn    tenant.LSN // rehome.progress' last
}

// sourceSlots is the slot by its name, and the names of others that look like ours, temporary ones left out.
const sourceSlots = `
SELECT slot_name::text, COALESCE(wal_status, ''), active, COALESCE(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, COALESCE(confirmed_flush_lsn, '0/0')::text
FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'rehome\_%' AND NOT temporary ORDER BY 1`

// sourceObjects is what Rehome may have made at a source beside slot and gate.
const sourceObjects = `
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
       EXISTS (SELECT FROM pg_publication WHERE pubname LIKE 'rehome\_%' AND pubname <> $1) OR to_regclass('rehome.owned') IS NOT NULL,
       to_regclass('rehome.marker') IS NOT NULL OR to_regclass('rehome.heartbeat') IS NOT NULL,
       COALESCE((SELECT array_agg(c.oid::regclass::text ORDER BY 1) FROM pg_class c WHERE c.relkind IN ('i', 'I') AND c.relname LIKE 'rehome\_ident\_%'), '{}')`

// look is visit within the bound of a look.
func look(ctx context.Context, open func(context.Context, tenant.DSN) (*pgx.Conn, error), dsn tenant.DSN, fn func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return visit(ctx, open, dsn, fn)
}

// visit runs fn on a session.
func visit(ctx context.Context, open func(context.Context, tenant.DSN) (*pgx.Conn, error), dsn tenant.DSN, fn func(context.Context, *pgx.Conn) error) error {
	conn, err := open(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = conn.Close(cctx) // the session ends either way
	}()
	return fn(ctx, conn)
}

func lookAtSource(ctx context.Context, r *replication) (*sourceView, error) {
	v := &sourceView{}
	err := look(ctx, gate.SourceSession, r.source, func(ctx context.Context, conn *pgx.Conn) (err error) {
		if v.systemID, err = shard.Identify(ctx, conn); err != nil {
			return err
		}
		rows, err := conn.Query(ctx, sourceSlots)
		if err != nil {
			return fmt.Errorf("list the slots: %w", err)
		}
		var name string
		var s slot
		_, err = pgx.ForEachRow(rows, []any{&name, &s.status, &s.active, &s.held, &s.confirmed}, func() error {
			if name == r.slot {
				found := s
				v.slot = &found
			} else {
				v.otherSlots = append(v.otherSlots, name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list the slots: %w", err)
		}
		if err := conn.QueryRow(ctx, sourceObjects, r.publication).Scan(&v.published, &v.shared, &v.marks, &v.indexes); err != nil {
			return fmt.Errorf("look for what was made at the source: %w", err)
		}
		v.gate, v.tables, err = lookAtGate(ctx, conn)
		return err
	})
	return v, err
}

// lookAtGate reads gate and fences; nothing without a gate.
func lookAtGate(ctx context.Context, conn *pgx.Conn) (*gate.State, []gate.Table, error) {
	s, err := gate.ReadGate(ctx, conn)
	if errors.Is(err, gate.ErrNoGate) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	tables, err := gate.Tables(ctx, conn)
	return &s, tables, err
}

// lookAtShards visits every shard of the replication's placement, side by side.
func (d *Doctor) lookAtShards(ctx context.Context, r *replication) ([]*shardView, error) {
	job, err := d.job(ctx, r)
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	var mu sync.Mutex
	views := make([]*shardView, 0, len(job.Shards))
	for _, s := range job.Shards {
		g.Go(func() error {
			v := &shardView{shard: s.Name, dsn: s.DSN}
			v.err = look(ctx, gate.ShardSession, s.DSN, func(ctx context.Context, conn *pgx.Conn) (err error) {
				if v.gate, v.tables, err = lookAtGate(ctx, conn); err != nil {
					return err
				}
				appliers, err := lookAtAppliers(ctx, conn)
				if err != nil || appliers[r.id] == 0 {
					return err
				}
				v.epoch = appliers[r.id]
				return conn.QueryRow(ctx, `SELECT COALESCE((SELECT lsn FROM rehome.progress WHERE replication = $1 ORDER BY seq DESC LIMIT 1), '0/0')::text`, r.id).Scan(&v.lsn)
			})
			mu.Lock()
			defer mu.Unlock()
			views = append(views, v)
			return nil
		})
	}
	return views, g.Wait()
}

// lookAtAppliers reads which replications a shard knows, with their fencing epochs.
func lookAtAppliers(ctx context.Context, conn *pgx.Conn) (map[string]int64, error) {
	out := map[string]int64{}
	rows, err := conn.Query(ctx, `SELECT replication, epoch FROM rehome.applier`)
	var id string
	var epoch int64
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&id, &epoch}, func() error { out[id] = epoch; return nil })
	}
	if hasCode(err, "42P01", "3F000") { // undefined_table, invalid_schema_name: no replication came here yet
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read who applies: %w", err)
	}
	return out, nil
}

// hasCode reports whether the server answered with one of the SQLSTATEs.
func hasCode(err error, codes ...string) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pe.Code)
}
