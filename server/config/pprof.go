package config

import (
	"net"
	"net/netip"
)

// validatePprof refuses an address of profiles that others could reach. A name is taken for another machine's, since what it
// means is not known before it is looked up; localhost is always this one (RFC 6761, section 6.3).
func (c Config) validatePprof() error {
	if c.PprofNetworks != "loopback" && c.PprofNetworks != "any" {
		return bad("bad-pprof-networks", "write loopback or any", "REHOME_PPROF_NETWORKS is %q", c.PprofNetworks)
	}
	if c.Pprof == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Pprof)
	if err != nil {
		return bad("bad-pprof", "write host:port, for example 127.0.0.1:6060", "REHOME_PPROF %q is not an address", c.Pprof)
	}
	addr, err := netip.ParseAddr(host)
	if c.PprofNetworks == "any" || host == "localhost" || (err == nil && addr.Unmap().IsLoopback()) {
		return nil
	}
	return bad("public-pprof", "write an address of this machine such as 127.0.0.1:6060, or set REHOME_PPROF_NETWORKS=any where a firewall stands before it",
		"profiles would be open to everybody who reaches %s", c.Pprof)
}
