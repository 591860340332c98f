package config

import (
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/tenant"
)

// Defaults of the settings, as the command line's contract gives them.
const (
	DefaultURL      = "http://localhost:8080"
	DefaultListen   = "127.0.0.1:8080"
	DefaultPGListen = "127.0.0.1:6432"
	DefaultEmailURL = "log:"
	// DefaultDrainTimeout leaves the slowest ordinary request (a preflight over a wide area) time to finish, and stays
	// below the 30 s after which container platforms kill.
	DefaultDrainTimeout = 20 * time.Second
	// DefaultMaxConnections bounds the pool to the control database: jobs, listeners and requests together.
	DefaultMaxConnections = 20
	// DefaultDeleteGrace is how long a deleted database's data stays.
	DefaultDeleteGrace = 30 * 24 * time.Hour
	// DefaultTombstone is how long a deleted database's redirect lives on: six months.
	DefaultTombstone = 183 * 24 * time.Hour
	// DefaultPermanentAfter is the age at which a redirect becomes permanent: until then somebody has noticed if it should
	// not have been set.
	DefaultPermanentAfter = 6 * time.Hour
	// DefaultCloseWindow is how long the closing of a moved database's WebSockets takes at most.
	DefaultCloseWindow = 10 * time.Second
	// DefaultHoldWait is how long a request waits while its database is held: clients and load balancers commonly give up
	// after 30 s.
	DefaultHoldWait = 20 * time.Second
)

// Config is what a server is started with. The tags name the settings; see doc.go for where they come from.
type Config struct {
	// DatabaseURL is the control database; required.
	DatabaseURL tenant.DSN `koanf:"database_url"`
	// Secret is 32 or more random bytes; the keys for stored secrets are derived from it. Required. Whoever knows it
	// is the installation's operator.
	Secret tenant.Secret `koanf:"secret"`
	// URL is the public base URL, without a trailing slash.
	URL string `koanf:"url"`
	// Listen is the address of HTTP API, gateway, probes and metrics.
	Listen string `koanf:"listen"`
	// PGListen is the address of the Postgres gateway. Nothing listens there yet.
	PGListen string `koanf:"pg_listen"`
	// NATSURL is an outside NATS server; empty: one is embedded.
	NATSURL string `koanf:"nats_url"`
	// NATSStore is the folder of the embedded server's streams; empty: a temporary one. It holds nothing that matters.
	NATSStore string `koanf:"nats_store"`
	// EmailURL is how codes reach people while no channel was set with init-email-channel.
	EmailURL tenant.Secret `koanf:"email_url"`
	// UsageStats says whether connections are counted per client: enabled or disabled.
	UsageStats string `koanf:"usage_stats"`
	// WebhookNetworks says where webhooks may go: any, or public, which refuses private networks and this machine.
	WebhookNetworks string `koanf:"webhook_networks"`
	// ServerName tells servers of one installation apart in leases and statistics; empty: host name and a random suffix.
	ServerName string `koanf:"server_name"`
	// DrainTimeout bounds how long a stop waits for requests in flight before it cuts them.
	DrainTimeout time.Duration `koanf:"drain_timeout"`
	// MaxConnections bounds the pool to the control database.
	MaxConnections int `koanf:"max_connections"`
	// DeleteGrace is how long a deleted database can be undeleted; then its data is destroyed.
	DeleteGrace time.Duration `koanf:"delete_grace"`
	// Tombstone is how long the redirect of a deleted database lives on; then it answers 410.
	Tombstone time.Duration `koanf:"tombstone"`
	// RedirectPermanentAfter is the age at which a redirect answers 308 instead of 307; below 0: never by itself.
	RedirectPermanentAfter time.Duration `koanf:"redirect_permanent_after"`
	// CloseWindow is how long the closing of a moved database's WebSockets takes at most: their clients do not come back
	// all at once.
	CloseWindow time.Duration `koanf:"close_window"`
	// HoldWait is how long a request waits while its database is held, before it is refused with Retry-After.
	HoldWait time.Duration `koanf:"hold_wait"`
	// Pprof is the address of the profiles of the running server (net/http/pprof), a listener of its own; empty: none. What
	// they show of the process is nobody's business but the operator's, so it must be this machine's, unless PprofNetworks
	// says otherwise.
	Pprof string `koanf:"pprof"`
	// PprofNetworks says where Pprof may listen: loopback, or any.
	PprofNetworks string `koanf:"pprof_networks"`
	// TrustedProxies are addresses and networks (CIDR), separated by commas, that are believed what X-Forwarded-For,
	// X-Forwarded-Proto and Forwarded say of a client. Empty: nobody is.
	TrustedProxies string `koanf:"trusted_proxies"`

	// Now is the clock; tests replace it. Nil: time.Now.
	Now func() time.Time `koanf:"-"`
	// Version is what the API reports; set by the program, not by a person.
	Version string `koanf:"-"`
}

// WithDefaults fills what was left out.
func (c Config) WithDefaults() Config {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&c.URL, DefaultURL)
	c.URL = strings.TrimRight(c.URL, "/")
	set(&c.Listen, DefaultListen)
	set(&c.PGListen, DefaultPGListen)
	set(&c.UsageStats, "enabled")
	set(&c.WebhookNetworks, "any")
	set(&c.PprofNetworks, "loopback")
	set(&c.Version, "devel")
	if c.EmailURL == "" {
		c.EmailURL = DefaultEmailURL
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrainTimeout
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.DeleteGrace == 0 {
		c.DeleteGrace = DefaultDeleteGrace
	}
	if c.Tombstone == 0 {
		c.Tombstone = DefaultTombstone
	}
	if c.RedirectPermanentAfter == 0 {
		c.RedirectPermanentAfter = DefaultPermanentAfter
	}
	if c.CloseWindow == 0 {
		c.CloseWindow = DefaultCloseWindow
	}
	if c.HoldWait == 0 {
		c.HoldWait = DefaultHoldWait
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Validate refuses settings that cannot work, naming the setting and what to write. It expects WithDefaults.
func (c Config) Validate() error {
	if c.DatabaseURL == "" {
		return bad("missing-database-url", "set REHOME_DATABASE_URL (or DATABASE_URL), for example postgres://rehome@127.0.0.1/rehome", "no control database is named")
	}
	if c.Secret == "" {
		return bad("missing-secret", "make one with `openssl rand -base64 48`, keep it, and set it as REHOME_SECRET", "REHOME_SECRET is not set")
	}
	if n := len(c.Secret.Reveal()); n < seal.MinSecret {
		return bad("short-secret", "make one with: openssl rand -base64 48", "REHOME_SECRET has %d bytes; it needs at least %d", n, seal.MinSecret)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return bad("bad-url", "write it as https://host, without credentials or query", "REHOME_URL is not the base URL of a server")
	}
	for name, addr := range map[string]string{"REHOME_LISTEN": c.Listen, "REHOME_PG_LISTEN": c.PGListen} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return bad("bad-listen", "write host:port, for example 127.0.0.1:8080, or :8080 for every interface", "%s %q is not an address", name, addr)
		}
	}
	if c.UsageStats != "enabled" && c.UsageStats != "disabled" {
		return bad("bad-usage-stats", "write enabled or disabled", "REHOME_USAGE_STATS is %q", c.UsageStats)
	}
	if c.WebhookNetworks != "any" && c.WebhookNetworks != "public" {
		return bad("bad-webhook-networks", "write any or public", "REHOME_WEBHOOK_NETWORKS is %q", c.WebhookNetworks)
	}
	if err := c.validatePprof(); err != nil {
		return err
	}
	if c.NATSURL != "" {
		if u, err := url.Parse(c.NATSURL); err != nil || u.Host == "" {
			return bad("bad-nats-url", "write it as nats://host:4222, or leave it empty for the embedded server", "REHOME_NATS_URL is not a URL")
		}
	}
	for name, d := range map[string]time.Duration{"drain-timeout": c.DrainTimeout, "delete-grace": c.DeleteGrace, "tombstone": c.Tombstone, "close-window": c.CloseWindow, "hold-wait": c.HoldWait} {
		if d < 0 {
			return bad("bad-"+name, "write a duration such as 20s or 720h", "the setting %s is negative", name)
		}
	}
	if _, err := c.Proxies(); err != nil {
		return err
	}
	if c.MaxConnections < minConnections {
		return bad("bad-max-connections", "leave it out for the default", "REHOME_MAX_CONNECTIONS is %d; the server needs at least %d", c.MaxConnections, minConnections)
	}
	return nil
}

// Proxies reads TrustedProxies.
func (c Config) Proxies() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for text := range strings.SplitSeq(c.TrustedProxies, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if addr, aerr := netip.ParseAddr(text); aerr == nil {
			p, err = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
		}
		if err != nil {
			return nil, bad("bad-trusted-proxies", "write addresses or networks such as 10.0.0.0/8, separated by commas", "REHOME_TRUSTED_PROXIES: %q is no address and no network", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// minConnections is what listeners, the job queue and the lease keeper hold at the same time, and some for requests.
const minConnections = 8

func bad(code, hint, format string, args ...any) error {
	return tenant.Errorf(tenant.KindInvalid, code, hint, format, args...)
}
