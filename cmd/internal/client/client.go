// Package client speaks the HTTP API of an installation.
//
// # Invariants
//
//   - Credentials and bodies (which may carry connection strings and codes) go to the host that was asked for and to no
//     other: a redirect to another host or from https to http is an error that names the place.
//   - A POST carries an Idempotency-Key, which is the same in each of its tries; so a lost answer can be asked for again. A PUT,
//     whose code is used once, is not sent again once it may have arrived.
//   - A request is made again for a bounded time, not a number of times: a short one until the installation has answered at
//     all, long enough for a restart afterwards, and for minutes where somebody only looks at what goes on by itself.
//   - Every failure is a *tenant.Error; a problem document (RFC 9457) keeps its kind, code, hint and findings.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxAnswer bounds an answer that is read into memory; the longest, a verification, has some kilobytes a table.
	maxAnswer = 64 << 20
	// answerWithin is for one try: longer than any handler works, and than the longest wait for a command (30 s). A
	// preflight of a source with very many tables is the slowest.
	answerWithin = 5 * time.Minute
)

// Options make a Client.
type Options struct {
	Base      string        // the installation's base URL
	Bearer    tenant.Secret // "CLIENT_ID:SECRET" or an operator's secret; empty: none
	HTTP      *http.Client  // its Transport and Jar are used
	UserAgent string
	Note      func(format string, args ...any) // told of retries; may be nil
	// FirstPause is before the first retry; default 200 ms. Tests shorten it.
	FirstPause time.Duration
}

// Client speaks to one installation. It is safe for concurrent use.
type Client struct {
	base     *url.URL
	bearer   tenant.Secret
	agent    string
	http     *http.Client
	note     func(string, ...any)
	pause    time.Duration
	contact  *contact
	patience *Patience // nil: a request that does something, or that a person waits for

	// The clock: tests have their own.
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
}

// New makes a client. KindInvalid if the base URL is none.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.Base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
		return nil, tenant.Errorf(tenant.KindInvalid, "bad-url", "write it as https://host", "the installation's URL is not an http:// or https:// URL without credentials")
	}
	u.Path, u.RawQuery, u.Fragment = strings.TrimRight(u.Path, "/"), "", ""
	c := &Client{base: u, bearer: o.Bearer, agent: o.UserAgent, note: o.Note, pause: o.FirstPause, contact: &contact{}, now: time.Now, sleep: pause}
	if c.note == nil {
		c.note = func(string, ...any) {}
	}
	if c.pause <= 0 {
		c.pause = 200 * time.Millisecond
	}
	hc := http.Client{}
	if o.HTTP != nil {
		hc.Transport, hc.Jar = o.HTTP.Transport, o.HTTP.Jar
	}
	hc.CheckRedirect = checkRedirect
	c.http = &hc
	return c, nil
}

// Base is the installation's base URL.
func (c *Client) Base() string { return c.base.String() }

// checkRedirect lets requests go on at the same origin only.
func checkRedirect(next *http.Request, via []*http.Request) error {
	first := via[0].URL
	if !strings.EqualFold(next.URL.Host, first.Host) || next.URL.Scheme != first.Scheme {
		place := &url.URL{Scheme: next.URL.Scheme, Host: next.URL.Host}
		return tenant.Errorf(tenant.KindRefused, "cross-host-redirect",
			"credentials are not sent to another host; if it is the right one, name it in --url, --db or --to and hold a key for it",
			"%s redirects to %s", first.Host, place)
	}
	if len(via) >= 5 {
		return tenant.Errorf(tenant.KindUnavailable, "redirect-loop", "look at the proxy before the server", "%s redirects again and again", first.Host)
	}
	return nil
}

// call sends one request, again while that may help, and reads the JSON answer into out unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	key := ""
	if method == http.MethodPost { // net/http takes a request with a key for one that it may repeat by itself
		key = rand.Text()
	}
	again, arrived := c.attempts(), false
	for {
		err := c.try(ctx, method, path, query, body, key, out)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		r, ok := errors.AsType[*retryable](err)
		if !ok {
			if arrived && method == http.MethodDelete && out == nil && tenant.AsError(err).Kind == tenant.KindNotFound {
				return nil // it is gone: by the try whose answer was lost
			}
			return err
		}
		arrived = arrived || r.sent
		if r.sent && method == http.MethodPut {
			// A PUT carries a code that is used once, and keys count for POST only: its answer may be lost, not doubled.
			return r.err
		}
		if err := again.next(ctx, r, false); err != nil {
			return err
		}
	}
}

// try sends the request once. Its failure is a *retryable if the same request may succeed later.
func (c *Client) try(ctx context.Context, method, path string, query url.Values, body []byte, key string, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.tryWithin(), errNoAnswer)
	defer cancel()
	req, err := c.request(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.transportError(ctx, err)
	}
	if len(b) > maxAnswer {
		return tenant.Errorf(tenant.KindInternal, "answer-too-long", "", "the answer of %s is longer than %d MB", c.base.Host, maxAnswer>>20)
	}
	if resp.StatusCode/100 != 2 {
		return c.statusError(resp, b)
	}
	if out != nil && resp.StatusCode != http.StatusNoContent {
		if err := json.Unmarshal(b, out); err != nil {
			return notRehome(c.base)
		}
	}
	c.contact.heard(true)
	return nil
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Request, error) {
	target := strings.TrimRight(c.base.String(), "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, r)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if c.agent != "" {
		req.Header.Set("User-Agent", c.agent)
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer.Reveal())
	}
	return req, nil
}

// pathOf joins escaped segments: pathOf("/v1/shards", name).
func pathOf(prefix string, segments ...string) string {
	for _, s := range segments {
		prefix += "/" + url.PathEscape(s)
	}
	return prefix
}
