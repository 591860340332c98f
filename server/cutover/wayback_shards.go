package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/tenant"
)

// shardServer is what the way back needs to know of a shard's server. Several shards may share one.
type shardServer struct {
	shards         []string
	id             string // system identifier; empty: a replication connection could not be had
	slots, senders int    // free ones, those of an earlier way back counted as free
	refusesChanges bool   // event triggers may be made there
}

// perShard is how many slots and walsenders the way back uses of each shard: one streams, one is made for a verification.
const perShard = 2

// shards looks whether every shard can be read from.
func (w wayBackChecks) shards(ctx context.Context) error {
	seen := make([]*shardServer, len(w.job.Shards))
	g, gctx := errgroup.WithContext(ctx)
	for i, s := range w.job.Shards {
		g.Go(func() (err error) {
			if seen[i], err = w.shard(gctx, s); err != nil {
				return fmt.Errorf("shard %s: %w", s.Name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// Only now: what was tried above would count as in use.
	for i, s := range w.job.Shards {
		if seen[i] != nil {
			seen[i].id = w.replicates(ctx, s)
		}
	}
	w.changes(seen)
	for _, server := range byServer(seen) {
		if server.id == "" {
			continue // said already
		}
		w.room("slots", server, server.slots, "replication slots", "max_replication_slots")
		w.room("walsenders", server, server.senders, "walsenders", "max_wal_senders")
	}
	return nil
}

// byServer joins the shards of one server.
func byServer(seen []*shardServer) []*shardServer {
	var out []*shardServer
	for _, s := range seen {
		if s == nil {
			continue
		}
		if i := slices.IndexFunc(out, func(o *shardServer) bool { return o.id == s.id && s.id != "" }); i >= 0 {
			out[i].shards = append(out[i].shards, s.shards...)
			out[i].slots, out[i].senders = min(out[i].slots, s.slots), min(out[i].senders, s.senders)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (w wayBackChecks) room(code string, s *shardServer, free int, what, setting string) {
	object, remedy := "shard "+strings.Join(s.shards, ", "), fmt.Sprintf("raise %s there and restart, or remove what is not used", setting)
	switch n := len(s.shards); {
	case free < n:
		w.block(code, object, remedy, "%d %s are free at the server; the way back needs %d", max(free, 0), what, n)
	case free < n*perShard:
		w.note(tenant.Warning, code, object, remedy, "only %d %s are free at the server: the way back needs %d, and a verification after the cutover, which a rollback demands, as many more", free, what, n)
	}
}

// changes says what becomes of a change of the schema at the shards.
func (w wayBackChecks) changes(seen []*shardServer) {
	var open []string
	any := false
	for _, s := range seen {
		if s != nil {
			any = true
			if !s.refusesChanges {
				open = append(open, s.shards...)
			}
		}
	}
	const remedy = "run migrations before the cutover, or after rehome complete"
	switch {
	case !any:
	case len(open) == 0:
		w.note(tenant.Notice, "schema-changes", "shards", remedy, "after the cutover, changes of the replicated tables' schema are refused at the shards while the way back is open: until rehome complete")
	default:
		w.note(tenant.Warning, "schema-changes", "shard "+strings.Join(open, ", "), remedy,
			"our role may not create event triggers there, so nothing refuses a change of the replicated tables' schema after the cutover: it breaks the way back, until rehome complete")
	}
}

// shard looks at one shard as the side that is read from. Nil: it cannot be reached, which is said elsewhere.
func (w wayBackChecks) shard(ctx context.Context, s Shard) (*shardServer, error) {
	object := "shard " + s.Name
	conn, err := gate.ShardSession(ctx, s.DSN)
	if err != nil {
		return nil, nil // checkShard says so
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var level, keep, idle, user, database string
	var create bool
	out := &shardServer{shards: []string{s.Name}}
	if err := conn.QueryRow(ctx, `SELECT current_setting('wal_level'), current_setting('max_slot_wal_keep_size'), coalesce(current_setting('idle_replication_slot_timeout', true), '0'),
			current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
			current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots WHERE NOT starts_with(slot_name::text, $1))::int,
			current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication r
				WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND starts_with(s.slot_name::text, $1)))::int`,
		"rehome_"+w.job.Replication+"_back_").Scan(&level, &keep, &idle, &user, &database, &create, &out.slots, &out.senders); err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	if level != "logical" {
		w.block("wal-level", object, "ALTER SYSTEM SET wal_level = logical at the shard, and restart Postgres (Amazon RDS: rds.logical_replication = 1), or accept it: --no-way-back",
			"wal_level is %s at the shard: its writes cannot be carried back", level)
	}
	if keep != "-1" {
		w.note(tenant.Warning, "slot-wal-limit", object, "raise max_slot_wal_keep_size, or set it to -1, until rehome complete",
			"max_slot_wal_keep_size is %s at the shard: if the source is away for longer than that lasts, the way back is lost", keep)
	}
	if idle != "0" {
		w.note(tenant.Warning, "slot-wal-limit", object, "set idle_replication_slot_timeout to 0 until rehome complete",
			"idle_replication_slot_timeout is %s at the shard: a way back that stands still loses its slot", idle)
	}
	if !create {
		w.block("role", object, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", tenant.QuoteIdent(database), tenant.QuoteIdent(user)),
			"role %s may not create a publication in the shard's database", user)
	}
	if err := w.slotWaits(ctx, conn, object); err != nil {
		return nil, err
	}
	if err := w.shardTables(ctx, conn, object); err != nil {
		return nil, err
	}
	if out.refusesChanges, err = ddl.Permitted(ctx, conn); err != nil {
		return nil, err
	}
	return out, nil
}

// shardTables: our role must own what it publishes, and every row must be found again at the source.
func (w wayBackChecks) shardTables(ctx context.Context, conn *pgx.Conn, object string) error {
	tables, err := gate.Tables(ctx, conn)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if !t.Owned {
			w.block("owner", object+" "+t.Name.String(), "grant the owner's role to ours at the shard", "the table belongs to a role that we cannot act as: it cannot be published, and its writes not carried back")
		}
	}
	if w.job.Catalogue == nil {
		return nil
	}
	there, err := catalog.Describe(ctx, conn, tenant.ReplicationOptions{})
	if err != nil {
		return err
	}
	var full []string
	for i := range there.Tables {
		t := &there.Tables[i]
		if !slices.ContainsFunc(w.job.Catalogue.Tables, func(o catalog.Table) bool { return o.Name == t.Name }) {
			continue
		}
		if ok, _ := catalog.IdentityFits(t, 1); !ok {
			full = append(full, t.Name.String())
		}
	}
	if len(full) > 0 {
		w.note(tenant.Notice, "identity-full", object, "a primary key spares it",
			"these tables have no replica identity there and get REPLICA IDENTITY FULL while the way back is open, which writes each old row to the WAL: %s", strings.Join(full, ", "))
	}
	return nil
}

// replicates tries what the way back will need: a connection in replication mode. It returns the server's identifier.
func (w wayBackChecks) replicates(ctx context.Context, s Shard) string {
	object := "shard " + s.Name
	cfg, err := pgx.ParseConfig(s.DSN.Reveal())
	if err != nil {
		return "" // the session before could not have been opened
	}
	cfg.ConnectTimeout = walsenderTimeout
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = gate.AppName + " way back"
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		why := "the server does not answer"
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			why = pe.Message
		}
		quoted := tenant.QuoteIdent(cfg.User)
		w.block("role", object, fmt.Sprintf("ALTER ROLE %s REPLICATION at the shard (Amazon RDS: GRANT rds_replication TO %s); connect to Postgres itself, not through a pooler; or accept it: --no-way-back", quoted, quoted),
			"role %s is refused a replication connection: %s", cfg.User, why)
		return ""
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	res, err := conn.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(res) == 0 || len(res[0].Rows) == 0 {
		w.block("role", object, "connect to Postgres itself, not through a pooler", "the shard does not answer IDENTIFY_SYSTEM")
		return ""
	}
	return string(res[0].Rows[0][0])
}
