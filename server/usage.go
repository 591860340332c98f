package server

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
)

const (
	// sampleEvery is the finest step of the history.
	sampleEvery = time.Minute
	// sampleTimeout ends a round before the next one begins.
	sampleTimeout = 50 * time.Second
	// samplesQueue is apart from the other jobs, so that a purge of hours does not leave a gap in the curves.
	samplesQueue = "samples"
	// defaultHistory is how far a history goes back that says nothing else.
	defaultHistory = time.Hour
)

type statsOutput struct{ Body api.Stats }

type historyInput struct {
	Name string `path:"name"`
	Last int64  `query:"last" minimum:"0" maximum:"63072000" doc:"seconds to go back; default 3600"`
}

type historyOutput struct{ Body api.StatsHistory }

func (s *Server) getStats(ctx context.Context, in *namedInput) (*statsOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	d, err := s.catalogue.Database(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	st, err := s.statsOf(ctx, d)
	if err != nil {
		return nil, err
	}
	return &statsOutput{Body: statsBody(st)}, nil
}

func (s *Server) getStatsHistory(ctx context.Context, in *historyInput) (*historyOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	d, err := s.catalogue.Database(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	length := time.Duration(in.Last) * time.Second
	if length == 0 {
		length = defaultHistory
	}
	h, err := s.gateway.History(ctx, d.Name, length)
	if err != nil {
		return nil, err
	}
	body := api.StatsHistory{
		Database: h.Database, Since: h.Since, Until: h.Until, Step: h.Step, Collecting: h.Collecting,
		Points: make([]api.HistoryPoint, len(h.Points)), Clients: make([]api.ClientUse, len(h.Clients)),
	}
	for i, p := range h.Points {
		body.Points[i] = api.HistoryPoint(p)
	}
	for i, c := range h.Clients {
		body.Clients[i] = api.ClientUse(c)
	}
	return &historyOutput{Body: body}, nil
}

// statsOf counts a database's connections, those that bypass the gateway included.
func (s *Server) statsOf(ctx context.Context, d shard.Database) (redirect.Stats, error) {
	return s.gateway.StatsFor(ctx, d.Name, s.bypass(d)...)
}

// bypass are sessions to the database itself, which tell who is connected there past the gateway.
func (s *Server) bypass(d shard.Database) []func(context.Context) (*pgx.Conn, error) {
	var out []func(context.Context) (*pgx.Conn, error)
	if d.State == shard.Purged {
		return nil
	}
	if d.Kind == shard.KindAdopted {
		out = append(out, func(ctx context.Context) (*pgx.Conn, error) { return s.openAdopted(ctx, d.Name) })
	}
	for _, name := range d.Shards {
		out = append(out, func(ctx context.Context) (*pgx.Conn, error) {
			dsn, err := s.catalogue.DatabaseDSN(ctx, d.Name, name)
			if err != nil {
				return nil, err
			}
			return open(ctx, dsn)
		})
	}
	return out
}

func statsBody(st redirect.Stats) api.Stats {
	out := api.Stats{
		Database: st.Database, At: st.At, OpenNow: st.OpenNow, ByProtocol: st.ByProtocol, ByVia: st.ByVia, LastMinute: st.LastMinute,
		LastHour: st.LastHour, LastDay: st.LastDay, Redirected: st.Redirected, LastSeen: st.LastSeen, Clients: []api.Connection{}, ByClient: []api.ClientUse{},
		Collecting: st.Collecting, Unseen: st.Unseen, Note: st.Note,
	}
	for _, c := range st.Clients {
		out.Clients = append(out.Clients, api.Connection(c))
	}
	for _, c := range st.ByClient {
		out.ByClient = append(out.ByClient, api.ClientUse(c))
	}
	return out
}

// sampleArgs asks for a sample of what is open at every database.
type sampleArgs struct{}

// Kind implements river.JobArgs.
func (sampleArgs) Kind() string { return "sample-connections" }

type sampleWorker struct {
	river.WorkerDefaults[sampleArgs]
	s *Server
}

// Timeout implements river.Worker.
func (sampleWorker) Timeout(*river.Job[sampleArgs]) time.Duration { return sampleTimeout }

// Work implements river.Worker.
func (w sampleWorker) Work(ctx context.Context, _ *river.Job[sampleArgs]) error {
	return w.s.sampleConnections(ctx)
}

// sampleConnections writes down what every database has open, for the history. With statistics disabled it does nothing,
// and asks nobody.
func (s *Server) sampleConnections(ctx context.Context) error {
	if s.cfg.UsageStats != usageEnabled {
		return nil
	}
	list, err := s.catalogue.Databases(ctx)
	if err != nil {
		return fmt.Errorf("find databases to sample: %w", err)
	}
	var databases []redirect.Sampled
	for _, d := range list {
		if d.State == shard.Active || d.State == shard.Stopped || d.State == shard.Deleting {
			databases = append(databases, redirect.Sampled{Name: d.Name, Bypass: s.bypass(d)})
		}
	}
	return s.gateway.Sample(ctx, databases)
}

// usageEnabled is the value of REHOME_USAGE_STATS that lets statistics be collected.
const usageEnabled = "enabled"
