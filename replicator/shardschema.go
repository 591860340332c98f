package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// installShardSQL makes what the engine keeps at a shard, in the schema rehome of the tenant's database. It may run any
// number of times.
//
// rehome.progress is append-only: an updated row would grow a chain of dead versions while a snapshot is held.
// rehome.carry has large values of rows that moved to another shard, for that shard: see carry.
const installShardSQL = `
CREATE SCHEMA IF NOT EXISTS rehome;
REVOKE ALL ON SCHEMA rehome FROM PUBLIC;
GRANT USAGE ON SCHEMA rehome TO PUBLIC;
` + installLaneSQL + `
CREATE TABLE IF NOT EXISTS rehome.copied (
	replication text   NOT NULL,
	relation    text   NOT NULL,
	watermark   pg_lsn NOT NULL,
	rows        bigint NOT NULL,
	bytes       bigint NOT NULL,
	PRIMARY KEY (replication, relation)
);
CREATE TABLE IF NOT EXISTS rehome.carry (
	replication text   NOT NULL,
	lsn         pg_lsn NOT NULL,
	ordinal     int    NOT NULL,
	name        text   NOT NULL,
	value       text   NOT NULL,
	PRIMARY KEY (replication, lsn, ordinal, name)
);
CREATE TABLE IF NOT EXISTS rehome.chunks (
	replication text    NOT NULL,
	relation    text    NOT NULL,
	chunk       integer NOT NULL,           -- from 1, in the order of their ranges
	kind        "char"  NOT NULL,           -- k: of key values, c: of pages under one snapshot
	key         text    NOT NULL DEFAULT '', -- of kind k: the column
	lo          text,                       -- NULL: from the beginning
	hi          text,                       -- exclusive; NULL: to the end
	watermark   pg_lsn,                     -- NULL: not copied yet
	rows        bigint  NOT NULL DEFAULT 0,
	bytes       bigint  NOT NULL DEFAULT 0,
	PRIMARY KEY (replication, relation, chunk)
);
CREATE TABLE IF NOT EXISTS rehome.unfinished (
	replication text    NOT NULL,
	relation    text    NOT NULL,
	chunk       integer NOT NULL,
	rows        bigint  NOT NULL,
	bytes       bigint  NOT NULL,
	PRIMARY KEY (replication, relation, chunk)
);
CREATE TABLE IF NOT EXISTS rehome.copied_again (
	replication text   PRIMARY KEY,
	rows        bigint NOT NULL,
	bytes       bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS rehome.shape (
	replication text PRIMARY KEY,
	at_slot     json NOT NULL,
	doc         json NOT NULL,
	asked       pg_lsn
);
CREATE TABLE IF NOT EXISTS rehome.ddl_kept (
	replication text  PRIMARY KEY,
	doc         bytea NOT NULL
);
`

// installLaneSQL makes what a lane's transactions begin with: who may commit, and how far it is applied.
//
// rehome.advance names operators with their schema, which is cheaper than a search_path of its own. It is three statements,
// each of which sees what was committed when it began: what a worker may do that waited for the row is known then only.
const installLaneSQL = `
CREATE TABLE IF NOT EXISTS rehome.applier (
	replication text PRIMARY KEY,
	epoch       bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS rehome.progress (
	replication text   NOT NULL,
	seq         bigint NOT NULL,
	epoch       bigint NOT NULL,
	lsn         pg_lsn NOT NULL,
	at          timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (replication, seq)
);
CREATE OR REPLACE FUNCTION rehome.advance(r text, e bigint, last bigint, last_lsn pg_lsn, new_lsn pg_lsn) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM rehome.applier WHERE replication OPERATOR(pg_catalog.=) r AND epoch OPERATOR(pg_catalog.=) e FOR UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'replication % is owned by another worker', r USING ERRCODE = 'RH002';
	END IF;
	PERFORM FROM rehome.progress p WHERE p.replication OPERATOR(pg_catalog.=) r AND p.seq OPERATOR(pg_catalog.=) last AND p.lsn OPERATOR(pg_catalog.=) last_lsn
		AND NOT EXISTS (SELECT FROM rehome.progress n WHERE n.replication OPERATOR(pg_catalog.=) r AND n.seq OPERATOR(pg_catalog.>) last);
	IF NOT FOUND THEN
		RAISE EXCEPTION 'replication %: the last progress row is not number % at %', r, last, last_lsn USING ERRCODE = 'RH002';
	END IF;
	INSERT INTO rehome.progress (replication, seq, epoch, lsn) VALUES (r, last OPERATOR(pg_catalog.+) 1, e, new_lsn);
	RETURN last OPERATOR(pg_catalog.+) 1;
END $$;
REVOKE ALL ON FUNCTION rehome.advance FROM PUBLIC;
`

// InstallShard makes the engine's tables at a shard. Idempotent.
func InstallShard(ctx context.Context, conn *pgx.Conn) error {
	// Two workers may come here at once; CREATE … IF NOT EXISTS still races, so they take turns.
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('rehome install', 0))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, installShardSQL)
		return err
	})
	if err != nil {
		return fmt.Errorf("install the schema rehome: %w", err)
	}
	return nil
}

// shardTables are all tables that a replication may keep rows in at a shard, in the schema rehome; each has the column
// replication. Some are made only when they are needed.
var shardTables = []string{"progress", "copied", "chunks", "unfinished", "copied_again", "carry", "shape", "mended", "ddl_done", "ddl_kept", "ddl_later", "applier"}

// UninstallShard removes what InstallShard made, and what the replication noted on its way, at its end. Its worker must not
// be running. It may be repeated.
func UninstallShard(ctx context.Context, conn *pgx.Conn, replication string) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var there []string
		err := tx.QueryRow(ctx, `SELECT coalesce(array_agg(t), '{}') FROM unnest($1::text[]) t WHERE to_regclass('rehome.' || t) IS NOT NULL`, shardTables).Scan(&there)
		if err != nil || !slices.Contains(there, "applier") {
			return err
		}
		for _, table := range there {
			if _, err := tx.Exec(ctx, `DELETE FROM rehome.`+table+` WHERE replication = $1`, replication); err != nil {
				return err
			}
		}
		var others bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome.applier)`).Scan(&others); err != nil || others {
			return err
		}
		_, err = tx.Exec(ctx, `DROP FUNCTION IF EXISTS rehome.advance; DROP TABLE rehome.`+strings.Join(there, ", rehome."))
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the replication's notes from the shard: %w", err)
	}
	return nil
}

// position is the last row of rehome.progress at a shard.
type position struct {
	seq int64
	lsn tenant.LSN
}

// takeLane makes this worker the only one that may commit at the shard: it raises the epoch under the row lock that
// every group and every copy takes, and reads the position that is then certain. A zombie that holds the lock is
// terminated: a server that was stopped or cut off in the middle of a copy would keep it for hours. So is every session of
// the replication that runs ahead, since the lanes need the rows that it has locked.
func takeLane(ctx context.Context, conn *pgx.Conn, replication string, epoch int64) (position, error) {
	var p position
	for try := 0; ; try++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// Long enough for a group that is just committing, short enough to notice one that hangs.
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '3s'`); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, `INSERT INTO rehome.applier (replication, epoch) VALUES ($1, $2)
				ON CONFLICT (replication) DO UPDATE SET epoch = $2 WHERE rehome.applier.epoch <= $2`, replication, epoch)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return ErrFenced
			}
			err = tx.QueryRow(ctx, `SELECT seq, lsn::text FROM rehome.progress WHERE replication = $1 ORDER BY seq DESC LIMIT 1`, replication).Scan(&p.seq, &p.lsn)
			if errors.Is(err, pgx.ErrNoRows) {
				p = position{}
				return nil
			}
			return err
		})
		if err == nil {
			// A session that runs ahead holds locks of rows, but this one only when it commits.
			ended, err := endSides(ctx, conn, replication)
			if err != nil || !ended {
				return p, err
			}
			if try > takeTries {
				return p, errSidesStay
			}
			continue // it may have committed just before
		}
		if !isLockTimeout(err) || try >= takeTries {
			return p, fmt.Errorf("take over the shard: %w", err)
		}
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name IN ($1, $2, $3)`,
			laneName(replication), copyName(replication), aheadName(replication)); err != nil {
			return p, fmt.Errorf("end the former worker's session: %w", err)
		}
	}
}

const (
	// takeTries is how often a shard is tried to be taken over again, of which each ends what is in the way.
	takeTries = 3
	// endPatience is how long a session may take to end: the server looks for that within each statement.
	endPatience = 10 * time.Second
	endPoll     = 20 * time.Millisecond
)

var errSidesStay = tenant.Errorf(tenant.KindUnavailable, "former-session", "", "sessions that apply a transaction of this replication ahead of its commit do not end")

// endSides ends the sessions of a replication that run ahead at a shard, waits until they are gone, and reports whether there
// was any.
func endSides(ctx context.Context, conn *pgx.Conn, replication string) (ended bool, err error) {
	for since := time.Now(); ; ended = true {
		var left int
		// Of our roles only: others that take the name hold nothing that the lanes could not wait for as for anybody else.
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = $1 AND pg_has_role(usesysid, 'USAGE')`, aheadName(replication)).Scan(&left)
		switch {
		case err != nil:
			return ended, fmt.Errorf("end a session that runs ahead: %w", err)
		case left == 0:
			return ended, nil
		case time.Since(since) > endPatience:
			return ended, errSidesStay
		}
		if err := wait(ctx, endPoll); err != nil {
			return ended, err
		}
	}
}

// seedProgress sets a shard's position before the stream begins: to where the slot begins. It is fenced like a group: a
// worker that was slow to make its slot must not reset what the next one has begun.
func seedProgress(ctx context.Context, conn *pgx.Conn, replication string, epoch int64, at tenant.LSN) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var owned int
		err := tx.QueryRow(ctx, `SELECT 1 FROM rehome.applier WHERE replication = $1 AND epoch = $2 FOR UPDATE`, replication, epoch).Scan(&owned)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrFenced
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rehome.progress WHERE replication = $1`, replication); err != nil {
			return err
		}
		for _, table := range []string{"copied", "chunks", "unfinished", "copied_again"} {
			if _, err := tx.Exec(ctx, `DELETE FROM rehome.`+table+` WHERE replication = $1`, replication); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rehome.carry WHERE replication = $1`, replication); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO rehome.progress (replication, seq, epoch, lsn) VALUES ($1, 1, $2, $3::pg_lsn)`, replication, epoch, at.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("set the shard's first position: %w", err)
	}
	return nil
}

func laneName(replication string) string { return sessionName("rehome-lane-" + replication) }

func aheadName(replication string) string { return sessionName("rehome-ahead-" + replication) }

func copyName(replication string) string { return sessionName("rehome-copy-" + replication) }

// sessionName is a session's name as the server shows it: NAMEDATALEN-1 bytes of it.
func sessionName(s string) string { return s[:min(len(s), 63)] }
