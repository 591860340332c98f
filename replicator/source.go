package replicator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// slotTimeout bounds the creation of a slot, which waits for every transaction that is open at the source. Whoever is in
// the way for longer is named instead.
const slotTimeout = 2 * time.Minute

// direct is a source that is reached by its connection string. A remote source will answer the same calls over the
// hosted server's API.
type direct struct {
	label       string // what messages call it: source, or of a way back the shard that it reads
	dsn         tenant.DSN
	replication string
	slot        SlotName
	publication string
	blocked     func(string)  // told who is in the way of a slot's creation; "" when nobody is any more
	patience    time.Duration // of a slot's creation
	early       bool          // its transactions may run ahead, so it should begin to stream them early
}

// identity of a source server, compared on every connect: another one is another server, whatever its address.
type identity struct {
	SystemIdentifier string
	Timeline         int32
}

func (d *direct) conn(ctx context.Context, role string) (*pgx.Conn, error) {
	c, err := connect(ctx, d.dsn, "rehome-"+role+"-"+d.replication, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.label, err)
	}
	return c, nil
}

// walsender opens a session for replication commands.
func (d *direct) walsender(ctx context.Context) (*pgconn.PgConn, *gulp, error) {
	c, g, err := connectReplication(ctx, d.dsn, "rehome-stream-"+d.replication, d.early)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d.label, err)
	}
	return c, g, nil
}

func (d *direct) identify(ctx context.Context) (identity, error) {
	c, _, err := d.walsender(ctx)
	if err != nil {
		return identity{}, err
	}
	defer closePgSoon(c)
	r, err := pglogrepl.IdentifySystem(ctx, c)
	if err != nil {
		return identity{}, fmt.Errorf("identify the source: %w", err)
	}
	return identity{SystemIdentifier: r.SystemID, Timeline: r.Timeline}, nil
}

// publish makes the publication of the catalogue's tables and of those named of Rehome's own.
func (d *direct) publish(ctx context.Context, cat *catalog.Catalogue, own ...string) error {
	c, err := d.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	names := make([]string, 0, len(cat.Tables)+len(own))
	for i := range cat.Tables {
		t := &cat.Tables[i]
		if t.Partitioned {
			names = append(names, t.Name.Quoted())
		} else {
			names = append(names, "ONLY "+t.Name.Quoted())
		}
	}
	names = append(names, own...)
	pub := tenant.QuoteIdent(d.publication)
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DROP PUBLICATION IF EXISTS "+pub); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE PUBLICATION "+pub+" FOR TABLE "+strings.Join(names, ", ")+" WITH (publish_via_partition_root = true)")
		return err
	})
	if err != nil {
		return fmt.Errorf("create publication %s: %w", d.publication, err)
	}
	return nil
}

// view is a snapshot of the source at one position: exactly the transactions whose commit record lies before lsn. It
// lives as long as its session, which must do nothing else.
type view struct {
	lsn  tenant.LSN
	cat  *catalog.Catalogue // what is replicated at that position, where it was asked for
	name string
	conn *pgconn.PgConn
}

func (s *view) close() {
	if s != nil {
		closePgSoon(s.conn)
	}
}

// createSlot makes the replication's slot with the snapshot that belongs to it. A slot left by an attempt that did not
// get further is dropped first.
func (d *direct) createSlot(ctx context.Context, failover bool) (*view, error) {
	if err := d.dropSlot(ctx); err != nil {
		return nil, err
	}
	options := "(SNAPSHOT 'export')"
	if failover {
		options = "(SNAPSHOT 'export', FAILOVER)" // from 17 on: a promoted standby goes on with it
	}
	return d.exportSnapshot(ctx, fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput %s", d.slot, options), fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput EXPORT_SNAPSHOT", d.slot))
}

// temporarySnapshot is a snapshot at a position of its own; its slot goes with the session.
func (d *direct) temporarySnapshot(ctx context.Context, purpose string) (*view, error) {
	name := fmt.Sprintf("%s_%s_%x", d.slot, purpose, time.Now().UnixNano())
	slot, err := ParseSlotName(name)
	if err != nil {
		return nil, err
	}
	return d.exportSnapshot(ctx, fmt.Sprintf("CREATE_REPLICATION_SLOT %s TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", slot), "")
}

func (d *direct) exportSnapshot(ctx context.Context, command, fallback string) (*view, error) {
	c, _, err := d.walsender(ctx)
	if err != nil {
		return nil, err
	}
	cctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	stopWatch := d.watchBlockers(cctx)
	res, err := pglogrepl.ParseCreateReplicationSlot(c.Exec(cctx, command))
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == "42601" && fallback != "" {
		// Before 15 the command has no parenthesised options.
		res, err = pglogrepl.ParseCreateReplicationSlot(c.Exec(cctx, fallback))
	}
	blocker := stopWatch()
	if err != nil {
		closePgSoon(c)
		if cctx.Err() != nil && ctx.Err() == nil {
			return nil, stop("slot-waits", "end that transaction at the source, then: rehome resume-replication",
				"a replication slot could not be created within %s, since it waits for every open transaction; the oldest: %s", d.patience, blocker)
		}
		return nil, fmt.Errorf("create a replication slot: %w", err)
	}
	lsn, err := tenant.ParseLSN(res.ConsistentPoint)
	if err != nil {
		closePgSoon(c)
		return nil, err
	}
	return &view{lsn: lsn, name: res.SnapshotName, conn: c}, nil
}

// watchBlockers looks, while a slot is being created, for the oldest transaction with an id, and shows it.
func (d *direct) watchBlockers(ctx context.Context) (stopWatch func() string) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var last string
	go func() {
		defer close(done)
		const patience = 2 * time.Second // a slot is made in well under a second when nobody is in the way
		for wait(ctx, patience) == nil {
			c, err := d.conn(ctx, "watch")
			if err != nil {
				continue
			}
			var who string
			err = c.QueryRow(ctx, `SELECT format('pid %s (%s, %s), open for %s, query: %s', pid, usename, coalesce(nullif(application_name, ''), 'no name'),
					date_trunc('second', now() - xact_start), left(query, 120))
				FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1`).Scan(&who)
			closeSoon(c)
			if err == nil {
				last = who
				d.blocked("slot creation waits for " + who)
			}
		}
	}()
	return func() string {
		cancel()
		<-done
		d.blocked("")
		if last == "" {
			return "(a prepared transaction, or one of a role whose activity we may not see)"
		}
		return last
	}
}

// reader opens a session that sees the snapshot.
func (d *direct) reader(ctx context.Context, snap string, role string) (*pgx.Conn, error) {
	c, err := d.conn(ctx, role)
	if err != nil {
		return nil, err
	}
	if err := useSnapshot(ctx, c, snap); err != nil {
		closeSoon(c)
		return nil, fmt.Errorf("source: %w", err)
	}
	return c, nil
}

// useSnapshot begins a transaction that sees an exported snapshot (manual, SET TRANSACTION).
func useSnapshot(ctx context.Context, c *pgx.Conn, snap string) error {
	if _, err := c.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, "SET TRANSACTION SNAPSHOT "+tenant.QuoteLiteral(snap)); err != nil {
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok && (pe.Code == "22023" || pe.Code == "42704") {
			// The session that exported it ended, as with a restart of the server; a new snapshot serves as well.
			return tenant.Errorf(tenant.KindUnavailable, "snapshot-gone", "", "the exported snapshot is gone: %s", pe.Message)
		}
		return fmt.Errorf("import the snapshot: %w", err)
	}
	return nil
}

// slotState is what the source says of our slot.
type slotState struct {
	exists    bool
	confirmed tenant.LSN
	restart   tenant.LSN
	status    string // wal_status: reserved, extended, unreserved, lost
	activePID int
	current   tenant.LSN // the source's write position
	plugin    string
	safe      int64 // safe_wal_size, at least 0; -1: no limit
	limit     int64 // max_slot_wal_keep_size in bytes; -1: none
}

// wal is what the slot holds back.
func (s slotState) wal() int64 { return int64(s.current - min(s.restart, s.current)) }

// slotState asks the source; the setting comes by its name, since the view pg_settings would make a row of each of hundreds.
func (d *direct) slotState(ctx context.Context, c *pgx.Conn) (slotState, error) {
	var s slotState
	var pid *int
	var status *string
	var safe *int64
	limit := int64(-1)
	err := c.QueryRow(ctx, `SELECT coalesce(confirmed_flush_lsn::text, '0/0'), coalesce(restart_lsn::text, '0/0'), wal_status, active_pid, pg_current_wal_lsn()::text,
			coalesce(plugin, ''), greatest(safe_wal_size, 0), pg_size_bytes(current_setting('max_slot_wal_keep_size'))
		FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()`, string(d.slot)).
		Scan(&s.confirmed, &s.restart, &status, &pid, &s.current, &s.plugin, &safe, &limit)
	if errors.Is(err, pgx.ErrNoRows) {
		return slotState{}, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the slot's state: %w", err)
	}
	s.exists, s.safe, s.limit = true, -1, -1
	if limit >= 0 {
		s.limit = limit
		if safe != nil {
			s.safe = *safe
		}
	}
	if status != nil {
		s.status = *status
	}
	if pid != nil {
		s.activePID = *pid
	}
	return s, nil
}

// freeSlot ends a walsender that still holds the slot: a former worker's.
func (d *direct) freeSlot(ctx context.Context, c *pgx.Conn) error {
	const patience = 20 // times 100 ms: a walsender notices its end within a second or two
	for range patience {
		s, err := d.slotState(ctx, c)
		if err != nil || !s.exists || s.activePID == 0 {
			return err
		}
		if _, err := c.Exec(ctx, `SELECT pg_terminate_backend($1)`, s.activePID); err != nil {
			return fmt.Errorf("end the former worker's stream: %w", err)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return tenant.Errorf(tenant.KindUnavailable, "slot-busy", "find out who reads the slot at the source: SELECT * FROM pg_replication_slots", "slot %s is still read by another session", d.slot)
}

// dropSlot drops the replication's slot if it is there.
func (d *direct) dropSlot(ctx context.Context) error {
	c, err := d.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	if err := d.freeSlot(ctx, c); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, string(d.slot)); err != nil {
		return fmt.Errorf("drop slot %s: %w", d.slot, err)
	}
	return nil
}

// cleanUp drops slot and publication. What else was changed at the source is undone by the caller.
func (d *direct) cleanUp(ctx context.Context) error {
	if err := d.dropSlot(ctx); err != nil {
		return err
	}
	c, err := d.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	if _, err := c.Exec(ctx, "DROP PUBLICATION IF EXISTS "+tenant.QuoteIdent(d.publication)); err != nil {
		return fmt.Errorf("drop publication %s: %w", d.publication, err)
	}
	return nil
}
