package redirect

import (
	"strings"
	"unicode"
)

const (
	maxClient     = 64 // bytes of a client's name
	maxVersion    = 32 // bytes of its version
	unknownClient = "unknown"
	otherClient   = "other"
)

// product names what a User-Agent (RFC 9110, 10.1.5) says who it is, as a person would, and its version: "curl" and
// "8.5.0", "dexie-cloud" and "4.0.1". Browsers all begin with Mozilla and name others for compatibility, so the telling
// ones are looked for first; of theirs the major version is enough.
func product(agent string) (name, version string) {
	var products []string
	depth := 0
	for _, token := range strings.FieldsFunc(agent, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		inComment := depth > 0 || strings.HasPrefix(token, "(")
		depth = max(depth+strings.Count(token, "(")-strings.Count(token, ")"), 0)
		if !inComment {
			products = append(products, token)
		}
	}
	if len(products) == 0 {
		return unknownClient, ""
	}
	best := products[0]
	browser := strings.HasPrefix(best, "Mozilla/")
	if browser {
	search:
		for _, name := range []string{"Edg/", "OPR/", "SamsungBrowser/", "Firefox/", "FxiOS/", "CriOS/", "Chrome/", "Safari/"} {
			for _, p := range products {
				if strings.HasPrefix(p, name) {
					best = p
					break search
				}
			}
		}
	}
	name, version, _ = strings.Cut(best, "/")
	if browser {
		version, _, _ = strings.Cut(version, ".")
	}
	if name = cut(name, maxClient); name == "" {
		name = unknownClient
	}
	return name, cut(version, maxVersion)
}

// application takes an application_name of Postgres apart: "billing/1.4", "pgAdmin 4 - DB:acme", "sidekiq 6.5.1 [2 of 5]".
// Without a version in it the whole is the name.
func application(text string) (name, version string) {
	fields := strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
	for i, f := range fields {
		if before, after, ok := strings.Cut(f, "/"); ok && before != "" && isVersion(after) {
			return cut(strings.Join(append(fields[:i:i], before), " "), maxClient), cut(after, maxVersion)
		}
		if i > 0 && isVersion(f) {
			return cut(strings.Join(fields[:i], " "), maxClient), cut(f, maxVersion)
		}
	}
	if name = cut(strings.Join(fields, " "), maxClient); name == "" {
		name = unknownClient
	}
	return name, ""
}

// isVersion: a number, dots and what follows, with or without a leading v.
func isVersion(s string) bool {
	s = strings.TrimPrefix(s, "v")
	return s != "" && s[0] >= '0' && s[0] <= '9'
}

func cut(s string, most int) string {
	s = strings.ToValidUTF8(s, "")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
