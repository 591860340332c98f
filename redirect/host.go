package redirect

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// table is what a gateway knows: immutable, and replaced as a whole.
type table struct {
	routes  map[string]*route
	domains map[string]string // own domain -> database
}

// hostOf is the host of a Host header or a URL as domains are kept: without port, brackets and trailing dot, in lower
// case (RFC 9110, 4.2.3; RFC 3986, 3.2.2).
func hostOf(hostport string) string {
	host := hostport
	switch {
	case strings.HasPrefix(host, "["): // an IPv6 literal, with or without port
		if end := strings.IndexByte(host, ']'); end > 0 {
			host = host[1:end]
		}
	case strings.Count(host, ":") == 1:
		host, _, _ = strings.Cut(host, ":")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// byHost finds the database that a host stands for: one of its own domains, or NAME.host of the installation.
func (g *Gateway) byHost(hostport string) string {
	t := g.routes.Load()
	if t == nil {
		return ""
	}
	host := hostOf(hostport)
	if name, ok := t.domains[host]; ok {
		return name
	}
	if g.cfg.BaseHost == "" {
		return ""
	}
	if name, ok := strings.CutSuffix(host, "."+g.cfg.BaseHost); ok && t.routes[name] != nil {
		return name
	}
	return ""
}

// Owns reports whether a request's Host stands for a database, so that all of its paths are the database's.
func (g *Gateway) Owns(r *http.Request) bool { return g.byHost(r.Host) != "" }

// locate divides a request into the database, the prefix by which the database is known, and the escaped rest of the path.
// The path stays escaped, so that the next server sees what the client wrote.
func (g *Gateway) locate(r *http.Request) (name, prefix, rest string) {
	path := r.URL.EscapedPath()
	if name := g.byHost(r.Host); name != "" {
		return name, "", path
	}
	path = strings.TrimPrefix(path, "/")
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], "/" + path[:i], path[i:]
	}
	return path, "/" + path, ""
}

// baseHost is the installation's own host, under which NAME.host stands for a database; "" where that is an address.
func baseHost(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	host := hostOf(u.Host)
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

// sameHost reports whether a target is the host that the client addressed: name and port, and no step down from TLS. Only
// then may credentials go there.
func sameHost(r *http.Request, secure bool, target *url.URL) bool {
	scheme := "http"
	if secure {
		scheme = "https"
	}
	if secure && target.Scheme != "https" {
		return false
	}
	return hostOf(r.Host) == hostOf(target.Host) && portOf(r.Host, scheme) == portOf(target.Host, target.Scheme)
}

func portOf(hostport, scheme string) string {
	if _, port, err := net.SplitHostPort(hostport); err == nil && port != "" {
		return port
	}
	if scheme == "https" {
		return "443"
	}
	return "80"
}
