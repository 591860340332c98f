package redirect

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

var errTODO = errors.New("not built yet")

// Config of a gateway. Zero values mean the defaults.
type Config struct {
	Pool           *pgxpool.Pool
	Now            func() time.Time
	Logger         *slog.Logger
	Server         string        // name of this server, unique among those that share the control database
	UsageStats     bool          // count connections and clients
	RefreshEvery   time.Duration // default 5 s
	FlushEvery     time.Duration // default 5 s
	MaxHeld        int           // default 10000
	MaxHold        time.Duration // default 10 s
	ReleaseBatch   int           // default 64
	ReleaseEvery   time.Duration // default 10 ms
	WriteTimeout   time.Duration // slow readers; default 30 s
	TrustForwarded bool          // X-Forwarded-For of who connects is believed: a load balancer is in front
}

// Gateway is the gateway.
type Gateway struct{ cfg Config }

// New makes a gateway.
func New(cfg Config) *Gateway { return &Gateway{cfg: cfg} }

// ServeHTTP serves /NAME/….
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// Run reloads routes and flushes statistics until ctx ends.
func (g *Gateway) Run(ctx context.Context) error { return errTODO }

// Reload reads the routes now.
func (g *Gateway) Reload(ctx context.Context) error { return errTODO }

// Drain closes WebSockets and waits until they are gone.
func (g *Gateway) Drain(ctx context.Context) error { return errTODO }

// ConnContext is for http.Server.
func (g *Gateway) ConnContext(ctx context.Context, c net.Conn) context.Context { return ctx }

// ConnState is for http.Server.
func (g *Gateway) ConnState(c net.Conn, s http.ConnState) {}

// Hold makes new work wait.
func (g *Gateway) Hold(database string, until time.Time) (release func()) { return func() {} }

// Open lists this server's open connections.
func (g *Gateway) Open(database string) []OpenConnection { return nil }

// StatsFor counts.
func (g *Gateway) StatsFor(ctx context.Context, database string, bypass ...func(ctx context.Context) (*pgx.Conn, error)) (Stats, error) {
	return Stats{}, errTODO
}

// SetRedirect sets or changes a redirect.
func (g *Gateway) SetRedirect(ctx context.Context, r Redirect) (Redirect, error) {
	return Redirect{}, errTODO
}

// ClearRedirect takes it back.
func (g *Gateway) ClearRedirect(ctx context.Context, database string) error { return errTODO }

// RedirectOf reads it.
func (g *Gateway) RedirectOf(ctx context.Context, database string) (Redirect, error) {
	return Redirect{}, errTODO
}

// SetTombstone says until when the redirect answers.
func (g *Gateway) SetTombstone(ctx context.Context, database string, until time.Time) error {
	return errTODO
}

// Collectors are the gateway's metrics.
func (g *Gateway) Collectors() []prometheus.Collector { return nil }
