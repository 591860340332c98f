package server

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/progress/natspub"
	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/server/notify"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// Worker does the replications' work; package server/supervisor has it. Run blocks until ctx ends.
type Worker interface {
	Run(ctx context.Context) error
}

// Parts is what a Worker is made of: the server's own parts, ready and migrated.
type Parts struct {
	Pool         *pgxpool.Pool // control database
	Seal         *seal.Box
	Catalogue    *shard.Catalogue
	Log          *progress.Log
	Gateway      *redirect.Gateway
	Installation Installation
	Server       string // name of this server in leases and statistics
	Now          func() time.Time
	Logger       *slog.Logger
}

// Deps is what only the program can wire.
type Deps struct {
	// NewWorker makes the supervisor of the replications. Nil: this server answers requests only.
	NewWorker func(Parts) (Worker, error)
	// Notify changes how webhooks and mails are sent; the zero value is what the documentation says.
	Notify notify.Options
	Logger *slog.Logger
}

// Installation is this installation's identity, from the control database.
type Installation struct {
	ID         string // short, random; part of NATS subjects
	BaseURL    string
	AdminEmail string
	PublicKey  ed25519.PublicKey
	PrivateKey ed25519.PrivateKey // signs certificates
}

// publisher is what the server needs of progress/natspub.
type publisher interface {
	Run(ctx context.Context) error
	Up() bool
	Describe() string
}

// Server is one server of an installation. Make it with New, run it once with Run.
type Server struct {
	cfg          config.Config
	name         string
	started      time.Time
	log          *slog.Logger
	pool         *pgxpool.Pool
	box          *seal.Box
	installation Installation
	catalogue    *shard.Catalogue
	events       *progress.Log
	news         publisher
	gateway      *redirect.Gateway
	otp          *otp.Service
	notifier     *notify.Notifier
	jobs         *river.Client[pgx.Tx]
	worker       Worker
	metrics      *metrics
	failures     *failures
	listener     net.Listener
	profiles     profiles
	bodyTimeout  time.Duration // see bodyTimeout

	drainOnce sync.Once
	draining  chan struct{} // closed when a stop begins; ends streams and long polls
}

// New connects to the control database, brings it up to date, makes the parts and binds the address; requests are
// answered from Run on. On an error nothing stays open. Errors are *tenant.Error where a person can do something.
func New(ctx context.Context, cfg config.Config, deps Deps) (_ *Server, err error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: deps.Logger, draining: make(chan struct{}), failures: newFailures(cfg.Now), bodyTimeout: bodyTimeout}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.name = cfg.ServerName; s.name == "" {
		host, _ := os.Hostname() // an empty name is still made unique
		s.name = host + "-" + newID()[:6]
	}
	s.started = cfg.Now()
	if s.box, err = seal.New(cfg.Secret); err != nil {
		return nil, err
	}
	if s.pool, err = connect(ctx, cfg); err != nil {
		return nil, err
	}
	if _, err = migrate(ctx, s.pool, s.log); err != nil {
		return nil, err
	}
	if s.installation, _, err = ensureInstallation(ctx, s.pool, s.box, cfg.URL); err != nil {
		return nil, err
	}
	if err = s.makeParts(ctx, deps); err != nil {
		return nil, err
	}
	if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen); err != nil {
		return nil, &tenant.Error{Kind: tenant.KindUnavailable, Code: "cannot-listen", Message: "cannot listen on " + cfg.Listen, Hint: "set REHOME_LISTEN to a free address", Err: err}
	}
	if s.profiles, err = listenForProfiles(ctx, cfg.Pprof); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) makeParts(ctx context.Context, deps Deps) (err error) {
	s.catalogue = shard.New(s.pool, s.box, s.log, shard.WithNow(s.cfg.Now))
	s.events = progress.NewLog(s.pool, s.installation.ID, s.installation.BaseURL, progress.WithLogger(s.log), progress.WithClock(s.cfg.Now))
	news, err := natspub.New(natspub.Config{URL: s.cfg.NATSURL, StoreDir: s.cfg.NATSStore, Pool: s.pool, Log: s.events, Logger: s.log})
	if err != nil {
		return fmt.Errorf("make the publisher of news: %w", err)
	}
	s.news = news
	proxies, err := s.cfg.Proxies()
	if err != nil {
		return err
	}
	gatewayConfig := redirect.Config{
		Pool: s.pool, Now: s.cfg.Now, Logger: s.log, Server: s.name, UsageStats: s.cfg.UsageStats == usageEnabled,
		// As long as a person may let a cutover pause the writes, and what it then takes to take it back.
		MaxHold: maxMaxPause + holdMargin, MaxWait: s.cfg.HoldWait,
		CloseWindow: s.cfg.CloseWindow, PermanentAfter: s.cfg.RedirectPermanentAfter, TrustedProxies: proxies,
	}
	s.gateway = redirect.New(gatewayConfig.WithBaseURL(s.installation.BaseURL))
	s.otp = otp.New(otp.Config{Pool: s.pool, Seal: s.box, Channel: s.channel, Now: s.cfg.Now, Logger: s.log, Audit: s.auditOTP, Issuer: "Rehome"})
	s.notifier = notify.New(notify.Config{
		Pool: s.pool, Seal: s.box, Log: s.events, Installation: s.installation.ID, BaseURL: s.installation.BaseURL, Version: s.cfg.Version, Server: s.name,
		Channel: s.channel, Audit: s.auditNotifier, Networks: s.cfg.WebhookNetworks, Now: s.cfg.Now, Logger: s.log, Options: deps.Notify,
	})
	if s.jobs, err = s.newJobs(); err != nil {
		return err
	}
	s.metrics = newMetrics(s.pool, s.news.Up, append(s.gateway.Collectors(), newReplicationMetrics(s.pool, s.log))...)
	if deps.NewWorker != nil {
		s.worker, err = deps.NewWorker(Parts{
			Pool: s.pool, Seal: s.box, Catalogue: s.catalogue, Log: s.events, Gateway: s.gateway,
			Installation: s.installation, Server: s.name, Now: s.cfg.Now, Logger: s.log,
		})
		if err != nil {
			return fmt.Errorf("make the replications' worker: %w", err)
		}
	}
	return nil
}

// Addr is the address that the server is bound to.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Installation is the identity of the installation that the server belongs to.
func (s *Server) Installation() Installation { return s.installation }

// Close lets go of what New took. Run does it at its end; it is for a server that is never run.
func (s *Server) Close() {
	if s.listener != nil {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("close the listener", "error", err)
		}
	}
	if err := s.profiles.close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Warn("close the listener of profiles", "error", err)
	}
	if s.pool != nil {
		s.pool.Close()
	}
}

func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

func (s *Server) beginDrain() { s.drainOnce.Do(func() { close(s.draining) }) }

func (s *Server) httpServer(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       s.gateway.ConnContext,
		ConnState:         s.gateway.ConnState,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}
