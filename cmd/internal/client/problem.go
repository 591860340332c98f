package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/cenkalti/backoff/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// ErrorOf turns a problem document into the error that the server meant.
func ErrorOf(p api.Problem) *tenant.Error {
	kind := tenant.KindOf(p.Kind)
	if p.Kind == "" {
		kind = kindOfStatus(p.Status)
	}
	message := p.Detail
	if message == "" {
		message = p.Title
	}
	hint := p.Hint
	if kind == tenant.KindInternal && p.Request != "" {
		hint = strings.TrimSpace(hint + " (request " + p.Request + ")")
	}
	return &tenant.Error{Kind: kind, Code: p.Code, Message: message, Hint: hint, Findings: p.Findings}
}

// ProblemOf is an error as the API would show it.
func ProblemOf(err error) api.Problem {
	e := tenant.AsError(err)
	return api.Problem{
		Type: "about:blank", Title: http.StatusText(e.Kind.HTTPStatus()), Status: e.Kind.HTTPStatus(),
		Detail: e.Error(), Code: e.Code, Kind: e.Kind.String(), Hint: e.Hint, Findings: e.Findings,
	}
}

func kindOfStatus(status int) tenant.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return tenant.KindInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return tenant.KindUnauthorised
	case http.StatusNotFound, http.StatusGone:
		return tenant.KindNotFound
	case http.StatusConflict:
		return tenant.KindConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return tenant.KindUnavailable
	}
	return tenant.KindInternal
}

// statusError reads an answer that is not a success. Tried again is what a proxy says while the server is away, and
// what the server itself asks to send again (Retry-After).
func (c *Client) statusError(resp *http.Response, body []byte) error {
	var p api.Problem
	ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	known := (ct == "application/problem+json" || ct == "application/json") && json.Unmarshal(body, &p) == nil && (p.Code != "" || p.Detail != "" || p.Title != "")
	var e *tenant.Error
	switch {
	case known:
		if p.Status == 0 {
			p.Status = resp.StatusCode
		}
		e = ErrorOf(p)
		if e.Kind == tenant.KindUnauthorised && e.Hint == "" && resp.StatusCode == http.StatusUnauthorized {
			e.Hint = credentialsHint
		}
	case resp.StatusCode == http.StatusUnauthorized:
		e = tenant.Errorf(tenant.KindUnauthorised, "unauthorised", credentialsHint, "%s does not accept the credentials", c.base.Host)
	case resp.StatusCode == http.StatusNotFound:
		e = notRehome(c.base)
	default:
		e = tenant.Errorf(kindOfStatus(resp.StatusCode), "http-"+http.StatusText(resp.StatusCode), "look at the server's log",
			"%s answered %d %s", c.base.Host, resp.StatusCode, http.StatusText(resp.StatusCode))
		e.Code = "unexpected-status"
	}
	if e.Code == "request-in-progress" { // an earlier try of ours, whose answer was lost, is still at work
		return &retryable{err: e}
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if n, ok := retryAfter(resp.Header); ok {
			return &retryable{err: e, after: backoff.RetryAfter(n)}
		}
		if !known && resp.StatusCode != http.StatusTooManyRequests {
			return &retryable{err: e}
		}
	}
	return backoff.Permanent(e)
}

const credentialsHint = "put a client of this installation into rehome.key (rehome init, rehome authorize --save), or set REHOME_SECRET together with REHOME_URL"

func notRehome(u *url.URL) *tenant.Error {
	return tenant.Errorf(tenant.KindNotFound, "no-installation", "check the URL: its base (without a database's name) is that of a rehome server", "%s does not answer as a Rehome installation", u)
}

// transportError explains why no answer came. Certificate errors and refused redirects do not go away by themselves.
func (c *Client) transportError(err error) error {
	if e, ok := errors.AsType[*tenant.Error](err); ok {
		return backoff.Permanent(e)
	}
	var certErr *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	if errors.As(err, &certErr) || errors.As(err, &unknown) || errors.As(err, &host) {
		return backoff.Permanent(tenant.Errorf(tenant.KindUnavailable, "bad-certificate", "let the server have a certificate for this name, from an authority that this machine trusts",
			"the TLS certificate of %s is not trusted", c.base.Host))
	}
	hint := "check the URL, and that rehome server runs there"
	why, sent := "no answer", true
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		why = "no such host"
		if !dns.IsTemporary && !dns.IsTimeout {
			return backoff.Permanent(tenant.Errorf(tenant.KindUnavailable, "unreachable", hint, "%s cannot be reached: %s", c.base.Host, why))
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		why, sent = "connection refused", false
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer in time"
	case errors.Is(err, syscall.ECONNRESET):
		why = "connection reset"
	}
	return &retryable{err: tenant.Errorf(tenant.KindUnavailable, "unreachable", hint, "%s cannot be reached: %s", c.base.Host, why), sent: sent}
}
