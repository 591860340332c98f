package server

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// A key that is bound to databases belongs to an owner, not to who runs the installation. What its owner makes the server
// connect to must be somewhere that the owner could have gone to himself: not what trusts the server for standing where
// it stands (Unix sockets, loopback, the link with a cloud's metadata service), and with the owner's own password, never
// with files or an environment of the server. Private networks stay open: sources live there. A name is looked up here
// and once more to connect, so who controls its DNS can still change the answer in between: installations that give keys
// to strangers have to filter what the server may reach.

// resolveTimeout bounds the look-up of a name.
const resolveTimeout = 10 * time.Second

// sourceParameter reports whether a bound key may set a parameter of a connection string: none that names a file or
// another host.
func sourceParameter(name string, values []string) bool {
	switch name {
	case "sslmode", "sslnegotiation", "channel_binding", "connect_timeout", "application_name", "target_session_attrs", "options":
		return true
	case "sslrootcert":
		return len(values) == 1 && values[0] == "system"
	}
	return false
}

func notPermitted(format string, args ...any) error {
	return tenant.Errorf(tenant.KindUnauthorised, "address-not-permitted", "have it done with a key for the whole installation", format, args...)
}

// permitSource refuses a source that a bound key may not make the server connect to. The string itself is never quoted.
func permitSource(ctx context.Context, source tenant.DSN) error {
	if p := requestOf(ctx).principal; p != nil && p.unbound() {
		return nil
	}
	u, err := url.Parse(source.Reveal())
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || u.Host == "" {
		return notPermitted("with a key that is bound to databases the source is written as postgres://user:password@host:5432/database")
	}
	if password, ok := u.User.Password(); !ok || password == "" || u.User.Username() == "" {
		return notPermitted("with a key that is bound to databases the source names its user and password: the server's own are not used")
	}
	for name, values := range u.Query() {
		if !sourceParameter(name, values) {
			return notPermitted("with a key that is bound to databases the source may not set %q", name)
		}
	}
	cfg, err := pgx.ParseConfig(source.Reveal())
	if err != nil {
		return notPermitted("the source is not a connection string of Postgres")
	}
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, h := range hosts {
		if err := permitHost(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// permitHost refuses a host that a bound key may not make the server connect to.
func permitHost(ctx context.Context, host string) error {
	if p := requestOf(ctx).principal; p != nil && p.unbound() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return &tenant.Error{Kind: tenant.KindUnavailable, Code: "unknown-host", Message: "the host " + host + " cannot be found", Hint: "check its name", Err: err}
	}
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			return notPermitted("%s is an address of this server's own machine or link", host)
		}
	}
	return nil
}
