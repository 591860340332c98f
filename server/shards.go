package server

import (
	"context"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

type shardsOutput struct{ Body []api.Shard }

type shardOutput struct{ Body api.Shard }

type addShardInput struct{ Body api.ShardRequest }

type updateShardInput struct {
	Name string `path:"name"`
	Body api.ShardUpdate
}

type namedInput struct {
	Name string `path:"name"`
}

func shardBody(v shard.Shard) api.Shard {
	return api.Shard{
		Name: v.Name, Ordinal: v.Ordinal, Address: v.Address, Weight: v.Weight, Zone: v.Zone, Accepting: v.Accepting, Version: v.Version,
		Databases: orEmpty(v.Databases), Buckets: v.Buckets, Bytes: v.Bytes, Reachable: v.Reachable, Error: v.Error, CreatedAt: v.CreatedAt,
	}
}

// orEmpty makes JSON lists of nothing [] instead of null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *Server) listShards(ctx context.Context, _ *struct{}) (*shardsOutput, error) {
	list, err := s.catalogue.Shards(ctx)
	if err != nil {
		return nil, err
	}
	out := &shardsOutput{Body: []api.Shard{}}
	for _, v := range list {
		out.Body = append(out.Body, shardBody(v))
	}
	return out, nil
}

func (s *Server) addShard(ctx context.Context, in *addShardInput) (*shardOutput, error) {
	about(ctx, in.Body.Name)
	v, err := s.catalogue.AddShard(ctx, shard.AddRequest{Name: in.Body.Name, DSN: tenant.DSN(in.Body.DSN), Weight: in.Body.Weight, Zone: in.Body.Zone, Accepting: in.Body.Accepting})
	if err != nil {
		return nil, err
	}
	note(ctx, "shard", v.Address)
	s.tell(ctx, progress.Entry{Kind: "shard", ID: v.Name, Event: "added", Data: map[string]any{"name": v.Name, "address": v.Address, "weight": v.Weight, "zone": v.Zone}})
	return &shardOutput{Body: shardBody(v)}, nil
}

func (s *Server) updateShard(ctx context.Context, in *updateShardInput) (*shardOutput, error) {
	about(ctx, in.Name)
	u := shard.ShardUpdate{Weight: in.Body.Weight, Zone: in.Body.Zone, Accepting: in.Body.Accepting}
	if in.Body.DSN != nil {
		dsn := tenant.DSN(*in.Body.DSN)
		u.DSN = &dsn
	}
	v, err := s.catalogue.UpdateShard(ctx, in.Name, u)
	if err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Kind: "shard", ID: v.Name, Event: "updated", Data: map[string]any{"name": v.Name, "address": v.Address, "weight": v.Weight, "zone": v.Zone, "accepting": v.Accepting}})
	return &shardOutput{Body: shardBody(v)}, nil
}

func (s *Server) removeShard(ctx context.Context, in *namedInput) (*none, error) {
	about(ctx, in.Name)
	if err := s.catalogue.RemoveShard(ctx, in.Name); err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Kind: "shard", ID: in.Name, Event: "removed", Data: map[string]any{"name": in.Name}})
	return nil, nil
}

// tell appends an event of the installation. The thing itself has happened already and is committed elsewhere, so a
// failure is logged and does not undo it.
func (s *Server) tell(ctx context.Context, e progress.Entry) {
	if e.Stream == "" {
		e.Stream = progress.StreamInstallation
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if _, err := s.events.Append(ctx, s.pool, e); err != nil {
		s.log.WarnContext(ctx, "append event", "kind", e.Kind, "event", e.Event, "error", err)
	}
}
