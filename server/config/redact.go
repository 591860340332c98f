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
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}
