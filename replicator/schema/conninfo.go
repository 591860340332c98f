package schema

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// errDSN hides what pgx says of a connection string it cannot read: that may contain the string.
var errDSN = errors.New("the connection string cannot be read")

// libpqParameters are those of a connection string that pg_dump gets, beside host, port, user, database and password.
// Others belong to pgx, or are settings that a dump does not need.
var libpqParameters = map[string]bool{
	"sslmode": true, "sslcert": true, "sslkey": true, "sslrootcert": true, "sslcrl": true, "sslcrldir": true, "sslsni": true, "sslnegotiation": true,
	"ssl_min_protocol_version": true, "ssl_max_protocol_version": true, "sslpassword": true, "requirepeer": true, "krbsrvname": true,
	"gssencmode": true, "channel_binding": true, "require_auth": true, "connect_timeout": true, "keepalives": true, "keepalives_idle": true,
	"keepalives_interval": true, "keepalives_count": true, "tcp_user_timeout": true, "hostaddr": true, "passfile": true, "options": true,
	"target_session_attrs": true,
}

// environment makes what pg_dump connects with: a service file in the private directory, and the password. Neither shows
// on a command line.
func environment(dsn tenant.DSN, dir string) ([]string, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, errDSN
	}
	params := parameters(dsn.Reveal())
	hosts, ports := []string{cfg.Host}, []string{strconv.Itoa(int(cfg.Port))}
	for _, f := range cfg.Fallbacks {
		// pgx also makes a fallback of each host with and without TLS.
		if f.Host != hosts[len(hosts)-1] || strconv.Itoa(int(f.Port)) != ports[len(ports)-1] {
			hosts, ports = append(hosts, f.Host), append(ports, strconv.Itoa(int(f.Port)))
		}
	}
	var service strings.Builder
	service.WriteString("[rehome]\n")
	write := func(k, v string) error {
		if v == "" {
			return nil
		}
		if strings.ContainsAny(v, "\n\r") || strings.TrimSpace(v) != v {
			return fmt.Errorf("the connection string's %s begins or ends with blanks or has a line break", k)
		}
		_, err := fmt.Fprintf(&service, "%s=%s\n", k, v)
		return err
	}
	all := map[string]string{"host": strings.Join(hosts, ","), "port": strings.Join(ports, ","), "user": cfg.User, "dbname": cfg.Database, "application_name": "rehome schema"}
	for k, v := range params {
		if libpqParameters[k] {
			all[k] = v
		}
	}
	for k, v := range all {
		if err := write(k, v); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(dir, "pg_service.conf")
	if err := os.WriteFile(file, []byte(service.String()), 0o600); err != nil {
		return nil, fmt.Errorf("write the connection's parameters: %w", err)
	}
	env := slices.DeleteFunc(os.Environ(), ours)
	env = append(env, "PGSERVICEFILE="+file, "PGSERVICE=rehome", "LC_ALL=C", "LANGUAGE=") // messages that passes reads
	if cfg.Password != "" {
		env = append(env, "PGPASSWORD="+cfg.Password)
	}
	return env, nil
}

// ours reports whether a variable of this process is no business of pg_dump: our own secrets, and what would send it
// somewhere else, or with another password, than the connection string says.
func ours(kv string) bool {
	name, _, _ := strings.Cut(kv, "=")
	switch name {
	case "DATABASE_URL", "PGPASSWORD", "PGHOSTADDR":
		return true
	}
	return strings.HasPrefix(name, "REHOME_")
}

// parameters reads the parameters of a connection string that pgx has accepted: of a URL its query, else key=value pairs.
func parameters(dsn string) map[string]string {
	out := map[string]string{}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return out
		}
		for k, v := range u.Query() {
			out[k] = v[0]
		}
		return out
	}
	for s := dsn; ; {
		k, rest, ok := strings.Cut(s, "=")
		if !ok {
			return out
		}
		k, rest = strings.TrimSpace(k), strings.TrimLeft(rest, " \t\n")
		var v strings.Builder
		quoted := strings.HasPrefix(rest, "'")
		i := 0
		if quoted {
			i = 1
		}
		for ; i < len(rest); i++ {
			c := rest[i]
			if c == '\\' && i+1 < len(rest) {
				i++
				c = rest[i]
			} else if (quoted && c == '\'') || (!quoted && strings.IndexByte(" \t\n", c) >= 0) {
				break
			}
			v.WriteByte(c)
		}
		out[k] = v.String()
		s = rest[min(i+1, len(rest)):]
	}
}
