package redirect

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// origin is where a request comes from, as far as that can be believed.
type origin struct {
	address string   // the client's, without port; "" if it cannot be told
	chain   []string // of X-Forwarded-For, to be passed on
	secure  bool     // the client came over TLS
}

// ClientAddress is the address of a request's client, without port: the peer's, or where that is a trusted proxy the one
// that the proxies say.
func (g *Gateway) ClientAddress(r *http.Request) string { return g.originOf(r).address }

// originOf believes X-Forwarded-For, X-Forwarded-Proto and Forwarded (RFC 7239) of trusted proxies only: from the last
// entry back to the first that no trusted proxy wrote; those before it anybody may have written. A proxy that writes one of
// the two and passes the other on as the client sent it must not be fooled: where both are there and differ, the client is
// whoever connected.
func (g *Gateway) originOf(r *http.Request) origin {
	peer := addressOf(r.RemoteAddr)
	o := origin{address: peer, chain: []string{peer}, secure: r.TLS != nil}
	if !g.trusts(peer) {
		return o
	}
	var hops []string
	for _, v := range r.Header.Values("X-Forwarded-For") {
		for hop := range strings.SplitSeq(v, ",") {
			hops = append(hops, strings.TrimSpace(hop))
		}
	}
	rfc, proto := forwardedOf(r.Header.Values("Forwarded"))
	client := g.clientOf(hops, peer)
	if len(hops) == 0 {
		hops, client = rfc, g.clientOf(rfc, peer)
	} else if len(rfc) > 0 && g.clientOf(rfc, peer) != client {
		return o
	}
	o.address = client
	o.chain = append(hops, peer)
	if p := r.Header.Get("X-Forwarded-Proto"); p != "" {
		proto = p
	}
	if proto != "" {
		o.secure = strings.EqualFold(strings.TrimSpace(proto), "https")
	}
	return o
}

// clientOf goes back through the hops as long as trusted proxies wrote them.
func (g *Gateway) clientOf(hops []string, peer string) string {
	client := peer
	for _, hop := range slices.Backward(hops) {
		addr := hopAddress(hop)
		if addr == "" {
			return client // unknown or hidden: the last that is known
		}
		if client = addr; !g.trusts(addr) {
			return client
		}
	}
	return client
}

func (g *Gateway) trusts(address string) bool {
	if len(g.cfg.TrustedProxies) == 0 {
		return false
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	return slices.ContainsFunc(g.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// hopAddress reads an entry: an address, with or without brackets and port.
func hopAddress(hop string) string {
	if host, _, err := net.SplitHostPort(hop); err == nil {
		hop = host
	}
	hop = strings.Trim(hop, "[]")
	if _, err := netip.ParseAddr(hop); err != nil {
		return ""
	}
	return hop
}

// forwardedOf reads the addresses of Forwarded headers in order, and the last element's protocol.
func forwardedOf(values []string) (hops []string, proto string) {
	for _, v := range values {
		for element := range strings.SplitSeq(v, ",") {
			proto = ""
			for pair := range strings.SplitSeq(element, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				value = strings.Trim(value, `"`)
				switch strings.ToLower(name) {
				case "for":
					hops = append(hops, value)
				case "proto":
					proto = value
				}
			}
		}
	}
	return hops, proto
}
