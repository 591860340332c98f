package redirect

import (
	"cmp"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Protocols.
const (
	protoHTTP      = "http"
	protoWebSocket = "websocket"
	protoPostgres  = "postgres"
)

// maxKeys is how many clients are counted apart between two flushes; the rest is "other", without address.
const maxKeys = 20000

// key is what is counted apart.
type key struct{ database, protocol, client, version, address string }

// other is the key that stands for clients which are not told apart any more.
func (k key) other() key {
	return key{database: k.database, protocol: k.protocol, client: otherClient}
}

// delta is what came in since the last flush, per key, outcome and minute.
type deltaKey struct {
	key
	outcome string
	minute  time.Time
}

type delta struct {
	opened, bytes int64
	lastSeen      time.Time
}

// counts holds what is open now and what was opened since the last flush. With UsageStats off it only knows how many
// connections are open, of whomever, and nothing of it is written.
type counts struct {
	cfg     Config
	members *members

	mu     sync.Mutex
	open   map[key]int
	seen   map[key]time.Time // of open ones
	deltas map[deltaKey]delta
}

func newCounts(cfg Config) *counts {
	return &counts{cfg: cfg, members: newMembers(cfg.Now), open: map[key]int{}, seen: map[key]time.Time{}, deltas: map[deltaKey]delta{}}
}

// see makes the key of a request.
func (c *counts) see(r *http.Request, database, address string) key {
	k := key{database: database, protocol: protoHTTP}
	if isUpgrade(r) {
		k.protocol = protoWebSocket
	}
	if !c.cfg.UsageStats {
		return k
	}
	k.client, k.version = product(r.UserAgent())
	k.address = address
	return c.members.fold(k)
}

// enter counts a request's connection as open: until it closes if the server's hooks are installed, else until done.
func (c *counts) enter(r *http.Request, k key) (done func()) {
	if tracked, ok := r.Context().Value(connKey{}).(*tracked); ok {
		tracked.touch(c, k)
		return func() {}
	}
	c.add(k, 1)
	return func() { c.add(k, -1) }
}

func (c *counts) add(k key, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[k] += n; c.open[k] <= 0 {
		delete(c.open, k)
		delete(c.seen, k)
		return
	}
	c.seen[k] = c.cfg.Now()
}

// opened counts a request or an upgrade and the bytes that it was sent.
func (c *counts) opened(k key, outcome string, bytes int64) {
	c.count(k, outcome, 1, bytes)
}

func (c *counts) count(k key, outcome string, opened, bytes int64) {
	if !c.cfg.UsageStats {
		return
	}
	now := c.cfg.Now()
	dk := deltaKey{key: k, outcome: outcome, minute: now.Truncate(time.Minute)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.deltas[dk]; !known && len(c.deltas) >= maxKeys {
		dk.key = dk.other()
	}
	d := c.deltas[dk]
	d.opened += opened
	d.bytes += bytes
	d.lastSeen = now
	c.deltas[dk] = d
	if _, ok := c.seen[k]; ok {
		c.seen[k] = now
	}
}

// take empties the deltas; giveBack returns those that could not be written.
func (c *counts) take() map[deltaKey]delta {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.deltas
	c.deltas = map[deltaKey]delta{}
	return out
}

func (c *counts) giveBack(back map[deltaKey]delta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, d := range back {
		if _, known := c.deltas[k]; !known && len(c.deltas) >= maxKeys {
			k.key = k.other()
		}
		cur := c.deltas[k]
		cur.opened += d.opened
		cur.bytes += d.bytes
		if d.lastSeen.After(cur.lastSeen) {
			cur.lastSeen = d.lastSeen
		}
		c.deltas[k] = cur
	}
}

// connections lists what is open, of one database or of all ("").
func (c *counts) connections(database string) (keys []key, list []Connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.open {
		if database == "" || k.database == database {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, key.compare)
	for _, k := range keys {
		list = append(list, Connection{Protocol: k.protocol, Client: k.client, Version: k.version, Address: k.address, Via: viaGateway, Open: c.open[k], LastSeen: c.seen[k]})
	}
	return keys, list
}

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.database, o.database), cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.client, o.client), cmp.Compare(k.version, o.version), cmp.Compare(k.address, o.address))
}

// Open lists what this server has open for a database, by protocol, client and address.
func (g *Gateway) Open(database string) []OpenConnection {
	_, list := g.counts.connections(database)
	return list
}

func addressOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	return host
}
