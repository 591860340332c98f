package tenant

import (
	"log/slog"
	"net/url"
	"strings"
)

const redacted = "[redacted]"

// Secret is a text that must never be printed. Reveal is the only way to its content.
type Secret string

// Reveal returns the content, for the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// DSN is a Postgres connection string, URL or key/value. It prints without its password.
type DSN string

// Reveal returns the whole connection string, for pgx.
func (d DSN) Reveal() string { return string(d) }

// String returns the connection string without password and parameters that may carry one.
func (d DSN) String() string {
	if u, err := url.Parse(string(d)); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		if u.User == nil && strings.Contains(string(d), "@") {
			// A password with an unescaped / ? or #: its first part reads as the host's port.
			return redacted
		}
		host := u.Host
		if h := u.Query().Get("host"); host == "" && h != "" {
			host = h
			if p := u.Query().Get("port"); p != "" {
				host += ":" + p
			}
		}
		out := "postgres://"
		if name := u.User.Username(); name != "" {
			out += url.User(name).String() + "@"
		}
		return out + host + u.Path
	}
	var keep []string
	for rest := string(d); rest != ""; {
		k, v, after, ok := keyValue(rest)
		if !ok {
			return redacted
		}
		switch k {
		case "host", "port", "user", "dbname":
			keep = append(keep, k+"="+v)
		}
		rest = after
	}
	if len(keep) == 0 {
		return redacted
	}
	return strings.Join(keep, " ")
}

// keyValue reads the first pair of a key/value connection string (libpq, 34.1.1.1), its value as it is written. False: it
// is none. A quoted value may have blanks and pairs in it, which are no pairs.
func keyValue(s string) (key, value, rest string, ok bool) {
	key, rest, ok = strings.Cut(s, "=")
	key, rest = strings.TrimSpace(key), strings.TrimLeft(rest, " \t\r\n")
	if !ok || key == "" || strings.ContainsAny(key, " \t\r\n'\\") {
		return "", "", "", false
	}
	quoted, i := strings.HasPrefix(rest, "'"), 0
	if quoted {
		i = 1
	}
	for ; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\':
			i++
		case quoted && c == '\'':
			return key, rest[:i+1], strings.TrimSpace(rest[i+1:]), true
		case !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return key, rest[:i], strings.TrimSpace(rest[i:]), true
		}
	}
	return key, rest, "", !quoted
}

// GoString implements fmt.GoStringer.
func (d DSN) GoString() string { return d.String() }

// LogValue implements slog.LogValuer.
func (d DSN) LogValue() slog.Value { return slog.StringValue(d.String()) }

// MarshalText implements encoding.TextMarshaler.
func (d DSN) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
