package tenant

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// TableName is a schema-qualified relation name, unquoted.
type TableName struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// String is the name as people write it, "schema.name", quoted only where Postgres would need it.
func (t TableName) String() string {
	return quoteWhereNeeded(t.Schema) + "." + quoteWhereNeeded(t.Name)
}

// Quoted is the name for SQL: both parts quoted.
func (t TableName) Quoted() string { return QuoteIdent(t.Schema) + "." + QuoteIdent(t.Name) }

func quoteWhereNeeded(s string) string {
	if plainIdent(s) {
		return s
	}
	return QuoteIdent(s)
}

// plainIdent says that an identifier is read back as it is without quotes: [a-z_][a-z0-9_$]*. Names are written for each
// table of thousands, several times.
func plainIdent(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c == '_':
		case i > 0 && (c >= '0' && c <= '9' || c == '$'):
		default:
			return false
		}
	}
	return s != ""
}

// QuoteIdent quotes an identifier for SQL.
func QuoteIdent(s string) string {
	return `"` + strings.ReplaceAll(strings.ReplaceAll(s, "\x00", ""), `"`, `""`) + `"`
}

// QuoteLiteral quotes a string literal for SQL, whatever standard_conforming_strings says.
func QuoteLiteral(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\x00", ""), `'`, `''`)
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(s, `\`, `\\`) + `'`
	}
	return `'` + s + `'`
}

// ParseTableName reads "name" (schema public) or "schema.name"; parts may be double-quoted.
func ParseTableName(s string) (TableName, error) {
	var parts []string
	rest := s
	for {
		var part string
		if strings.HasPrefix(rest, `"`) {
			var b strings.Builder
			i, closed := 1, false
			for i < len(rest) {
				if rest[i] == '"' {
					if i+1 < len(rest) && rest[i+1] == '"' {
						b.WriteByte('"')
						i += 2
						continue
					}
					i++
					closed = true
					break
				}
				b.WriteByte(rest[i])
				i++
			}
			if !closed {
				return TableName{}, badTable(s)
			}
			part, rest = b.String(), rest[i:]
		} else if i := strings.IndexByte(rest, '.'); i >= 0 {
			part, rest = rest[:i], rest[i:]
		} else {
			part, rest = rest, ""
		}
		if part == "" {
			return TableName{}, badTable(s)
		}
		parts = append(parts, part)
		if rest == "" {
			break
		}
		if rest[0] != '.' {
			return TableName{}, badTable(s)
		}
		rest = rest[1:]
	}
	switch len(parts) {
	case 1:
		return TableName{Schema: "public", Name: parts[0]}, nil
	case 2:
		return TableName{Schema: parts[0], Name: parts[1]}, nil
	}
	return TableName{}, badTable(s)
}

func badTable(s string) error {
	return &Error{Kind: KindInvalid, Code: "bad-table-name", Message: fmt.Sprintf("%q is not a table name", s), Hint: `write schema.table, with double quotes around a part that needs them`}
}

var nameRE = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,47}$`)

// reservedNames are path segments of the server itself, and databases that every Postgres server has.
var reservedNames = map[string]bool{
	"v1": true, "livez": true, "readyz": true, "healthz": true, "metrics": true, "console": true, "docs": true, "favicon": true,
	"postgres": true, "template0": true, "template1": true, "rehome": true,
}

// CheckDatabaseName refuses names that cannot be both a URL path segment and a Postgres database.
func CheckDatabaseName(name string) error {
	if !nameRE.MatchString(name) {
		return &Error{Kind: KindInvalid, Code: "bad-database-name", Message: fmt.Sprintf("%q cannot be a database's name", name), Hint: "use 1 to 48 lower-case letters, digits, - and _, beginning with a letter"}
	}
	if reservedNames[name] {
		return &Error{Kind: KindInvalid, Code: "reserved-database-name", Message: fmt.Sprintf("the name %q is reserved", name), Hint: "choose another name"}
	}
	return nil
}

// CheckShardName refuses names that would not be safe in a list or a log.
func CheckShardName(name string) error {
	if !nameRE.MatchString(name) {
		return &Error{Kind: KindInvalid, Code: "bad-shard-name", Message: fmt.Sprintf("%q cannot be a shard's name", name), Hint: "use 1 to 48 lower-case letters, digits, - and _, beginning with a letter"}
	}
	return nil
}

// DatabaseURL is a database's address: the installation's base URL and the database's name.
type DatabaseURL struct {
	Base string // "https://own.example", without a trailing slash
	Name string
}

// String is the whole address.
func (u DatabaseURL) String() string { return u.Base + "/" + u.Name }

// ParseDatabaseURL reads "https://host/NAME".
func ParseDatabaseURL(s string) (DatabaseURL, error) {
	bad := func(why string) error {
		return &Error{Kind: KindInvalid, Code: "bad-database-url", Message: fmt.Sprintf("%q is not a database's URL: %s", s, why), Hint: "write it as https://host/NAME"}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return DatabaseURL{}, bad("no host in it")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return DatabaseURL{}, bad("it begins with neither http:// nor https://")
	}
	if u.User != nil {
		s = u.Redacted()
		return DatabaseURL{}, bad("credentials do not belong into it")
	}
	path := strings.Trim(u.Path, "/")
	i := strings.LastIndexByte(path, '/')
	name := path[i+1:]
	if err := CheckDatabaseName(name); err != nil {
		return DatabaseURL{}, err
	}
	base := u.Scheme + "://" + u.Host
	if i > 0 {
		base += "/" + path[:i]
	}
	return DatabaseURL{Base: base, Name: name}, nil
}
