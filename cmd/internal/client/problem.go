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
	"strconv"
	"strings"
	"syscall"
	"time"

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

// asksAgain are the server's own words for: the same request may succeed in a moment.
func asksAgain(code string) bool {
	switch code {
	case "stopping", "client-gone", "timed-out":
		return true
	}
	return false
}

// statusError reads an answer that is not a success. Tried again is what a proxy says while the server is away, and
// what the server itself asks to send again, by a code or Retry-After. Who only looks tries whatever is not available
// again.
func (c *Client) statusError(resp *http.Response, body []byte) error {
	var p api.Problem
	ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	known := (ct == "application/problem+json" || ct == "application/json") && json.Unmarshal(body, &p) == nil && (p.Code != "" || p.Detail != "" || p.Title != "")
	// A problem document without a code, as some proxies write them, is none of the server's.
	ours := known && p.Code != ""
	if ours {
		c.contact.heard(false)
	}
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
	after, asked := c.retryAfter(resp.Header)
	switch resp.StatusCode {
	case http.StatusConflict:
		if ours && e.Code == "request-in-progress" { // an earlier try of ours, whose answer was lost, is still at work
			return &retryable{err: e, after: after, busy: true}
		}
	case http.StatusTooManyRequests:
		if asked && after <= longestThrottle {
			return &retryable{err: e, after: after}
		}
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if !ours {
			// With 503 a proxy did not reach the server. Of the others one cannot know: with 504 the server has the request, and 502
			// is said also where it went in the middle of it.
			return &retryable{err: e, after: after, sent: resp.StatusCode != http.StatusServiceUnavailable}
		}
		if e.Kind == tenant.KindUnavailable && (asked || asksAgain(e.Code) || c.patience != nil) {
			return &retryable{err: e, after: after, sent: true}
		}
	}
	return e
}

// longestThrottle is the longest pause that a limit of the rate is obeyed for: longer ones are for a person.
const longestThrottle = 10 * time.Second

// retryAfter reads a Retry-After, in seconds or as a date (RFC 9110 §10.2.3).
func (c *Client) retryAfter(h http.Header) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(min(n, int(answerWithin/time.Second)+1)) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(c.now()), 0), true
	}
	return 0, false
}

const credentialsHint = "put a client of this installation into rehome.key (rehome init, rehome authorize --save), or set REHOME_SECRET together with REHOME_URL"

func notRehome(u *url.URL) *tenant.Error {
	return tenant.Errorf(tenant.KindNotFound, "no-installation", "check the URL: its base (without a database's name) is that of a rehome server", "%s does not answer as a Rehome installation", u)
}

// transportError explains why no answer came. Certificate errors and refused redirects do not go away by themselves, and
// neither does a host that nobody knows, unless it has answered before.
func (c *Client) transportError(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*tenant.Error](err); ok {
		return e
	}
	unreachable := func(hint, why string) *tenant.Error {
		return tenant.Errorf(tenant.KindUnavailable, "unreachable", hint, "%s cannot be reached: %s", c.base.Host, why)
	}
	if e := c.tlsError(err); e != nil {
		return e
	}
	hint := "check the URL, and that rehome server runs there"
	why, sent := "no answer", true
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		why, sent = "no such host", false
		if !dns.IsTemporary && !dns.IsTimeout && !c.contact.known() {
			return unreachable(hint, why)
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		why, sent = "connection refused", false
	case errors.Is(context.Cause(ctx), errNoAnswer):
		why = "no answer within " + plain(c.tryWithin())
		if c.patience == nil { // such a wait is no restart's
			return unreachable("what was asked for may still be done there: look with rehome audit before you ask for it once more", why)
		}
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer in time"
	case errors.Is(err, syscall.ECONNRESET):
		why = "connection reset"
	}
	return &retryable{err: unreachable(hint, why), sent: sent}
}

// tlsError is what TLS does not let through; nil if that is not why.
func (c *Client) tlsError(err error) error {
	var certErr *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var alert *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certErr), errors.As(err, &unknown), errors.As(err, &host):
		return tenant.Errorf(tenant.KindUnavailable, "bad-certificate", "let the server have a certificate for this name, from an authority that this machine trusts",
			"the TLS certificate of %s is not trusted", c.base.Host)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return tenant.Errorf(tenant.KindUnavailable, "no-tls", "check the URL: is it http://, or another port?", "%s does not speak TLS", c.base.Host)
	case errors.As(err, &alert) && (alert.Op == "remote error" || alert.Op == "local error") && !c.contact.known(): // what crypto/tls calls alerts
		return tenant.Errorf(tenant.KindUnavailable, "tls-refused", "look at the TLS settings of the server, or of the proxy before it", "TLS with %s fails: %v", c.base.Host, alert.Err)
	}
	return nil
}
