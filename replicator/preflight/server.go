package preflight

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// slotsNeeded are the slots and walsenders that a replication uses: one streams, one is made for each verification.
const slotsNeeded = 2

func (c *checker) settings(ctx context.Context, tx pgx.Tx) error {
	var (
		walLevel, fsync, keep, idle                      string
		slots, usedSlots, senders, usedSenders, prepared int
		standby, rehome, limited                         bool
	)
	err := tx.QueryRow(ctx, `
		SELECT current_setting('wal_level'), current_setting('fsync'), current_setting('max_slot_wal_keep_size'),
		       current_setting('max_slot_wal_keep_size') <> '-1',
		       coalesce(current_setting('idle_replication_slot_timeout', true), '0'),
		       current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)::int,
		       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication)::int,
		       current_setting('max_prepared_transactions')::int, pg_is_in_recovery(), to_regnamespace('rehome') IS NOT NULL`).
		Scan(&walLevel, &fsync, &keep, &limited, &idle, &slots, &usedSlots, &senders, &usedSenders, &prepared, &standby, &rehome)
	if err != nil {
		return err
	}
	if walLevel != "logical" {
		c.block("wal-level", "source", "ALTER SYSTEM SET wal_level = logical, and restart Postgres (Amazon RDS: rds.logical_replication = 1 in the parameter group)",
			"wal_level is %s: changes cannot be streamed", walLevel)
	}
	if standby {
		c.block("source-is-standby", "source", "name the primary", "the source is a standby: publication, slot and fence cannot be made there")
	}
	room := func(code, what, setting string, limit, used int) {
		remedy := fmt.Sprintf("raise %s, or remove what is not used", setting)
		switch free := limit - used; {
		case free < 1:
			c.block(code, "source", remedy, "all %d %s are in use", limit, what)
		case free < slotsNeeded:
			c.warn(code, "source", remedy, "only %d of %d %s is free: a verification needs a second one", free, limit, what)
		}
	}
	room("no-free-slot", "replication slots", "max_replication_slots", slots, usedSlots)
	room("no-free-walsender", "walsenders", "max_wal_senders", senders, usedSenders)
	if limited {
		c.warn("slot-wal-limit", "source", "raise max_slot_wal_keep_size, or set it to -1, for the time of the move",
			"max_slot_wal_keep_size is %s: if the stream lags by more, the slot is lost and the copy begins anew", keep)
	}
	if idle != "0" {
		c.warn("slot-wal-limit", "source", "set idle_replication_slot_timeout to 0 for the time of the move", "idle_replication_slot_timeout is %s: a paused replication loses its slot", idle)
	}
	if fsync != "on" {
		c.warn("fsync-off", "source", "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()", "fsync is %s: after a crash of the source the decision who writes may be lost", fsync)
	}
	if prepared > 0 {
		c.notice("two-phase", "source", "", "max_prepared_transactions is %d: a transaction that stays prepared holds up the slot and the cutover", prepared)
	}
	if rehome {
		c.notice("rehome-schema-present", "source", "cancel the other replication, or DROP SCHEMA rehome CASCADE if there is none", "schema rehome is there already, from another or an earlier replication")
	}
	return nil
}

func (c *checker) connections(ctx context.Context, tx pgx.Tx, side string, need int) error {
	var limit, used int
	err := tx.QueryRow(ctx, `SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
		(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int`).Scan(&limit, &used)
	if err == nil && limit-used < need {
		c.warn("few-connections", side, "raise max_connections, or lower --copy-jobs", "%d of %d connections are in use, about %d more are needed", used, limit, need)
	}
	return err
}

// activity names what a new slot would wait for: every transaction of the whole server that has an xid.
func (c *checker) activity(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT pid, coalesce(datname::text, ''), coalesce(usename::text, ''), coalesce(state, ''), extract(epoch FROM clock_timestamp() - xact_start)::float8,
		       left(regexp_replace(coalesce(query, ''), '\s+', ' ', 'g'), 120)
		FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND backend_type <> 'walsender' AND xact_start < clock_timestamp() - make_interval(secs => $1)
		ORDER BY xact_start`, longTransaction.Seconds())
	if err != nil {
		return err
	}
	var (
		pid                    int
		db, user, state, query string
		age                    float64
	)
	_, err = pgx.ForEachRow(rows, []any{&pid, &db, &user, &state, &age, &query}, func() error {
		c.warn("long-transaction", fmt.Sprintf("pid %d", pid), fmt.Sprintf("wait for it, or end it: SELECT pg_terminate_backend(%d)", pid),
			"a transaction of %s in %s is open for %s (%s): %s. The slot can be made only after it", user, db, seconds(age), state, query)
		return nil
	})
	if err != nil {
		return err
	}
	rows, err = tx.Query(ctx, `SELECT gid, owner::text, database::text, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts ORDER BY prepared`)
	if err != nil {
		return err
	}
	var gid string
	_, err = pgx.ForEachRow(rows, []any{&gid, &user, &db, &age}, func() error {
		quoted := tenant.QuoteLiteral(gid)
		if age < longTransaction.Seconds() {
			c.warn("prepared-transaction", gid, "let it be finished", "a transaction of %s in %s is prepared since %s", user, db, seconds(age))
			return nil
		}
		c.block("prepared-transaction", gid, fmt.Sprintf("COMMIT PREPARED %s or ROLLBACK PREPARED %s, in database %s", quoted, quoted, db),
			"a transaction of %s in %s is prepared since %s: the slot cannot be made before it ends", user, db, seconds(age))
		return nil
	})
	return err
}

func seconds(s float64) string {
	return (time.Duration(s) * time.Second).String()
}

func (c *checker) clock(ctx context.Context, tx pgx.Tx, side string) error {
	before := time.Now()
	var there time.Time
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&there); err != nil {
		return err
	}
	trip := time.Since(before)
	skew := there.Sub(before.Add(trip / 2))
	if skew.Abs()-trip/2 > clockSkew {
		c.warn("clock-skew", side, "synchronise the clocks (NTP)", "the clock of the %s differs by %s from this server's: shown lags mislead", side, skew.Round(time.Millisecond))
	}
	return nil
}

// replicationConnection tries what the stream will need: a connection in replication mode.
func (c *checker) replicationConnection(ctx context.Context) {
	cfg, err := pgx.ParseConfig(c.in.Source.Reveal())
	if err != nil {
		return
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = "rehome preflight"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		p := explain(err, cfg)
		c.block("replication-connection", "source", p.remedy+"; replication connections go to Postgres itself, not through a pooler", "a replication connection is refused: %s", p.message)
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	res, err := conn.PgConn().Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(res) == 0 || len(res[0].Rows) == 0 {
		c.block("replication-connection", "source", "connect to Postgres itself, not through a pooler", "the source does not answer IDENTIFY_SYSTEM")
		return
	}
	if c.facts.systemID == "" {
		c.facts.systemID = string(res[0].Rows[0][0])
		c.cat.Server.SystemIdentifier = c.facts.systemID
	}
}
