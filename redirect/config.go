package redirect

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Defaults of a Config.
const (
	defaultRefresh      = 5 * time.Second        // NOTIFY tells sooner; this is for a lost one
	defaultFlush        = 5 * time.Second        // a third of gaugeStale: one flush may fail
	defaultMaxHeld      = 10000                  // a goroutine and a socket each: about 200 MB
	defaultMaxHold      = 10 * time.Second       // twice the default of a cutover's longest pause
	defaultMaxWait      = 20 * time.Second       // clients and load balancers commonly give up after 30 s
	defaultDrainHeld    = 300 * time.Millisecond // most of a pause of half a second stays for the cutover
	defaultCloseWindow  = 10 * time.Second       // ten thousand clients that come back at once are a thousand a second
	defaultReleaseBatch = 64                     // what an application takes at once without queueing
	defaultReleaseEvery = 10 * time.Millisecond  // 10,000 held requests are released within 1.6 s
	defaultWriteTimeout = 30 * time.Second       // a reader that takes nothing for that long is gone
	defaultDialTimeout  = 5 * time.Second        // an upstream is near
	defaultMaxMessage   = 64 << 20               // bytes of one WebSocket message; it is streamed, not kept
)

// Config of a gateway. Zero values mean the defaults. Pool and Server are required.
type Config struct {
	Pool           *pgxpool.Pool
	Now            func() time.Time
	Logger         *slog.Logger
	Server         string        // name of this server, unique among those that share the control database
	UsageStats     bool          // count connections and clients; false: nothing is collected
	RefreshEvery   time.Duration // routes are read again at least so often; default 5 s
	FlushEvery     time.Duration // statistics are written so often; default 5 s
	MaxHeld        int           // requests held at once, over all databases; default 10000
	MaxHold        time.Duration // longest hold; default 10 s
	MaxWait        time.Duration // longest wait of one request, then 503; default 20 s
	DrainHeld      time.Duration // a hold waits so long for requests from before it that may write; default 300 ms
	ReleaseBatch   int           // held requests let go at once; default 64
	ReleaseEvery   time.Duration // and so long between such batches; default 10 ms
	WriteTimeout   time.Duration // a client that takes no byte for so long is cut off; default 30 s
	DialTimeout    time.Duration // connecting to an upstream; default 5 s
	MaxMessage     int64         // bytes of one WebSocket message; default 64 MB
	CloseWindow    time.Duration // WebSockets that a move ends are closed within so long, not at once; default 10 s
	PermanentAfter time.Duration // a redirect of this age is answered with 308; 0: only where a person said so
	BaseHost       string        // NAME.BaseHost stands for the database NAME; see WithBaseURL
	// TrustedProxies are believed what they say of the client in X-Forwarded-For, X-Forwarded-Proto and Forwarded.
	TrustedProxies []netip.Prefix
}

// WithBaseURL sets BaseHost to the host of the installation's URL, unless that is an address.
func (c Config) WithBaseURL(base string) Config {
	c.BaseHost = baseHost(base)
	return c
}

// WithDefaults fills what was left out.
func (c Config) WithDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Server == "" {
		c.Server = "rehome"
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.RefreshEvery: defaultRefresh, &c.FlushEvery: defaultFlush, &c.MaxHold: defaultMaxHold, &c.MaxWait: defaultMaxWait, &c.DrainHeld: defaultDrainHeld,
		&c.CloseWindow: defaultCloseWindow, &c.ReleaseEvery: defaultReleaseEvery, &c.WriteTimeout: defaultWriteTimeout, &c.DialTimeout: defaultDialTimeout,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	if c.MaxHeld <= 0 {
		c.MaxHeld = defaultMaxHeld
	}
	if c.ReleaseBatch <= 0 {
		c.ReleaseBatch = defaultReleaseBatch
	}
	if c.MaxMessage <= 0 {
		c.MaxMessage = defaultMaxMessage
	}
	return c
}
