package catalog

import (
	"regexp"
	"strings"
)

// PatternRegexp is a pattern of --include or --exclude as the body of a regular expression over schema.name, for
// Postgres' ~ operator as well as for Go: * stands for any run of characters, the rest for itself.
func PatternRegexp(pattern string) string {
	parts := strings.Split(pattern, "*")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return strings.Join(parts, ".*")
}
