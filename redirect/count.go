package redirect

import (
	"cmp"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Protocols.
const (
	protoHTTP      = "http"
	protoWebSocket = "websocket"
)

const (
	maxClient = 64    // bytes of a client's name
	maxKeys   = 20000 // clients counted apart between two flushes; the rest is "other", without address
)

// key is what is counted apart.
type key struct{ database, protocol, client, address string }

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

// counts holds what is open now and what was opened since the last flush. With UsageStats off it keeps nothing.
type counts struct {
	cfg Config

	mu     sync.Mutex
	open   map[key]int
	seen   map[key]time.Time // of open ones
	deltas map[deltaKey]delta
}

func newCounts(cfg Config) *counts {
	return &counts{cfg: cfg, open: map[key]int{}, seen: map[key]time.Time{}, deltas: map[deltaKey]delta{}}
}

// see makes the key of a request.
func (c *counts) see(r *http.Request, database string, trustForwarded bool) key {
	k := key{database: database, protocol: protoHTTP}
	if isUpgrade(r) {
		k.protocol = protoWebSocket
	}
	if !c.cfg.UsageStats {
		return k
	}
	k.client = product(r.UserAgent())
	k.address = addressOf(r.RemoteAddr)
	if trustForwarded {
		// The last entry is what the load balancer saw; those before it anybody may have written.
		if v := r.Header.Values("X-Forwarded-For"); len(v) > 0 {
			last := v[len(v)-1]
			last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
			if net.ParseIP(last) != nil {
				k.address = last
			}
		}
	}
	return k
}

// enter counts a request's connection as open: until it closes if the server's hooks are installed, else until done.
func (c *counts) enter(r *http.Request, k key) (done func()) {
	if !c.cfg.UsageStats {
		return func() {}
	}
	if tracked, ok := r.Context().Value(connKey{}).(*tracked); ok {
		tracked.touch(c, k)
		return func() {}
	}
	c.add(k, 1)
	return func() { c.add(k, -1) }
}

func (c *counts) add(k key, n int) {
	if !c.cfg.UsageStats {
		return
	}
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
		dk.client, dk.address = "other", ""
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
			k.client, k.address = "other", ""
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
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.database, b.database), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.client, b.client), cmp.Compare(a.address, b.address))
	})
	for _, k := range keys {
		list = append(list, Connection{Protocol: k.protocol, Client: k.client, Address: k.address, Via: viaGateway, Open: c.open[k], LastSeen: c.seen[k]})
	}
	return keys, list
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

// product shortens a User-Agent to the product that a person would name, with its major version: "Firefox/128",
// "curl/8". Browsers all begin with Mozilla and name others for compatibility, so the telling ones are looked for first.
func product(agent string) string {
	var products []string
	depth := 0
	for _, token := range strings.FieldsFunc(agent, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		inComment := depth > 0 || strings.HasPrefix(token, "(")
		depth = max(depth+strings.Count(token, "(")-strings.Count(token, ")"), 0)
		if !inComment {
			products = append(products, token)
		}
	}
	if len(products) == 0 {
		return "unknown"
	}
	best := products[0]
	if strings.HasPrefix(best, "Mozilla/") {
	search:
		for _, name := range []string{"Edg/", "OPR/", "SamsungBrowser/", "Firefox/", "FxiOS/", "CriOS/", "Chrome/", "Safari/"} {
			for _, p := range products {
				if strings.HasPrefix(p, name) {
					best = p
					break search
				}
			}
		}
	}
	name, version, _ := strings.Cut(best, "/")
	major, _, _ := strings.Cut(version, ".")
	out := strings.ToValidUTF8(name, "")
	if major = strings.ToValidUTF8(major, ""); major != "" {
		out += "/" + major
	}
	if len(out) > maxClient {
		out = strings.ToValidUTF8(out[:maxClient], "")
	}
	return out
}
