package cutover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// checkSource looks at the source: the gate, what can be fenced, who could hold the fence up, who bypasses the gateway.
func (r *run) checkSource(ctx context.Context, f *findings) error {
	conn, err := gate.SourceSession(ctx, r.job.Source)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	switch {
	case errors.Is(err, gate.ErrNoGate):
		f.add(tenant.Blocking, "no-gate", "source", "start the replication anew", "there is no gate at the source")
	case err != nil:
		return err
	case state.Side != gate.SideSource:
		f.add(tenant.Blocking, "gate-not-at-source", "source", "it was cut over already; see rehome replications", "the gate at the source says that the %s writes (epoch %d, %s)", state.Side, state.Epoch, state.NewURL)
	}
	r.rec.Epoch = state.Epoch
	if err := conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&r.rec.SystemID); err != nil {
		return fmt.Errorf("read the source's system identifier: %w", err)
	}
	var fsync string
	if err := conn.QueryRow(ctx, `SHOW fsync`).Scan(&fsync); err != nil {
		return fmt.Errorf("read the source's settings: %w", err)
	}
	if fsync == "off" {
		f.add(tenant.Blocking, "fsync-off", "source", "turn fsync on, or accept that a power cut may forget the decision", "the source does not flush to disk (fsync = off)")
	}
	if n := len(r.job.catalogueSequences()); n > 0 {
		f.add(tenant.Notice, "sequences", "source", "", "%d sequences are frozen at the source and set ahead at the shards", n)
	}
	if permitted, err := gate.PermitsDDLFence(ctx, conn); err != nil {
		return err
	} else if !permitted {
		f.add(tenant.Notice, "schema-not-fenced", "source", "change nothing there after the cutover; GRANT our role what makes event triggers (a superuser, or the server's administrator) to have it refused",
			"our role may not make event triggers: after the cutover the owner of the tables can still change their schema or drop the fence; that is noticed within seconds, and the fence is put back")
	}
	if err := r.checkTables(ctx, conn, f); err != nil {
		return err
	}
	if err := checkActivity(ctx, conn, f); err != nil {
		return err
	}
	return r.wayBack(f).source(ctx, conn)
}

func (j Job) catalogueSequences() []string {
	if j.Catalogue == nil {
		return nil
	}
	out := make([]string, 0, len(j.Catalogue.Sequences))
	for _, s := range j.Catalogue.Sequences {
		out = append(out, s.Name.String())
	}
	return out
}

// checkTables: every table must be fenced, and what is not replicated stays behind.
func (r *run) checkTables(ctx context.Context, conn *pgx.Conn, f *findings) error {
	tables, err := gate.Tables(ctx, conn)
	if err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `
		SELECT DISTINCT t.oid FROM pg_publication p JOIN pg_publication_rel pr ON pr.prpubid = p.oid
		CROSS JOIN LATERAL (SELECT pr.prrelid::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(pr.prrelid)) t WHERE p.pubname = $1`, r.job.Publication)
	if err != nil {
		return fmt.Errorf("read the publication: %w", err)
	}
	published := map[uint32]bool{}
	var oid uint32
	if _, err := pgx.ForEachRow(rows, []any{&oid}, func() error { published[oid] = true; return nil }); err != nil {
		return fmt.Errorf("read the publication: %w", err)
	}
	for _, t := range tables {
		name := t.Name.String()
		switch {
		case !t.Owned && published[t.OID]:
			f.add(tenant.Blocking, "cannot-fence", name, "connect as its owner, or grant that role to ours", "the table belongs to a role that we cannot act as, so it cannot be fenced")
		case !t.Owned:
			f.add(tenant.Warning, "cannot-fence-unreplicated", name, "", "the table belongs to another role and is not replicated: it stays writable at the source")
		case r.job.Publication != "" && !published[t.OID]:
			f.add(tenant.Warning, "not-replicated", name, "leave it, or start the replication anew with it", "the table is fenced at the cutover, but its rows stay behind")
		}
		if t.Subscribed {
			f.add(tenant.Warning, "subscription", name, "disable the subscription before the cutover", "a subscription writes to the table; the fence will stop it with an error")
		}
	}
	return nil
}

// checkActivity looks at the sessions of the source's server.
func checkActivity(ctx context.Context, conn *pgx.Conn, f *findings) error {
	rows, err := conn.Query(ctx, `SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
			extract(epoch FROM clock_timestamp() - xact_start)::float8, left(coalesce(query, ''), 200), backend_type = 'autovacuum worker'
		FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - $1::interval
		  AND (backend_type = 'client backend' OR backend_type = 'autovacuum worker' AND query LIKE '%to prevent wraparound%') AND coalesce(application_name, '') NOT LIKE 'rehome%'
		ORDER BY xact_start LIMIT 20`, longTransaction)
	if err != nil {
		return fmt.Errorf("look for long transactions: %w", err)
	}
	var pid int
	var user, app, state, query string
	var seconds float64
	var vacuum bool
	if _, err := pgx.ForEachRow(rows, []any{&pid, &user, &app, &state, &seconds, &query, &vacuum}, func() error {
		c := gate.Culprit{PID: pid, User: user, Application: app, State: state, Age: time.Duration(seconds * float64(time.Second)), Query: query}
		if vacuum {
			f.add(tenant.Blocking, "wraparound-vacuum", fmt.Sprintf("pid %d", pid), "let it end: it does not give way to the fence", "an anti-wraparound vacuum runs: %s", query)
			return nil
		}
		f.add(tenant.Warning, "long-transaction", fmt.Sprintf("pid %d", pid), "let it end, or end it, if it writes to the tables", "%s", c)
		return nil
	}); err != nil {
		return fmt.Errorf("look for long transactions: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT gid, owner::text, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts WHERE database = current_database()`)
	if err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&query, &user, &seconds}, func() error {
		f.add(tenant.Blocking, "prepared-transaction", query, "COMMIT PREPARED or ROLLBACK PREPARED it", "a prepared transaction of %s is open for %.0f s and may hold locks on the tables", user, seconds)
		return nil
	}); err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT coalesce(usename, ''), coalesce(application_name, ''), coalesce(host(client_addr), 'local'), count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND coalesce(application_name, '') NOT LIKE 'rehome%'
		GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT $1`, clientsNamed)
	if err != nil {
		return fmt.Errorf("look for direct clients: %w", err)
	}
	var clients []string
	var address string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&user, &app, &address, &n}, func() error {
		clients = append(clients, fmt.Sprintf("%d × %s %s from %s", n, user, app, address))
		return nil
	}); err != nil {
		return fmt.Errorf("look for direct clients: %w", err)
	}
	if len(clients) > 0 {
		f.add(tenant.Notice, "direct-clients", "source", "they get the fence's error with the new URL after the cutover", "connected to the source bypassing the gateway: %s", strings.Join(clients, "; "))
	}
	return nil
}

// checkShard looks at one shard: its gate, its fence, its indexes and constraints. It returns the epoch of its gate.
func checkShard(ctx context.Context, s Shard, f *findings) (int64, error) {
	object := "shard " + s.Name
	conn, err := gate.ShardSession(ctx, s.DSN)
	if err != nil {
		f.add(tenant.Blocking, "shard-unreachable", object, "see that its server runs", "%v", err)
		return 0, nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	switch {
	case errors.Is(err, gate.ErrNoGate):
		f.add(tenant.Blocking, "shard-without-gate", object, "resume the replication: it installs the gate", "there is no gate at the shard")
	case err != nil:
		return 0, fmt.Errorf("%s: %w", object, err)
	case state.Side == gate.SideTarget:
		f.add(tenant.Blocking, "shard-open", object, "find out who opened it", "the shard already accepts writes (epoch %d)", state.Epoch)
	}
	tables, err := gate.Tables(ctx, conn)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", object, err)
	}
	for _, t := range tables {
		if !t.Closed() && state.Side != gate.SideTarget {
			f.add(tenant.Blocking, "shard-not-fenced", object+" "+t.Name.String(), "resume the replication: it fences the table", "the table accepts writes before the cutover")
		}
	}
	rows, err := conn.Query(ctx, `
		SELECT 'index-not-valid', i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname NOT LIKE 'pg\_%'
		UNION ALL
		SELECT 'constraint-not-valid', conrelid::regclass || ' ' || conname FROM pg_constraint JOIN pg_namespace n ON n.oid = connamespace
		WHERE NOT convalidated AND n.nspname NOT LIKE 'pg\_%'`)
	if err != nil {
		return 0, fmt.Errorf("%s: look at indexes and constraints: %w", object, err)
	}
	var code, name string
	if _, err := pgx.ForEachRow(rows, []any{&code, &name}, func() error {
		if code == "index-not-valid" {
			f.add(tenant.Blocking, code, object+" "+name, "REINDEX INDEX it", "the index is not valid")
		} else {
			f.add(tenant.Warning, code, object+" "+name, "ALTER TABLE … VALIDATE CONSTRAINT, if it is valid at the source", "the constraint is not validated")
		}
		return nil
	}); err != nil {
		return 0, fmt.Errorf("%s: look at indexes and constraints: %w", object, err)
	}
	return state.Epoch, nil
}
