package cutover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// noWayBack is the code of the finding that the source cannot be written back to, and begins those of its family: what is
// in the way of the replication from the shards to the source. They refuse a cutover, and --no-way-back waves them through.
// What only needs attention has a code that begins with wayBackNote instead.
const (
	noWayBack   = "no-way-back"
	wayBackNote = "way-back"
	// noWayBackTrigger is one of the family that may be accepted by name and leaves a way back.
	noWayBackTrigger = noWayBack + "-trigger"
)

// wayBackFamily reports whether a finding is about the way back and refuses.
func wayBackFamily(code string) bool {
	return code == noWayBack || strings.HasPrefix(code, noWayBack+"-")
}

// wayBackChecks looks at what the replication from the shards back to the source will need, before the pause: its slots
// are made while everybody still writes to the source, and nothing may be found missing later.
type wayBackChecks struct {
	job    Job
	unused bool // --no-way-back: what refuses is said all the same, what needs attention is not
	f      *findings
}

func (r *run) wayBack(f *findings) wayBackChecks {
	return wayBackChecks{job: r.job, unused: r.at.NoWayBack, f: f}
}

func (w wayBackChecks) block(code, object, remedy, format string, args ...any) {
	w.f.add(tenant.Blocking, noWayBack+"-"+code, object, remedy, format, args...)
}

func (w wayBackChecks) note(severity tenant.Severity, code, object, remedy, format string, args ...any) {
	if !w.unused {
		w.f.add(severity, wayBackNote+"-"+code, object, remedy, format, args...)
	}
}

// accepts reports whether a finding was accepted by name, here or when the replication was started.
func (w wayBackChecks) accepts(code, object string) bool {
	return slices.Contains(w.job.Accept, tenant.Finding{Code: code, Object: object}.ID())
}

// source looks at the source as the side that will be written to again by our role, as the tables' owner.
func (w wayBackChecks) source(ctx context.Context, conn *pgx.Conn) error {
	for _, check := range []func(context.Context, *pgx.Conn) error{w.replicaRole, w.firing, w.rowSecurity, w.unchecked, w.connections} {
		if err := check(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// replicaRole: writes can be carried back only where foreign keys and user triggers can be kept quiet meanwhile.
func (w wayBackChecks) replicaRole(ctx context.Context, conn *pgx.Conn) error {
	needed, err := replicator.NeedsReplicaRole(ctx, conn, w.job.Publication)
	if err != nil {
		return err
	}
	if !needed {
		return nil
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("try the replica role: %w", err)
	}
	_, refused := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`)
	if err := tx.Rollback(ctx); err != nil {
		return fmt.Errorf("try the replica role: %w", err)
	}
	if refused != nil {
		w.f.add(tenant.Blocking, noWayBack, "source", "GRANT SET ON PARAMETER session_replication_role TO our role (from version 15 on), or accept it: --no-way-back",
			"the source has foreign keys, triggers or rules, and our role may not set session_replication_role: writes cannot be carried back to it")
	}
	return nil
}

// firing finds triggers and rules that fire for replicated rows too: what they did at a shard would come back as rows and
// happen once more at the source.
func (w wayBackChecks) firing(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, replicator.PublishedTables+`
		SELECT c.nspname::text, c.relname::text, t.tgname::text, 'trigger' FROM published c JOIN pg_trigger t ON t.tgrelid = c.oid
			JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') AND n.nspname <> 'rehome'
		UNION ALL
		SELECT c.nspname::text, c.relname::text, r.rulename::text, 'rule' FROM published c JOIN pg_rewrite r ON r.ev_class = c.oid WHERE r.ev_enabled IN ('A', 'R')
		ORDER BY 1, 2, 3`, w.job.Publication)
	if err != nil {
		return fmt.Errorf("look for triggers that always fire: %w", err)
	}
	var t tenant.TableName
	var name, kind string
	if _, err := pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &name, &kind}, func() error {
		object := t.String() + "." + name
		if w.accepts("trigger-always", object) { // whoever said that it may happen twice said so of both directions
			return nil
		}
		w.f.add(tenant.Blocking, noWayBackTrigger, object, fmt.Sprintf("ALTER TABLE %s ENABLE %s %s, or accept it: --no-way-back", t.Quoted(), strings.ToUpper(kind), tenant.QuoteIdent(name)),
			"%s %s of %s fires for replicated rows too (ENABLE ALWAYS or REPLICA): what it did at a shard would happen again at the source", kind, name, t)
		return nil
	}); err != nil {
		return fmt.Errorf("look for triggers that always fire: %w", err)
	}
	return nil
}

// rowSecurity finds policies that apply to our role: an UPDATE or DELETE under them hits nothing, and says nothing.
func (w wayBackChecks) rowSecurity(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, replicator.PublishedTables+`
		SELECT nspname::text, relname::text, current_user::text FROM published WHERE row_security_active(oid) ORDER BY 1, 2`, w.job.Publication)
	if err != nil {
		return fmt.Errorf("look at row security: %w", err)
	}
	var t tenant.TableName
	var user string
	if _, err := pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &user}, func() error {
		w.block("row-security", t.String(), fmt.Sprintf("ALTER TABLE %s NO FORCE ROW LEVEL SECURITY, or ALTER ROLE %s BYPASSRLS, or accept it: --no-way-back", t.Quoted(), tenant.QuoteIdent(user)),
			"row security of %s applies to role %s (FORCE ROW LEVEL SECURITY): rows that are carried back would be refused, or silently not be found", t, user)
		return nil
	}); err != nil {
		return fmt.Errorf("look at row security: %w", err)
	}
	return nil
}

// unchecked names constraints of the source that no shard enforces over all rows, so that what is carried back may break them.
func (w wayBackChecks) unchecked(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, replicator.PublishedTables+`
		SELECT c.nspname::text, c.relname::text, k.conname::text, '' FROM published c JOIN pg_constraint k ON k.conrelid = c.oid WHERE k.contype = 'f' AND k.conparentid = 0
		UNION ALL
		SELECT c.nspname::text, c.relname::text, i.relname::text, n.nspname::text FROM published c JOIN pg_index x ON x.indrelid = c.oid
			JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace WHERE (x.indisunique OR x.indisexclusion) AND NOT i.relispartition
		ORDER BY 1, 2, 3`, w.job.Publication)
	if err != nil {
		return fmt.Errorf("look at the constraints: %w", err)
	}
	var t tenant.TableName
	var name, schema string
	if _, err := pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &name, &schema}, func() error {
		if schema != "" {
			if index := (tenant.TableName{Schema: schema, Name: name}).String(); w.accepts("constraint-without-realm", index) {
				w.note(tenant.Warning, "unique-per-shard", index, "let only one shard give out each of its values until rehome complete",
					"each shard enforces %s of %s over its own rows only: the way back breaks if two shards use the same key", name, t)
			}
			return nil
		}
		object := t.String() + "." + strings.TrimPrefix(tenant.TableName{Schema: "x", Name: name}.String(), "x.")
		if w.accepts("constraint-without-realm", object) || w.accepts("foreign-key-to-excluded", object) {
			w.note(tenant.Warning, "foreign-key-unchecked", object, "after a rollback look for rows that break it",
				"foreign key %s of %s is not at the shards, and the source does not check what is carried back to it", name, t)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("look at the constraints: %w", err)
	}
	return nil
}

// connectionsEach is how many sessions at the source the way back of one shard uses at most: its lane, a look at the
// catalogue, and two readers of a verification.
const connectionsEach = 4

func (w wayBackChecks) connections(ctx context.Context, conn *pgx.Conn) error {
	var limit, used int
	err := conn.QueryRow(ctx, `SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
		(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int`).Scan(&limit, &used)
	if err != nil {
		return fmt.Errorf("count the connections: %w", err)
	}
	if need := connectionsEach * len(w.job.Shards); limit-used < need {
		w.note(tenant.Warning, "few-connections", "source", "raise max_connections", "%d of %d connections are in use at the source; the way back uses up to %d more", used, limit, need)
	}
	return nil
}

// slowSlot is the age from which a transaction at a shard's server refuses: a slot waits for every open transaction of
// the whole server, in whatever database, and one that is open for so long will hardly end within the wait.
const slowSlot = time.Minute

// walsenderTimeout bounds the try of a replication connection.
const walsenderTimeout = 10 * time.Second

// slotWaits names who would hold up the creation of a slot at the server that conn is connected to. Transactions whose age
// our role may not see are not found here; the creation itself names them.
func (w wayBackChecks) slotWaits(ctx context.Context, conn *pgx.Conn, object string) error {
	rows, err := conn.Query(ctx, `SELECT pid, coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(state, ''),
			extract(epoch FROM clock_timestamp() - xact_start)::float8, left(coalesce(query, ''), 200), coalesce(datname::text, '')
		FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - $1::interval ORDER BY xact_start LIMIT 20`, longTransaction)
	if err != nil {
		return fmt.Errorf("look for long transactions: %w", err)
	}
	var c gate.Culprit
	var database string
	var seconds float64
	if _, err := pgx.ForEachRow(rows, []any{&c.PID, &c.User, &c.Application, &c.State, &seconds, &c.Query, &database}, func() error {
		c.Age = time.Duration(seconds * float64(time.Second))
		who, remedy := fmt.Sprintf("%s pid %d", object, c.PID), fmt.Sprintf("let it end, or end it there: SELECT pg_terminate_backend(%d)", c.PID)
		if c.Age < slowSlot {
			w.note(tenant.Warning, "long-transaction", who, remedy, "the slot of the way back waits for it (database %s): %s", database, c)
			return nil
		}
		w.block("long-transaction", who, remedy, "the slot of the way back can be made only after it (database %s): %s", database, c)
		return nil
	}); err != nil {
		return fmt.Errorf("look for long transactions: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT gid, owner::text, database::text, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts ORDER BY prepared`)
	if err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	var gid, owner string
	if _, err := pgx.ForEachRow(rows, []any{&gid, &owner, &database, &seconds}, func() error {
		if seconds < longTransaction.Seconds() {
			return nil
		}
		w.block("prepared-transaction", object+" "+gid, "COMMIT PREPARED or ROLLBACK PREPARED it in database "+database,
			"a transaction of %s in %s is prepared since %.0f s: the slot of the way back can be made only after it", owner, database, seconds)
		return nil
	}); err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	return nil
}
