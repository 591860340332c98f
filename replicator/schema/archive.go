package schema

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// dumpLockWait bounds how long pg_dump waits for the ACCESS SHARE lock of a table, so that a dump does not queue behind a
	// schema change for ever while the snapshot holds back vacuum.
	dumpLockWait = 30 * time.Second
	// killWait is how long a child that was told to die may take until its pipes are closed.
	killWait = 5 * time.Second
)

// Config says what to dump.
type Config struct {
	DSN       tenant.DSN
	Snapshot  string // exported snapshot; empty: pg_dump takes its own
	Catalogue *catalog.Catalogue
	Options   tenant.ReplicationOptions
	TempDir   string // where the private directory is made; empty: the system's
	Tools     Tools  // zero: the newest found
	Logger    *slog.Logger
}

// Archive is a dumped schema. It can be made anew at any time; nothing depends on the file.
type Archive struct {
	items        []*item
	accept       []string
	skip         map[string]string // keys of items that are left out at every shard, with the reason
	foreignKeys  map[string]string // key of a foreign key's item -> name of the finding that accepts it
	materialized []tenant.TableName
	uniques      []unique
	log          *slog.Logger
}

// Dump reads the schema of the source with pg_dump, as seen by the snapshot. Ending the context kills pg_dump.
func Dump(ctx context.Context, cfg Config) (*Archive, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Tools.PgDump == "" {
		var err error
		if cfg.Tools, err = FindTools(ctx, cfg.Catalogue.Server.Version); err != nil {
			return nil, err
		}
	}
	conn, err := connect(ctx, cfg.DSN)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rels, err := leftOut(ctx, conn, cfg.Options)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}

	dir, err := os.MkdirTemp(cfg.TempDir, "rehome-schema-") // 0700
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	raw, err := pgDump(ctx, cfg, dir, rels.excluded)
	if err != nil {
		return nil, err
	}
	items, err := parseTOC(raw)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	a := &Archive{accept: cfg.Options.Accept, materialized: rels.materialized, uniques: rels.uniques, log: cfg.Logger, skip: map[string]string{}, foreignKeys: map[string]string{}}
	for _, it := range items {
		if it.carried() && (it.section == sectionPre || it.section == sectionPost) {
			a.items = append(a.items, it)
		}
	}
	a.choose(rels)
	return a, nil
}

func pgDump(ctx context.Context, cfg Config, dir string, excluded []tenant.TableName) ([]byte, error) {
	env, err := environment(cfg.DSN, dir)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	file := filepath.Join(dir, "schema.dump")
	args := []string{
		"--format=custom", "--schema-only", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions",
		"--no-security-labels", "--no-tablespaces", "--no-password", "--exclude-schema=rehome", "--exclude-schema=rehome_control",
		// A word that the source's version does not know as reserved may be one for the shards' (system_user, from 16 on).
		"--quote-all-identifiers", "--encoding=UTF8", fmt.Sprintf("--lock-wait-timeout=%d", dumpLockWait.Milliseconds()), "--file=" + file,
	}
	if cfg.Snapshot != "" {
		args = append(args, "--snapshot="+cfg.Snapshot)
	}
	for _, t := range excluded {
		args = append(args, "--exclude-table="+t.Quoted()) // quoted, a pattern matches literally
	}
	cmd := exec.CommandContext(ctx, cfg.Tools.PgDump, args...) //nolint:gosec // the path comes from FindTools
	cmd.Env, cmd.Dir, cmd.WaitDelay = env, dir, killWait
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		text := shorten(stderr.String())
		if passes(stderr.String()) {
			return nil, &tenant.Error{Kind: tenant.KindUnavailable, Code: "pg-dump-interrupted", Message: "dump the schema: pg_dump was interrupted: " + text, Err: err}
		}
		return nil, fmt.Errorf("dump the schema: pg_dump: %w: %s", err, text)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	return raw, nil
}

// Close releases the archive. Its file is gone already when Dump returns.
func (a *Archive) Close() error {
	a.items = nil
	return nil
}

// relations are what Dump must know beside the catalogue.
type relations struct {
	excluded     []tenant.TableName // for pg_dump to leave out
	materialized []tenant.TableName // populated at the source, to be refreshed
	foreignKeys  []foreignKey
	uniques      []unique
}

type foreignKey struct {
	table    tenant.TableName
	name     string
	excluded bool // the table that it points to is left out
}

// leftOut lists what the options leave out, in terms of pg_dump: every member of a partition tree by itself, and views,
// materialized views and free sequences that --exclude names. Foreign tables are never carried.
func leftOut(ctx context.Context, conn *pgx.Conn, opts tenant.ReplicationOptions) (relations, error) {
	var out relations
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE rel AS (
			SELECT c.oid, c.relkind::text AS kind, c.relispartition, c.relispopulated, n.nspname::text AS schema, c.relname::text AS name
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r','p','f','v','m','S') AND c.relpersistence <> 't'
			  AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
			  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		), tree(oid, root) AS (
			SELECT oid, oid FROM rel WHERE NOT relispartition
			UNION ALL
			SELECT i.inhrelid, t.root FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN rel r ON r.oid = i.inhrelid WHERE r.relispartition
		)
		SELECT r.oid, r.kind, r.schema, r.name, r.relispopulated, root.schema, root.name
		FROM rel r JOIN tree t ON t.oid = r.oid JOIN rel root ON root.oid = t.root
		ORDER BY r.oid`)
	if err != nil {
		return out, fmt.Errorf("list the relations: %w", err)
	}
	gone := map[uint32]bool{}
	var (
		oid        uint32
		kind       string
		name, root tenant.TableName
		populated  bool
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &kind, &name.Schema, &name.Name, &populated, &root.Schema, &root.Name}, func() error {
		exclude := kind == "f"
		switch kind {
		case "r", "p":
			exclude = !catalog.Included(opts, root)
		case "v", "m", "S":
			exclude = catalog.MatchesAny(opts.Exclude, name)
		}
		if exclude {
			gone[oid] = true
			out.excluded = append(out.excluded, name)
		} else if kind == "m" && populated {
			out.materialized = append(out.materialized, name)
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("list the relations: %w", err)
	}

	rows, err = conn.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, k.conname::text, k.conrelid, k.confrelid
		FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND n.nspname NOT IN ('rehome', 'rehome_control')`)
	if err != nil {
		return out, fmt.Errorf("list the foreign keys: %w", err)
	}
	var fk foreignKey
	var from, to uint32
	_, err = pgx.ForEachRow(rows, []any{&fk.table.Schema, &fk.table.Name, &fk.name, &from, &to}, func() error {
		fk.excluded = gone[to]
		if !gone[from] {
			out.foreignKeys = append(out.foreignKeys, fk)
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("list the foreign keys: %w", err)
	}
	out.uniques, err = readUniques(ctx, conn)
	return out, err
}

// choose decides which items are left out everywhere, and which foreign keys may fail.
func (a *Archive) choose(rels relations) {
	keys := map[string]foreignKey{}
	for _, k := range rels.foreignKeys {
		keys[k.table.Schema+"."+k.table.Name+" "+k.name] = k
	}
	for _, it := range a.items {
		switch it.desc {
		case "FK CONSTRAINT":
			k, ok := keys[it.namespace+"."+it.tag]
			switch {
			case !ok:
			case k.excluded:
				a.skip[it.key] = "it points to a table that is left out"
			default:
				a.foreignKeys[it.key] = tenant.Finding{Code: "constraint-without-realm", Object: k.table.String() + "." + shownName(k.name)}.ID()
			}
		case "TRIGGER":
			if strings.Contains(it.sql, " EXECUTE FUNCTION rehome.") || strings.Contains(it.sql, " EXECUTE FUNCTION \"rehome\".") {
				a.skip[it.key] = "it is Rehome's own"
			}
		case "EXTENSION":
			if slices.Contains(a.accept, tenant.Finding{Code: "extension-missing", Object: it.tag}.ID()) {
				a.skip[it.key] = "the extension is accepted to be missing"
			}
		}
	}
}

// shownName is a name as people write it, quoted where it must be.
func shownName(s string) string {
	return strings.TrimPrefix(tenant.TableName{Schema: "x", Name: s}.String(), "x.")
}

// connect opens a session of its own. Errors never contain the connection string.
func connect(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, errDSN
	}
	cfg.RuntimeParams["application_name"] = "rehome schema"
	return pgx.ConnectConfig(ctx, cfg)
}

// shorten keeps the beginning of what a child wrote; pg_dump's messages name objects, never passwords.
func shorten(s string) string {
	const most = 2000
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = s[:most] + " …"
	}
	return s
}

var errNotDumped = errors.New("the archive is closed")
