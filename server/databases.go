package server

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

type databasesOutput struct{ Body []api.Database }

type databaseOutput struct{ Body api.Database }

type createDatabaseInput struct{ Body api.DatabaseRequest }

type adoptInput struct{ Body api.AdoptRequest }

type updateDatabaseInput struct {
	Name string `path:"name"`
	Body api.DatabaseUpdate
}

type placementOutput struct{ Body tenant.Placement }

type realmsInput struct {
	Name  string `path:"name"`
	Shard string `query:"shard"`
	Sort  string `query:"sort" enum:"size,name"`
	Limit int    `query:"limit" minimum:"0" maximum:"100000"`
}

type realmsOutput struct{ Body []api.Realm }

// links is what belongs to a database and is kept elsewhere.
type links struct{ redirect, replication string }

func (s *Server) linksOf(ctx context.Context) (map[string]links, error) {
	rows, err := s.pool.Query(ctx, `SELECT d.name, coalesce(r.target_url, ''), coalesce(p.id, '')
		FROM rehome_control.databases d
		LEFT JOIN rehome_control.redirects r ON r.database = d.name
		LEFT JOIN rehome_control.replications p ON p.database = d.name AND p.phase NOT IN ('completed','cancelled')`)
	if err != nil {
		return nil, fmt.Errorf("read redirects and replications: %w", err)
	}
	defer rows.Close()
	out := map[string]links{}
	for rows.Next() {
		var name string
		var l links
		if err := rows.Scan(&name, &l.redirect, &l.replication); err != nil {
			return nil, fmt.Errorf("read redirects and replications: %w", err)
		}
		out[name] = l
	}
	return out, rows.Err()
}

func (s *Server) databaseBody(d shard.Database, l links) api.Database {
	return api.Database{
		Name: d.Name, URL: s.databaseURL(d.Name), Kind: d.Kind, State: d.State, Owner: d.Owner, RealmKey: d.RealmKey, Upstream: d.Upstream, SourceUpstream: d.SourceUpstream, Domains: d.Domains,
		Shards: orEmpty(d.Shards), PlacementEpoch: d.PlacementEpoch, Bytes: d.Bytes, RedirectTo: l.redirect, Replication: l.replication,
		CreatedAt: d.CreatedAt, DeletedAt: d.DeletedAt, PurgeAfter: d.PurgeAfter,
	}
}

func (s *Server) databaseURL(name string) string {
	return tenant.DatabaseURL{Base: s.installation.BaseURL, Name: name}.String()
}

func (s *Server) describe(ctx context.Context, d shard.Database) (*databaseOutput, error) {
	all, err := s.linksOf(ctx)
	if err != nil {
		return nil, err
	}
	one := []shard.Database{d}
	if d.State == shard.Active || d.State == shard.Stopped || d.State == shard.Deleting {
		if err := s.catalogue.MeasureDatabases(ctx, one); err != nil {
			return nil, err
		}
	}
	return &databaseOutput{Body: s.databaseBody(one[0], all[d.Name])}, nil
}

func (s *Server) listDatabases(ctx context.Context, _ *struct{}) (*databasesOutput, error) {
	list, err := s.catalogue.Databases(ctx)
	if err != nil {
		return nil, err
	}
	p := requestOf(ctx).principal
	visible := list[:0]
	for _, d := range list {
		if p.sees(d.Name) {
			visible = append(visible, d)
		}
	}
	if err := s.catalogue.MeasureDatabases(ctx, visible); err != nil {
		return nil, err
	}
	all, err := s.linksOf(ctx)
	if err != nil {
		return nil, err
	}
	out := &databasesOutput{Body: []api.Database{}}
	for _, d := range visible {
		out.Body = append(out.Body, s.databaseBody(d, all[d.Name]))
	}
	return out, nil
}

func (s *Server) createDatabase(ctx context.Context, in *createDatabaseInput) (*databaseOutput, error) {
	about(ctx, in.Body.Name)
	if err := checkOwner(in.Body.Owner); err != nil {
		return nil, err
	}
	d, err := s.catalogue.CreateDatabase(ctx, shard.CreateRequest{Name: in.Body.Name, Shards: in.Body.Shards, RealmKey: in.Body.RealmKey, Owner: in.Body.Owner, Upstream: in.Body.Upstream, SourceUpstream: in.Body.SourceUpstream})
	if err != nil {
		return nil, err
	}
	note(ctx, "shards", d.Shards)
	s.tell(ctx, progress.Entry{Database: d.Name, Kind: "database", ID: d.Name, Event: "created", Data: map[string]any{"name": d.Name, "kind": d.Kind, "shards": d.Shards}})
	s.reload(ctx)
	return s.describe(ctx, d)
}

func (s *Server) adoptDatabase(ctx context.Context, in *adoptInput) (*databaseOutput, error) {
	about(ctx, in.Body.Name)
	if err := checkOwner(in.Body.Owner); err != nil {
		return nil, err
	}
	d, err := s.catalogue.AdoptDatabase(ctx, shard.AdoptRequest{Name: in.Body.Name, DSN: tenant.DSN(in.Body.DSN), Owner: in.Body.Owner, Upstream: in.Body.Upstream})
	if err != nil {
		return nil, err
	}
	note(ctx, "address", d.Address)
	s.tell(ctx, progress.Entry{Database: d.Name, Kind: "database", ID: d.Name, Event: "adopted", Data: map[string]any{"name": d.Name, "kind": d.Kind}})
	s.reload(ctx)
	return s.describe(ctx, d)
}

func (s *Server) getDatabase(ctx context.Context, in *namedInput) (*databaseOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	d, err := s.catalogue.Database(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return s.describe(ctx, d)
}

func (s *Server) updateDatabase(ctx context.Context, in *updateDatabaseInput) (*databaseOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	if in.Body.Owner != nil || in.Body.Upstream != nil || in.Body.SourceUpstream != nil {
		// The owner's address is where codes go: who could change it could approve alone. The upstream is where clients
		// go, with their credentials and from this server's place in the network: a redirect for which nobody is asked.
		if err := permit(requestOf(ctx).principal, scopeAdmin, true); err != nil {
			return nil, err
		}
	}
	if in.Body.Owner != nil {
		if err := checkOwner(*in.Body.Owner); err != nil {
			return nil, err
		}
		note(ctx, "owner", *in.Body.Owner)
	}
	if in.Body.State != nil {
		note(ctx, "state", *in.Body.State)
	}
	if in.Body.Upstream != nil {
		note(ctx, "upstream", *in.Body.Upstream)
	}
	if in.Body.SourceUpstream != nil {
		note(ctx, "source_upstream", *in.Body.SourceUpstream)
	}
	d, err := s.catalogue.UpdateDatabase(ctx, in.Name, shard.Update{Upstream: in.Body.Upstream, SourceUpstream: in.Body.SourceUpstream, Owner: in.Body.Owner, State: in.Body.State})
	if err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Database: d.Name, Kind: "database", ID: d.Name, Event: "updated", Data: map[string]any{"name": d.Name, "state": d.State, "upstream": d.Upstream}})
	s.reload(ctx)
	return s.describe(ctx, d)
}

// reload lets this server's gateway see a change before the answer; the others hear of it by notification.
func (s *Server) reload(ctx context.Context) {
	if err := s.gateway.Reload(ctx); err != nil {
		s.log.WarnContext(ctx, "reload the routes", "error", err)
	}
}

func (s *Server) getPlacement(ctx context.Context, in *namedInput) (*placementOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	p, err := s.catalogue.Placement(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &placementOutput{Body: p}, nil
}

func (s *Server) listRealms(ctx context.Context, in *realmsInput) (*realmsOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	keys, err := s.tableKeys(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	list, err := s.catalogue.Realms(ctx, in.Name, shard.RealmQuery{Shard: in.Shard, Sort: shard.Sort(in.Sort), Limit: in.Limit, TableKeys: keys})
	if err != nil {
		return nil, err
	}
	out := &realmsOutput{Body: []api.Realm{}}
	for _, r := range list {
		out.Body = append(out.Body, api.Realm{Realm: r.Realm, Bucket: r.Bucket, Shard: r.Shard, Rows: r.Rows, Pinned: r.Pinned})
	}
	return out, nil
}

// tableKeys is how the newest replication into a database names the realm key of its tables.
func (s *Server) tableKeys(ctx context.Context, database string) (map[string]string, error) {
	var o tenant.ReplicationOptions
	err := s.pool.QueryRow(ctx, `SELECT options FROM rehome_control.replications WHERE database = $1 ORDER BY (phase <> 'cancelled') DESC, created_at DESC LIMIT 1`, database).Scan(&o)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the replication's options: %w", err)
	}
	keys := map[string]string{}
	for _, t := range o.Reference {
		keys[t] = ""
	}
	maps.Copy(keys, o.TableKeys)
	return keys, nil
}

func (s *Server) openAdopted(ctx context.Context, database string) (*pgx.Conn, error) {
	dsn, err := s.catalogue.AdoptedDSN(ctx, database)
	if err != nil {
		return nil, err
	}
	return open(ctx, dsn)
}

// open connects to a tenant's database. Errors never quote the connection string.
func open(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, errors.New("the stored connection string cannot be read")
	}
	cfg.RuntimeParams["application_name"] = applicationName
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, &tenant.Error{Kind: tenant.KindUnavailable, Code: "database-unreachable", Message: "the database at " + dsn.String() + " cannot be reached", Hint: "check that it runs and lets this server in", Err: err}
	}
	return conn, nil
}
