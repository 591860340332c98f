package catalog

import (
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// ownSchemas are Rehome's, and never part of what is replicated.
var ownSchemas = []string{"rehome", "rehome_control"}

// Matches reports whether a pattern of --include, --exclude, --reference or --realms-never-change names a table. A pattern is "schema.table", or
// "table" in schema public, with double quotes where a part needs them; * stands for any run of characters unless it is
// within quotes, and a lone * for every table.
func Matches(pattern string, name tenant.TableName) bool {
	raw := name.Schema + "." + name.Name
	if pattern == "*" || pattern == raw || pattern == name.String() || pattern == name.Quoted() {
		return true
	}
	plain, dotted := unquote(pattern)
	if !strings.Contains(plain, anyRun) {
		t, err := tenant.ParseTableName(pattern)
		return err == nil && t == name
	}
	if !dotted {
		plain = "public." + plain
	}
	return glob(plain, raw)
}

// anyRun stands for a * outside of quotes; no name contains it.
const anyRun = "\x00"

// unquote takes the quotes out of a pattern and says whether it names a schema.
func unquote(pattern string) (plain string, dotted bool) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '"' && quoted && strings.HasPrefix(pattern[i+1:], `"`):
			b.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
		case c == '*' && !quoted:
			b.WriteString(anyRun)
		default:
			dotted = dotted || (c == '.' && !quoted)
			b.WriteByte(c)
		}
	}
	return b.String(), dotted
}

// MatchesAny reports whether one of the patterns names the table.
func MatchesAny(patterns []string, name tenant.TableName) bool {
	for _, p := range patterns {
		if Matches(p, name) {
			return true
		}
	}
	return false
}

// Included reports whether the options let a table take part.
func Included(opts tenant.ReplicationOptions, name tenant.TableName) bool {
	if len(opts.Include) > 0 && !MatchesAny(opts.Include, name) {
		return false
	}
	return !MatchesAny(opts.Exclude, name)
}

// DeclaredReference reports whether the options declare a table to be copied whole to every shard.
func DeclaredReference(opts tenant.ReplicationOptions, name tenant.TableName) bool {
	return MatchesAny(opts.Reference, name)
}

// RealmFixed reports whether the owner asserts that a table's rows never change their realm.
func RealmFixed(opts tenant.ReplicationOptions, name tenant.TableName) bool {
	return MatchesAny(opts.RealmsNeverChange, name)
}

// WantedRealmKey is the column that the options name as a table's realm key, whether it exists or not, and whether it was
// named for that very table. A name counts before a pattern, and of several patterns the longest, so that the answer is
// always the same.
func WantedRealmKey(opts tenant.ReplicationOptions, name tenant.TableName) (column string, explicit bool) {
	for _, exact := range [...]string{name.String(), name.Quoted()} {
		if column, ok := opts.TableKeys[exact]; ok {
			return column, true
		}
	}
	best := ""
	for table := range opts.TableKeys {
		if Matches(table, name) && (len(table) > len(best) || len(table) == len(best) && table < best) {
			best = table
		}
	}
	if best != "" {
		return opts.TableKeys[best], true
	}
	return opts.WithDefaults().RealmKey, false
}

// glob matches anyRun against any run of bytes.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, anyRun)
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for i := 0; i <= len(s); i++ {
		if glob(rest, s[i:]) {
			return true
		}
	}
	return false
}
