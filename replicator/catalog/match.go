package catalog

import (
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// ownSchemas are Rehome's, and never part of what is replicated.
var ownSchemas = []string{"rehome", "rehome_control"}

// Matches reports whether a pattern of --include, --exclude, --reference or --realms-never-change names a table. A pattern is "schema.table", or
// "table" in schema public, with double quotes where a part needs them; * stands for any run of characters, and a lone *
// for every table.
func Matches(pattern string, name tenant.TableName) bool {
	raw := name.Schema + "." + name.Name
	if pattern == "*" || pattern == raw || pattern == name.String() || pattern == name.Quoted() {
		return true
	}
	if !strings.Contains(pattern, "*") {
		t, err := tenant.ParseTableName(pattern)
		return err == nil && t == name
	}
	if !strings.Contains(pattern, ".") {
		pattern = "public." + pattern
	}
	return glob(pattern, raw) || glob(pattern, name.String())
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
// named for that very table.
func WantedRealmKey(opts tenant.ReplicationOptions, name tenant.TableName) (column string, explicit bool) {
	for table, col := range opts.TableKeys {
		if Matches(table, name) {
			return col, true
		}
	}
	return opts.WithDefaults().RealmKey, false
}

// glob matches * against any run of bytes.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
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
