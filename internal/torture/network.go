package torture

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"

	"github.com/rehomedb/rehome/tenant"
)

// Network is a set of links between the servers and what they talk to.
type Network struct {
	server *toxiproxy.ApiServer // never listens; the library wants one
	mu     sync.Mutex
	links  map[string]*link
}

type link struct {
	proxy    *toxiproxy.Proxy
	up, down *weather
	mu       sync.Mutex
	usual    conditions
}

// NewNetwork makes a network without links.
func NewNetwork() *Network {
	toxics.Register(weatherToxic, new(weather))
	return &Network{server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.New(io.Discard)), links: map[string]*link{}}
}

// Link leads to a server and returns the connection string that goes through it.
func (n *Network) Link(name string, dsn tenant.DSN) (tenant.DSN, error) {
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		return "", fmt.Errorf("link %s: the address cannot be read", name)
	}
	l := &link{proxy: toxiproxy.NewProxy(n.server, name, "127.0.0.1:0", u.Host)}
	if l.up, err = l.install("upstream"); err != nil {
		return "", fmt.Errorf("link %s: %w", name, err)
	}
	if l.down, err = l.install("downstream"); err != nil {
		return "", fmt.Errorf("link %s: %w", name, err)
	}
	if err := l.proxy.Start(); err != nil {
		return "", fmt.Errorf("link %s: %w", name, err)
	}
	n.mu.Lock()
	n.links[name] = l
	n.mu.Unlock()
	u.Host = l.proxy.Listen
	return tenant.DSN(u.String()), nil
}

func (l *link) install(stream string) (*weather, error) {
	t, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type": %q, "stream": %q}`, weatherToxic, stream)))
	if err != nil {
		return nil, err
	}
	w, ok := t.Toxic.(*weather)
	if !ok {
		return nil, fmt.Errorf("unexpected toxic %T", t.Toxic)
	}
	return w, nil
}

func (n *Network) link(name string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[name]
}

func (l *link) set(c conditions) {
	l.up.set(c)
	l.down.set(c)
}

// Slow delays everything that passes a link, both ways.
func (n *Network) Slow(name string, latency time.Duration) {
	n.link(name).set(conditions{latency: latency})
}

// Narrow bounds each connection, in bytes a second each way.
func (n *Network) Narrow(name string, rate int) { n.link(name).set(conditions{rate: rate}) }

// Silence lets nothing through; connections stay, as when a cable is pulled.
func (n *Network) Silence(name string) { n.link(name).set(conditions{silent: true}) }

// Clear ends whatever the weather was; what was on its way arrives.
func (n *Network) Clear(name string) {
	l := n.link(name)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(l.usual)
}

// Usually says how slow and how narrow (bytes a second; 0: not at all) a link is when nothing is wrong.
func (n *Network) Usually(name string, latency time.Duration, rate int) {
	l := n.link(name)
	l.mu.Lock()
	l.usual = conditions{latency: latency, rate: rate}
	l.mu.Unlock()
	n.Clear(name)
}

// Cut ends all connections of a link and refuses new ones until Mend.
func (n *Network) Cut(name string) {
	l := n.link(name)
	l.proxy.Stop()
	n.Clear(name) // what was on its way is lost with its connection
}

// Mend lets connections be made again after Cut.
func (n *Network) Mend(name string) error {
	if err := n.link(name).proxy.Start(); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

// Close ends all links.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.proxy.Stop()
		l.set(conditions{})
	}
}
