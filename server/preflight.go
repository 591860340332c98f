package server

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/preflight"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// preflightTimeout is for a far source with thousands of tables; the client waits up to five minutes.
const preflightTimeout = 4 * time.Minute

type preflightInput struct{ Body api.PlanRequest }

type preflightOutput struct{ Body api.Preflight }

// target is a database here, with the shards of its placement.
type target struct {
	database  shard.Database
	placement tenant.Placement
	url       string // the canonical one
}

// targetOf finds the database that a plan's --to names.
func (s *Server) targetOf(ctx context.Context, to string) (target, error) {
	var t target
	name, err := s.databaseOf(ctx, to)
	if err != nil {
		return t, err
	}
	if err := permitDatabase(ctx, name); err != nil {
		return t, err
	}
	if t.database, err = s.catalogue.Database(ctx, name); err != nil {
		return t, err
	}
	switch {
	case t.database.Kind != shard.KindSharded:
		return t, tenant.Errorf(tenant.KindConflict, "target-adopted", "create a database on your shards (rehome create) and name that one", "database %s is adopted; rows can be moved into sharded databases only", name)
	case t.database.Creating():
		return t, tenant.Errorf(tenant.KindConflict, "target-not-ready", "run rehome create again to finish it", "database %s is being created", name)
	case t.database.State != shard.Active:
		return t, tenant.Errorf(tenant.KindConflict, "target-not-active", "start it (rehome start), or name another one", "database %s is %s", name, t.database.State)
	}
	if t.placement, err = s.catalogue.Placement(ctx, name); err != nil {
		return t, err
	}
	t.url = s.databaseURL(name)
	return t, nil
}

// databaseOf takes a URL of this installation, by its base URL or the address that the request came to, or a plain name.
func (s *Server) databaseOf(ctx context.Context, to string) (string, error) {
	if !strings.Contains(to, "/") {
		return to, tenant.CheckDatabaseName(to)
	}
	u, err := tenant.ParseDatabaseURL(to)
	if err != nil {
		return "", err
	}
	base, err := url.Parse(u.Base)
	if err != nil || (u.Base != s.installation.BaseURL && base.Host != requestOf(ctx).host) {
		return "", tenant.Errorf(tenant.KindInvalid, "another-installation", "ask the installation that the database belongs to, or set REHOME_URL to the address that people use", "%s is not a database of this installation (%s)", to, s.installation.BaseURL)
	}
	return u.Name, nil
}

// checkSource refuses what is no connection string. The string itself is never quoted.
func checkSource(from string) (tenant.DSN, error) {
	if strings.HasPrefix(from, "http://") || strings.HasPrefix(from, "https://") {
		return "", tenant.Errorf(tenant.KindInvalid, "source-not-supported", "give the postgres:// URL of the source", "a source over HTTPS is not supported by this version")
	}
	if from == "" {
		return "", tenant.Errorf(tenant.KindInvalid, "missing-source", "give the postgres:// URL of the source", "no source is named")
	}
	cfg, err := pgx.ParseConfig(from)
	if err != nil {
		return "", tenant.Errorf(tenant.KindInvalid, "bad-source", "write it as postgres://user:password@host:5432/database; percent-encode special characters", "the source is not a connection string of Postgres")
	}
	if cfg.Database == "" {
		return "", tenant.Errorf(tenant.KindInvalid, "bad-source", "name the database at the end of the URL", "the source names no database")
	}
	return tenant.DSN(from), nil
}

// check runs the preflight of a plan.
func (s *Server) check(ctx context.Context, source tenant.DSN, t target, o tenant.ReplicationOptions) (preflight.Report, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, preflightTimeout, tookTooLong("the preflight", preflightTimeout))
	defer cancel()
	in := preflight.Input{Source: source, Options: o.WithDefaults(), Logger: s.log}
	for _, name := range t.placement.Shards() {
		dsn, err := s.catalogue.DatabaseDSN(ctx, t.database.Name, name)
		if err != nil {
			return preflight.Report{}, err
		}
		in.Targets = append(in.Targets, preflight.Target{Shard: name, DSN: dsn})
	}
	in.Shards = len(in.Targets)
	r, err := preflight.Check(ctx, in)
	if err != nil {
		return r, fmt.Errorf("preflight: %w", ownTime(ctx, err))
	}
	if f := s.checkGate(ctx, source); f != nil {
		r.Findings = append(r.Findings, *f)
	}
	return r, nil
}

// checkGate refuses a source that was cut over: its writes go to another target, and it could never be cut over again.
// What cannot be asked the preflight itself has found.
func (s *Server) checkGate(ctx context.Context, source tenant.DSN) *tenant.Finding {
	conn, err := open(ctx, source)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	if err != nil || state.Side != gate.SideTarget {
		return nil
	}
	return &tenant.Finding{
		Severity: tenant.Blocking, Code: "source-cut-over", Object: "source", Message: "the source was cut over already: " + state.NewURL + " takes its writes",
		Remedy: "replicate from there; or, if the source shall be written again, complete that replication with: rehome complete --drop-fence",
	}
}

func (s *Server) preflight(ctx context.Context, in *preflightInput) (*preflightOutput, error) {
	source, t, options, err := s.startOf(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	r, err := s.check(ctx, source, t, options)
	if err != nil {
		return nil, err
	}
	out := &preflightOutput{Body: api.Preflight{Findings: orEmpty(r.Findings), OK: !tenant.Blocks(r.Findings)}}
	if r.Catalogue != nil {
		out.Body.Tables = len(r.Catalogue.Tables)
		for _, table := range r.Catalogue.Tables {
			out.Body.Rows += max(table.Rows, 0)
			out.Body.Bytes += table.Bytes
		}
	}
	return out, nil
}
