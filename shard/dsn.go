package shard

import (
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

var errBadDSN = &tenant.Error{
	Kind: tenant.KindInvalid, Code: "bad-dsn", Message: "the connection string cannot be read",
	Hint: "write it as postgres://user:password@host:5432/database or as key=value pairs; percent-encode special characters in a URL's password",
}

// parseDSN reads a connection string. pgx's own errors may quote it, so they are left out.
func parseDSN(dsn tenant.DSN) (*pgx.ConnConfig, error) {
	if strings.TrimSpace(dsn.Reveal()) == "" {
		return nil, errBadDSN
	}
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, errBadDSN
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "rehome" // left out of statistics by this prefix
	}
	return cfg, nil
}

// withDatabase is dsn with another database's name, in the form that dsn has. Everything else stays byte for byte.
func withDatabase(dsn tenant.DSN, name string) (tenant.DSN, error) {
	raw := dsn.Reveal()
	if strings.TrimSpace(raw) == "" {
		return "", errBadDSN
	}
	var out string
	if strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://") {
		out = urlWithDatabase(raw, name)
	} else {
		var ok bool
		if out, ok = keyValueWithDatabase(raw, name); !ok {
			return "", errBadDSN
		}
	}
	cfg, err := pgx.ParseConfig(out)
	if err != nil || cfg.Database != name {
		return "", errBadDSN
	}
	return tenant.DSN(out), nil
}

// urlWithDatabase works on the text: url.URL would encode a password anew.
func urlWithDatabase(raw, name string) string {
	scheme, rest, _ := strings.Cut(raw, "://")
	rest, query, hasQuery := strings.Cut(rest, "?")
	authority, _, _ := strings.Cut(rest, "/")
	out := scheme + "://" + authority + "/" + url.PathEscape(name)
	if !hasQuery {
		return out
	}
	var keep []string
	for part := range strings.SplitSeq(query, "&") {
		key, _, _ := strings.Cut(part, "=")
		if key != "dbname" && key != "database" && part != "" {
			keep = append(keep, part)
		}
	}
	if len(keep) == 0 {
		return out
	}
	return out + "?" + strings.Join(keep, "&")
}

// keyValueWithDatabase replaces dbname in "host=… password='a b'" (libpq's key/value form, 34.1.1.1 of the manual).
func keyValueWithDatabase(raw, name string) (string, bool) {
	var keep []string
	rest := strings.TrimSpace(raw)
	for rest != "" {
		eq := strings.IndexByte(rest, '=')
		if eq < 0 {
			return "", false
		}
		key := strings.TrimSpace(rest[:eq])
		i := eq + 1
		for i < len(rest) && isSpace(rest[i]) {
			i++
		}
		end, ok := valueEnd(rest, i)
		if !ok {
			return "", false
		}
		if key != "dbname" && key != "database" {
			keep = append(keep, key+"="+rest[i:end])
		}
		rest = strings.TrimSpace(rest[end:])
	}
	return strings.Join(append(keep, "dbname="+name), " "), true
}

// valueEnd finds where the value that begins at i ends; a backslash protects the next byte. False: a quote stays open.
func valueEnd(s string, i int) (int, bool) {
	quoted := i < len(s) && s[i] == '\''
	if quoted {
		i++
	}
	for ; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case quoted && s[i] == '\'':
			return i + 1, true
		case !quoted && isSpace(s[i]):
			return i, true
		}
	}
	return min(i, len(s)), !quoted
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
