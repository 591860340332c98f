package supervisor

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// record is a replication as the control database has it.
type record struct {
	id, database, targetURL, slot, publication, approvedBy string
	sourceLabel                                            string
	source                                                 tenant.DSN
	options                                                tenant.ReplicationOptions
	throttle                                               tenant.Throttle
	state                                                  tenant.State
	origin                                                 *replicator.Origin
	shards                                                 []replicator.Shard
	placement                                              tenant.Placement
}

func (s *Supervisor) load(ctx context.Context, id string) (*record, error) {
	r := &record{id: id}
	var sealed []byte
	var options, state, origin, cat []byte
	err := s.cfg.Pool.QueryRow(ctx, `SELECT database, target_url, slot_name, publication, approved_by, source_label, source_dsn_sealed, options, state, source_identity, catalogue, throttle
		FROM rehome_control.replications WHERE id = $1`, id).
		Scan(&r.database, &r.targetURL, &r.slot, &r.publication, &r.approvedBy, &r.sourceLabel, &sealed, &options, &state, &origin, &cat, &r.throttle)
	if err != nil {
		return nil, fmt.Errorf("read the replication: %w", err)
	}
	dsn, err := s.cfg.Seal.Open("source-dsn", sealed)
	if err != nil {
		return nil, err
	}
	r.source = tenant.DSN(dsn)
	if err := errors.Join(json.Unmarshal(options, &r.options), json.Unmarshal(state, &r.state)); err != nil {
		return nil, fmt.Errorf("read the replication: %w", err)
	}
	if cat != nil {
		r.origin = &replicator.Origin{Catalogue: &catalog.Catalogue{}}
		if err := errors.Join(json.Unmarshal(origin, r.origin), json.Unmarshal(cat, r.origin.Catalogue)); err != nil {
			return nil, fmt.Errorf("read what was recorded of the source: %w", err)
		}
	}
	if r.placement, err = s.cfg.Catalogue.Placement(ctx, r.database); err != nil {
		return nil, err
	}
	ordinals, err := s.cfg.Catalogue.ShardOrdinals(ctx, r.database)
	if err != nil {
		return nil, err
	}
	for _, name := range r.placement.Shards() {
		dsn, err := s.cfg.Catalogue.DatabaseDSN(ctx, r.database, name)
		if err != nil {
			return nil, err
		}
		r.shards = append(r.shards, replicator.Shard{Name: name, Ordinal: ordinals[name], DSN: dsn})
	}
	return r, nil
}

// pass lets the engine's sessions through the fences of a database. It is derived, so that nothing need be stored.
func (s *Supervisor) pass(database string) tenant.Secret {
	return tenant.Secret(hex.EncodeToString(s.cfg.Seal.Derive("fence-pass:" + database)))
}

// journal records what an engine does. It implements replicator.Journal.
type journal struct {
	s        *Supervisor
	id       string
	database string
	epoch    int64
	changed  func(tenant.State)
}

// stallTimeout ends a transaction of ours that does not go on, as when the process is stopped in the middle of one: it holds
// the lease's row, and nobody could take over. Far above what our side of a transaction takes (what the database takes does not
// count), below what a take-over waits anyway. It is retryable, see replicator.IsRetryable.
const stallTimeout = 5 * time.Second

// owned makes sure, in a transaction, that this server still holds the lease, and keeps it so until the commit.
func (j *journal) owned(ctx context.Context, tx pgx.Tx) error {
	var one int
	var timeout string
	err := tx.QueryRow(ctx, `SELECT 1, set_config('idle_in_transaction_session_timeout', $4, true)
		FROM rehome_control.leases WHERE resource = $1 AND holder = $2 AND epoch = $3 FOR SHARE`,
		resource(j.id), j.s.cfg.Server, j.epoch, strconv.FormatInt(stallTimeout.Milliseconds(), 10)).Scan(&one, &timeout)
	if errors.Is(err, pgx.ErrNoRows) {
		return replicator.ErrFenced
	}
	return err
}

// held asks whether this server still holds the lease; ErrFenced if not.
func (j *journal) held(ctx context.Context) error {
	return j.guarded(ctx, func(pgx.Tx) error { return nil })
}

// guarded writes while this server holds the lease.
func (j *journal) guarded(ctx context.Context, write func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, j.s.cfg.Pool, func(tx pgx.Tx) error {
		if err := j.owned(ctx, tx); err != nil {
			return err
		}
		return write(tx)
	})
}

// Observe implements replicator.Journal: the phase follows from the row as it is, with its event.
func (j *journal) Observe(ctx context.Context, o tenant.Observation) (next tenant.State, err error) {
	return j.observe(ctx, o, nil)
}

// observe also does, in the same transaction and before the event of the phase, what belongs to a change of it.
func (j *journal) observe(ctx context.Context, o tenant.Observation, also func(pgx.Tx, tenant.State) error) (next tenant.State, err error) {
	err = pgx.BeginFunc(ctx, j.s.cfg.Pool, func(tx pgx.Tx) error {
		if err := j.owned(ctx, tx); err != nil {
			return err
		}
		var raw []byte
		if err := tx.QueryRow(ctx, `SELECT state FROM rehome_control.replications WHERE id = $1 FOR UPDATE`, j.id).Scan(&raw); err != nil {
			return err
		}
		var was tenant.State
		if err := json.Unmarshal(raw, &was); err != nil {
			return err
		}
		var err error
		if next, _, err = tenant.Next(was, o); err != nil || next == was {
			return err
		}
		if raw, err = json.Marshal(next); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE rehome_control.replications SET state = $2, phase = $3, updated_at = now(),
			ended_at = CASE WHEN $4 THEN now() ELSE ended_at END WHERE id = $1`, j.id, raw, string(next.Phase), next.Phase.Terminal())
		if err != nil {
			return err
		}
		if also != nil {
			if err := also(tx, next); err != nil {
				return err
			}
		}
		// A step belongs to the phase that it was taken in.
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.replication_steps SET finished_at = now() WHERE replication = $1 AND finished_at IS NULL`, j.id); err != nil {
			return err
		}
		data := map[string]any{"from": was.Phase, "to": next.Phase, "reason": next.Reason, "remedy": next.Remedy}
		if o.Kind == tenant.AskedPause { // a person knows already
			data["asked"] = true
		}
		if was.Phase == tenant.CuttingOver || was.Phase == tenant.RollingBack {
			// The next attempt begins with a phase of its own, so the newest is the one that ended.
			var attempt string
			if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT attempt FROM rehome_control.cutovers WHERE replication = $1 ORDER BY started_at DESC LIMIT 1), '')`, j.id).Scan(&attempt); err != nil {
				return err
			}
			data["attempt"] = attempt
		}
		return j.note(ctx, tx, "phase", data)
	})
	if err != nil {
		return next, fmt.Errorf("record %s: %w", o.Kind, err)
	}
	if j.changed != nil {
		j.changed(next)
	}
	return next, nil
}

// SaveOrigin implements replicator.Journal.
func (j *journal) SaveOrigin(ctx context.Context, o replicator.Origin) error {
	cat, err := json.Marshal(o.Catalogue)
	if err != nil {
		return err
	}
	o.Catalogue = nil
	origin, err := json.Marshal(o)
	if err != nil {
		return err
	}
	err = j.guarded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE rehome_control.replications SET source_identity = $2, catalogue = $3, start_lsn = $4::pg_lsn, updated_at = now() WHERE id = $1`,
			j.id, origin, cat, o.StartLSN.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("record the source: %w", err)
	}
	return nil
}

// ChangeSource implements replicator.Journal.
func (j *journal) ChangeSource(ctx context.Context, c tenant.SourceChange) error {
	// A change that was recorded before a crash keeps its first record: what undoes it was read before it was made.
	err := j.guarded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.source_changes (replication, ordinal, object, description, do_sql, undo_sql)
			SELECT $1, coalesce(max(ordinal), 0) + 1, $2, $3, $4, $5 FROM rehome_control.source_changes WHERE replication = $1
			HAVING NOT EXISTS (SELECT 1 FROM rehome_control.source_changes WHERE replication = $1 AND do_sql = $4)`,
			j.id, c.Object, c.Description, c.Do, c.Undo)
		return err
	})
	if err != nil {
		return fmt.Errorf("record a change of the source: %w", err)
	}
	return nil
}

// CopiedTable implements replicator.Journal.
func (j *journal) CopiedTable(ctx context.Context, relation string, chunk int, watermark tenant.LSN, rows, bytes int64) error {
	return j.CopiedTables(ctx, watermark, []replicator.CopiedUnit{{Relation: relation, Chunk: chunk, Rows: rows, Bytes: bytes}})
}

// CopiedTables implements replicator.JournalOfMany.
func (j *journal) CopiedTables(ctx context.Context, watermark tenant.LSN, units []replicator.CopiedUnit) error {
	var relations []string
	var chunks []int
	var rows, bytes []int64
	for _, u := range units {
		relations, chunks, rows, bytes = append(relations, u.Relation), append(chunks, u.Chunk), append(rows, u.Rows), append(bytes, u.Bytes)
	}
	err := j.guarded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.replication_chunks (replication, relation, chunk, watermark, rows, bytes)
			SELECT $1, u.relation, u.chunk, $3::pg_lsn, u.rows, u.bytes FROM unnest($2::text[], $4::int[], $5::bigint[], $6::bigint[]) u(relation, chunk, rows, bytes)
			ON CONFLICT (replication, relation, chunk) DO UPDATE SET watermark = excluded.watermark, rows = excluded.rows, bytes = excluded.bytes, finished_at = now()`,
			j.id, relations, watermark.String(), chunks, rows, bytes)
		return err
	})
	if err != nil {
		return fmt.Errorf("record a copied table: %w", err)
	}
	return nil
}

// Note implements replicator.Journal. News that cannot be written must not stop the work; those of a former owner are no
// news.
func (j *journal) Note(ctx context.Context, event string, data any) {
	err := j.guarded(ctx, func(tx pgx.Tx) error {
		if step, ok := data.(map[string]any); ok && event == "step" {
			if name, ok := step["step"].(string); ok {
				if err := j.step(ctx, tx, name); err != nil {
					return err
				}
			}
		}
		return j.note(ctx, tx, event, data)
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, replicator.ErrFenced) {
		j.s.log.Warn("write an event", "event", event, "error", err)
	}
}

// step keeps when each step began and ended, for people: the last one is open until the next begins. A step that is taken
// again, after a crash, begins anew.
func (j *journal) step(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := tx.Exec(ctx, `WITH ended AS (UPDATE rehome_control.replication_steps SET finished_at = now() WHERE replication = $1 AND finished_at IS NULL AND name <> $2)
		INSERT INTO rehome_control.replication_steps (replication, name) VALUES ($1, $2)
		ON CONFLICT (replication, name) DO UPDATE SET started_at = now(), finished_at = NULL`, j.id, name)
	return err
}

func (j *journal) note(ctx context.Context, db progress.DB, event string, data any) error {
	_, err := j.s.cfg.Log.Append(ctx, db, progress.Entry{Stream: j.id, Database: j.database, Kind: "replication", ID: j.id, Event: event, Data: data})
	return err
}

// gates gives the engine what it needs of package gate. It implements replicator.Gate.
type gates struct {
	pass        tenant.Secret
	replication string
}

func (g gates) InstallSource(ctx context.Context, c *pgx.Conn) error {
	return gate.InstallSource(ctx, c, g.pass)
}

func (g gates) InstallShard(ctx context.Context, c *pgx.Conn) error {
	return gate.InstallShard(ctx, c, g.pass)
}

// FenceTable implements replicator.Gate.
func (g gates) FenceTable(t tenant.TableName) []string { return gate.FenceTableSQL(t) }

func (g gates) FenceShard(ctx context.Context, c *pgx.Conn) error {
	_, err := gate.FenceShardTables(ctx, c)
	return err
}

func (g gates) Heartbeat(ctx context.Context, c *pgx.Conn) error {
	return gate.Heartbeat(ctx, c, g.replication)
}
