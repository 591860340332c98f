package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// appConnections of an application to one Postgres.
	appConnections = 8
	headerTimeout  = 10 * time.Second
)

// application is the tenant's program behind a gateway: on the source, or on the shards. Its address is known before it
// runs, since a database is created with it.
type application struct {
	ln      net.Listener
	url     string
	running *service
}

func newApplication(ctx context.Context) (*application, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a port for the application: %w", err)
	}
	return &application{ln: ln, url: "http://" + ln.Addr().String()}, nil
}

// serve answers until ctx ends.
func (a *application) serve(ctx context.Context, app *workload.App) error {
	srv := &http.Server{
		Handler: app.Handler(), ReadHeaderTimeout: headerTimeout,
		// WebSockets are hijacked: only their context ends them.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(a.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the application at %s: %w", a.url, err)
	}
	return nil
}

// pool opens a pool that is closed when the demo ends, at the latest.
func (d *demo) pool(ctx context.Context, dsn tenant.DSN, name string, most int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: not a connection string", dsn)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = name
	cfg.MaxConns = most
	p, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", dsn, err)
	}
	d.pools = append(d.pools, p)
	return p, nil
}
