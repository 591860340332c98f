package redirect

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// What counts as a credential, and never goes to another host than the one that the client addressed: headers whose name
// says so, whoever invented them, and query parameters by the names under which standards and habit pass tokens. A body
// cannot be judged: it goes where its request goes.

// isSecretHeader judges a header by the words of its name: Authorization, Cookie, X-Api-Key, X-Acme-Auth-Token.
func isSecretHeader(name string) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' })
	for i, w := range words {
		switch w {
		case "authorization", "auth", "authentication", "cookie", "cookie2", "credential", "credentials", "jwt", "bearer", "csrf", "xsrf", "session", "sid", "otp":
			return true
		case "key": // an API's or an access key; not Sec-WebSocket-Key or Idempotency-Key
			if i > 0 && slices.Contains([]string{"api", "access", "app", "application", "subscription", "functions", "auth", "shared", "private"}, words[i-1]) {
				return true
			}
		}
		for _, end := range []string{"token", "secret", "password", "passwd", "apikey", "accesskey", "sessionid"} {
			if strings.HasSuffix(w, end) {
				return true
			}
		}
	}
	return false
}

// secretParameters are query parameters that carry credentials: RFC 6750 (2.3), OpenID Connect, signed URLs of the cloud
// providers, and habit. A bare "key", "code" or "page_token" is not among them: it names other things more often.
var secretParameters = []string{ //nolint:gochecknoglobals // a constant
	"access_token", "accesstoken", "id_token", "refresh_token", "auth_token", "authtoken", "token", "jwt", "bearer", "auth", "authorization",
	"api_key", "apikey", "api-key", "x-api-key", "access_key", "password", "passwd", "pwd", "secret", "client_secret", "client_assertion",
	"session", "sessionid", "session_id", "session_token", "sid", "otp", "signature", "sig",
	"x-amz-signature", "x-amz-security-token", "x-amz-credential", "x-goog-signature", "x-goog-credential",
}

// withoutSecrets takes credentials out of a query. What stays is byte for byte as the client wrote it.
func withoutSecrets(rawQuery string) string {
	if rawQuery == "" {
		return ""
	}
	kept := make([]string, 0, strings.Count(rawQuery, "&")+1)
	for part := range strings.SplitSeq(rawQuery, "&") {
		raw, _, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(raw)
		if err != nil {
			name = raw
		}
		// Some servers divide by ; too, and a secret could hide behind one.
		if slices.ContainsFunc(strings.FieldsFunc(part, func(r rune) bool { return r == ';' }), isSecretPair) || slices.Contains(secretParameters, strings.ToLower(name)) {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&")
}

func isSecretPair(pair string) bool {
	raw, _, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(raw)
	if err != nil {
		name = raw
	}
	return slices.Contains(secretParameters, strings.ToLower(name))
}

// dropSecrets takes credentials out of a request's headers. Of Referer the origin stays: its query may hold some.
func dropSecrets(h http.Header) {
	for name := range h {
		if isSecretHeader(name) {
			delete(h, name)
		}
	}
	if ref := h.Get("Referer"); ref != "" {
		h.Del("Referer")
		if u, err := url.Parse(ref); err == nil && u.Host != "" {
			h.Set("Referer", u.Scheme+"://"+u.Host+"/")
		}
	}
}

// isSecretProtocol finds WebSocket subprotocols that carry a token, for want of headers in browsers.
func isSecretProtocol(p string) bool {
	p = strings.ToLower(p)
	for _, w := range []string{"bearer", "auth", "token", "jwt", "apikey", "api-key", "secret"} {
		if strings.Contains(p, w) {
			return true
		}
	}
	return strings.HasPrefix(p, "eyj") // a JWT by itself: {" in base64
}
