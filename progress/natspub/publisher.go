package natspub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publisher drains an installation's outbox into JetStream.
type Publisher struct {
	cfg     Config
	servers []*url.URL

	nc   atomic.Pointer[nats.Conn]
	good atomic.Bool // JetStream took the last thing that was asked of it

	mu        sync.Mutex
	clientURL string
}

// New checks the configuration. Nothing runs before Run.
func New(cfg Config) (*Publisher, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	list, err := servers(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Publisher{cfg: cfg, servers: list}, nil
}

// Describe names the message server without credentials: "embedded", or scheme and host of the outside ones.
func (p *Publisher) Describe() string { return describe(p.servers) }

// Up reports whether NATS is connected and JetStream works.
func (p *Publisher) Up() bool {
	nc := p.nc.Load()
	return nc != nil && nc.IsConnected() && p.good.Load()
}

// ClientURL is where consumers connect: the outside server without credentials, or the embedded one's address while it
// listens; "" if it does not.
func (p *Publisher) ClientURL() string {
	if len(p.servers) > 0 {
		return describe(p.servers)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clientURL
}

func (p *Publisher) setClientURL(u string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clientURL = u
}

// Run publishes until ctx ends, and returns nil then. Nothing that happens to NATS or to the control database ends it:
// it tries again, with growing pauses.
func (p *Publisher) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = maxBackoff
	for ctx.Err() == nil {
		p.sessionAndPause(ctx, pause)
	}
	return nil
}

func (p *Publisher) sessionAndPause(ctx context.Context, pause *backoff.ExponentialBackOff) {
	started := time.Now()
	err := p.session(ctx)
	p.good.Store(false)
	if ctx.Err() != nil {
		return
	}
	if time.Since(started) > maxBackoff {
		pause.Reset()
	}
	d := pause.NextBackOff()
	p.cfg.Logger.WarnContext(ctx, "events wait for the message server", "nats", p.Describe(), "error", scrub(err, p.servers), "retry_in", d)
	wait(ctx, d)
}

// session is one connection to NATS, with the embedded server if there is no other.
func (p *Publisher) session(ctx context.Context) error {
	if len(p.servers) == 0 {
		return p.runEmbedded(ctx, func(e *embedded) error {
			return p.connected(ctx, nats.InProcessServer(e.server), nats.UserInfo(ownUser, e.password))
		})
	}
	return p.connected(ctx)
}

func (p *Publisher) connected(ctx context.Context, opts ...nats.Option) error {
	opts = append([]nats.Option{
		nats.Name("rehome"), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait), nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1), // a publish while disconnected fails at once: the outbox is the buffer
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil {
				p.cfg.Logger.WarnContext(ctx, "nats disconnected", "nats", p.Describe(), "error", scrub(err, p.servers))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { p.cfg.Logger.InfoContext(ctx, "nats connected again", "nats", p.Describe()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			p.cfg.Logger.WarnContext(ctx, "nats reported an error", "nats", p.Describe(), "error", scrub(err, p.servers))
		}),
	}, opts...)
	nc, err := nats.Connect(p.cfg.URL, opts...)
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	p.nc.Store(nc)
	defer p.nc.Store(nil)
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	return p.publish(ctx, js)
}

// publish tries to drain for as long as the connection is meant to live. NATS's own client reconnects underneath, so
// that only the pauses are ours.
func (p *Publisher) publish(ctx context.Context, js jetstream.JetStream) error {
	d := &drainer{p: p, js: js}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 100 * time.Millisecond // an outside server that restarts is back within a second
	pause.MaxInterval = maxBackoff
	warned := false
	for ctx.Err() == nil {
		err := d.run(ctx, func() { pause.Reset(); warned = false })
		p.good.Store(false)
		if ctx.Err() != nil {
			break
		}
		if js.Conn().IsClosed() { // refused for good, for example by its password: begin anew
			return fmt.Errorf("keep the connection to NATS: %w", errors.Join(err, js.Conn().LastError()))
		}
		if !warned { // once an outage
			p.cfg.Logger.WarnContext(ctx, "events wait for the message server", "nats", p.Describe(), "error", scrub(err, p.servers))
			warned = true
		}
		wait(ctx, pause.NextBackOff())
	}
	return ctx.Err()
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
