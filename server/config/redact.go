package config

import "net/url"

// redactURL keeps scheme, user name, host and path, which tell a person where something goes, and drops what may be
// secret: password and query. What is no URL is hidden whole.
func redactURL(raw string) string {
	if raw == "" {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" {
		return show(raw)
	}
	u.RawQuery, u.Fragment = "", ""
	if u.Scheme == "https" || u.Scheme == "http" {
		// A webhook's path is often its secret.
		u.Path, u.RawPath = "", ""
	}
	if _, both := u.User.Password(); u.User != nil && both {
		u.User = url.User(u.User.Username())
	} else if u.Scheme != "smtp" && u.Scheme != "smtps" {
		u.User = nil // alone it is a token, to NATS for one
	}
	return u.String()
}
