package doctor

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// leftoversFor is how long the source of a replication that ended well is still looked at; later it may rightly be gone.
	leftoversFor = 30 * 24 * time.Hour
	// attemptGrace is how much longer than its maximum pause a cutover may take: preflight, locks, resolving, following.
	attemptGrace = 2 * time.Minute
)

// records is what there is to examine.
type records struct {
	shards       []shard.Shard
	databases    []shard.Database
	replications []ref
}

type ref struct{ id string }

func (d *Doctor) load(ctx context.Context) (records, error) {
	var rec records
	var err error
	if rec.shards, err = d.cfg.Catalogue.Shards(ctx); err != nil {
		return rec, fmt.Errorf("read the shards: %w", err)
	}
	if rec.databases, err = d.cfg.Catalogue.Databases(ctx); err != nil {
		return rec, fmt.Errorf("read the databases: %w", err)
	}
	rows, err := d.cfg.Pool.Query(ctx, `SELECT id FROM rehome_control.replications r
		WHERE phase NOT IN ('completed', 'cancelled') OR ended_at IS NULL OR ended_at > $1
		   OR EXISTS (SELECT FROM rehome_control.source_changes c WHERE c.replication = r.id AND c.undone_at IS NULL)
		ORDER BY created_at`, d.cfg.Now().Add(-leftoversFor))
	if err != nil {
		return rec, fmt.Errorf("read the replications: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return rec, fmt.Errorf("read the replications: %w", err)
	}
	for _, id := range ids {
		rec.replications = append(rec.replications, ref{id})
	}
	return rec, nil
}

// replication is one as the control database has it.
type replication struct {
	id, database, slot, publication, label, targetURL string
	state                                             tenant.State
	source                                            tenant.DSN
	options                                           tenant.ReplicationOptions
	origin                                            replicator.Origin // zero before a slot was made
	toUndo                                            []tenant.SourceChange
	attempt                                           string        // unfinished
	attemptAge                                        time.Duration // beyond its maximum pause
	commands                                          int           // open ones
	rivals                                            bool          // another replication that is not over has the same source
}

// phase is where the replication stands, or goes back to when it is resumed.
func (r *replication) phase() tenant.Phase {
	if r.state.Phase == tenant.Paused {
		return r.state.Resume
	}
	return r.state.Phase
}

// moving reports whether a cutover may be under way just now: gates and fences are then in motion.
func (r *replication) moving() bool { return r.attempt != "" && r.attemptAge < attemptGrace }

// streams reports whether the phase lives from the stream: without its slot the replication is lost.
func (r *replication) streams() bool {
	switch r.phase() {
	case tenant.CatchingUp, tenant.InSync, tenant.CuttingOver, tenant.CutOver, tenant.RollingBack, tenant.RolledBack:
		return true
	}
	return false
}

// prepared reports whether gate and publication at the source, gate and fence at the shards have been made.
func (r *replication) prepared() bool { return r.streams() || r.phase() == tenant.Copying }

func (r *replication) name() string { return "replication " + r.id }

// read reads a replication; nil if it is gone.
func (d *Doctor) read(ctx context.Context, id string) (*replication, error) {
	r := &replication{id: id}
	var sealed, options, state, origin, cat []byte
	var attempt *string
	var age *float64
	err := d.cfg.Pool.QueryRow(ctx, `SELECT database, slot_name, publication, source_label, target_url, source_dsn_sealed, options, state, source_identity, catalogue,
			a.attempt, a.age, (SELECT count(*) FROM rehome_control.replication_commands c WHERE c.replication = r.id AND c.finished_at IS NULL)
		FROM rehome_control.replications r LEFT JOIN LATERAL (
			SELECT c.attempt, extract(epoch FROM now() - c.started_at)::float8 - c.max_pause_ms / 1000.0 AS age FROM rehome_control.cutovers c
			WHERE c.replication = r.id AND c.direction = 'cutover' AND c.finished_at IS NULL ORDER BY c.started_at DESC LIMIT 1) a ON true
		WHERE r.id = $1`, id).
		Scan(&r.database, &r.slot, &r.publication, &r.label, &r.targetURL, &sealed, &options, &state, &origin, &cat, &attempt, &age, &r.commands)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read replication %s: %w", id, err)
	}
	if attempt != nil {
		r.attempt, r.attemptAge = *attempt, time.Duration(*age*float64(time.Second))
	}
	if r.source, err = d.sourceOf(sealed); err != nil {
		return nil, err
	}
	if err := errors.Join(json.Unmarshal(options, &r.options), json.Unmarshal(state, &r.state), json.Unmarshal(origin, &r.origin)); err != nil {
		return nil, fmt.Errorf("read replication %s: %w", id, err)
	}
	if cat != nil {
		r.origin.Catalogue = &catalog.Catalogue{}
		if err := json.Unmarshal(cat, r.origin.Catalogue); err != nil {
			return nil, fmt.Errorf("read replication %s: %w", id, err)
		}
	}
	if !r.state.Phase.Terminal() {
		return r, nil
	}
	if r.toUndo, err = d.changes(ctx, id); err != nil {
		return nil, err
	}
	r.rivals, err = d.hasRivals(ctx, r)
	return r, err
}

func (d *Doctor) sourceOf(sealed []byte) (tenant.DSN, error) {
	dsn, err := d.cfg.Seal.Open("source-dsn", sealed)
	if err != nil {
		return "", fmt.Errorf("open a source's connection string: %w", err)
	}
	return tenant.DSN(dsn), nil
}

// changes are those of a source that have not been taken back.
func (d *Doctor) changes(ctx context.Context, id string) ([]tenant.SourceChange, error) {
	rows, err := d.cfg.Pool.Query(ctx, `SELECT ordinal, object, description, do_sql, undo_sql FROM rehome_control.source_changes
		WHERE replication = $1 AND undone_at IS NULL ORDER BY ordinal`, id)
	if err != nil {
		return nil, fmt.Errorf("read the changes of the source: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c tenant.SourceChange, err error) {
		err = row.Scan(&c.Ordinal, &c.Object, &c.Description, &c.Do, &c.Undo)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the changes of the source: %w", err)
	}
	return out, nil
}

// hasRivals reports whether a replication that is not over reads from the same database: what it needs must stay.
func (d *Doctor) hasRivals(ctx context.Context, r *replication) (bool, error) {
	rows, err := d.cfg.Pool.Query(ctx, `SELECT source_dsn_sealed FROM rehome_control.replications WHERE id <> $1 AND phase NOT IN ('completed', 'cancelled')`, r.id)
	if err != nil {
		return false, fmt.Errorf("look for other replications: %w", err)
	}
	sealed, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return false, fmt.Errorf("look for other replications: %w", err)
	}
	for _, s := range sealed {
		other, err := d.sourceOf(s)
		if err != nil {
			return false, err
		}
		// A source may be written in many ways; its database's name is the same in all of them.
		if a, b := databaseName(r.source), databaseName(other); a == "" || a == b {
			return true, nil
		}
	}
	return false, nil
}

func databaseName(dsn tenant.DSN) string {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return ""
	}
	return cfg.Database
}

// pass lets sessions through the fences of a database, as the workers derive it.
func (d *Doctor) pass(database string) tenant.Secret {
	return tenant.Secret(hex.EncodeToString(d.cfg.Seal.Derive("fence-pass:" + database)))
}

// job is the replication as the coordinator of cutovers wants it.
func (d *Doctor) job(ctx context.Context, r *replication) (cutover.Job, error) {
	j := cutover.Job{
		Replication: r.id, Database: r.database, Source: r.source, SourceLabel: r.label, TargetURL: r.targetURL,
		Publication: r.publication, Accept: r.options.Accept, Catalogue: r.origin.Catalogue,
	}
	p, err := d.cfg.Catalogue.Placement(ctx, r.database)
	if err != nil {
		return j, err
	}
	j.Placement = p.Epoch
	ordinals, err := d.cfg.Catalogue.ShardOrdinals(ctx, r.database)
	if err != nil {
		return j, err
	}
	for _, name := range p.Shards() {
		dsn, err := d.cfg.Catalogue.DatabaseDSN(ctx, r.database, name)
		if err != nil {
			return j, err
		}
		j.Shards = append(j.Shards, cutover.Shard{Name: name, Ordinal: ordinals[name], DSN: dsn})
	}
	return j, nil
}
