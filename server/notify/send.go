package notify

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/rehomedb/rehome/tenant"
)

// Networks that webhooks may be in.
const (
	// NetworksAny is the default: an operator's receivers are in the operator's network.
	NetworksAny = "any"
	// NetworksPublic refuses addresses of private networks, this machine's own included: for installations whose users are
	// strangers to their network.
	NetworksPublic = "public"
)

const (
	// DefaultTimeout of one try: the specification asks for 15 to 30 s.
	DefaultTimeout = 15 * time.Second
	// maxAnswer is read of an answer, so that the connection can be used again; the rest is cut off.
	maxAnswer = 64 << 10
	// shownAnswer is kept of an answer's body for people.
	shownAnswer = 300
	// secretBytes: the specification asks for 24 to 64.
	secretBytes = 32
	// secretPrefix marks a secret of Standard Webhooks.
	secretPrefix = "whsec_"
	// contentType of a CloudEvent in structured mode (CloudEvents HTTP protocol binding §3.2).
	contentType = "application/cloudevents+json; charset=utf-8"
	// maxURL bounds a webhook's address.
	maxURL = 2000
)

func newSecret() string {
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return secretPrefix + base64.StdEncoding.EncodeToString(raw)
}

// sender posts signed events. It never follows a redirect.
type sender struct {
	client  *http.Client
	agent   string
	timeout time.Duration
	now     func() time.Time
}

func newSender(cfg Config) *sender {
	dialer := &net.Dialer{Timeout: cfg.Options.Timeout, Control: func(_, address string, _ syscall.RawConn) error {
		return checkAddress(address, cfg.Networks)
	}}
	t := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: cfg.Options.TLS, ForceAttemptHTTP2: true,
		MaxIdleConns: 50, MaxIdleConnsPerHost: webhookWorkers, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: cfg.Options.Timeout, MaxResponseHeaderBytes: maxAnswer,
	}
	if cfg.Networks != NetworksPublic { // behind a proxy the address that is dialled says nothing
		t.Proxy = http.ProxyFromEnvironment
	}
	return &sender{
		agent: "rehome/" + cfg.Version, timeout: cfg.Options.Timeout, now: cfg.Now,
		client: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
}

// errAddress refuses an address, whatever name it goes by.
var errAddress = errors.New("the address is in a network that webhooks may not reach")

// sharedAddresses are the providers' (RFC 6598), private too.
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

// checkAddress looks at the address that is about to be dialled, after names were resolved. Link-local ones, where clouds
// keep their machines' credentials, and those of no host are refused always.
func checkAddress(address, networks string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errAddress
	}
	ip := ap.Addr().Unmap()
	switch {
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified():
		return errAddress
	case networks == NetworksPublic && (ip.IsPrivate() || ip.IsLoopback() || sharedAddresses.Contains(ip)):
		return errAddress
	}
	return nil
}

// checkURL refuses addresses that events must not go to.
func checkURL(raw, networks string, insecure bool) (*url.URL, error) {
	bad := func(hint, format string, args ...any) (*url.URL, error) {
		return nil, tenant.Errorf(tenant.KindInvalid, "bad-webhook-url", hint, format, args...)
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.Host == "" || len(raw) > maxURL { // the parser's error quotes it
		return bad("write it as https://host/path", "the webhook's URL is not one")
	}
	if u.User != nil || u.Fragment != "" {
		return bad("leave out credentials and #…; the signature proves who sends", "the webhook's URL has credentials or a fragment")
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return bad("write it as https://host/path", "the webhook's URL is not https://")
	}
	if u.Scheme == "http" && !insecure && !loopback(u.Hostname()) {
		return bad("use https://, or --insecure if the way there is safe by other means", "events would go to %s unencrypted", u.Hostname())
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && checkAddress(netip.AddrPortFrom(ip, 1).String(), networks) != nil {
		return bad("name a receiver in another network (setting webhook_networks)", "webhooks may not go to %s", u.Hostname())
	}
	return u, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || (err == nil && ip.IsLoopback())
}

// label shows where a webhook goes: the rest of such addresses is often what lets one send there.
func label(u *url.URL) string {
	first, rest, more := strings.Cut(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	l := u.Scheme + "://" + u.Host + "/" + first
	if (more && rest != "") || u.RawQuery != "" {
		return strings.TrimSuffix(l, "/") + "/…"
	}
	return l
}

// attempt is what became of one request.
type attempt struct {
	status int    // 0: no answer
	answer string // the beginning of its body, printable
	err    string // "": delivered
	after  time.Duration
	took   time.Duration
	// cut: this server is stopping; nothing is known of the receiver.
	cut bool
}

// gone reports that the receiver wants no more ("Deliverability and reliability": 410 disables the endpoint).
func (a attempt) gone() bool { return a.status == http.StatusGone }

func (a attempt) ok() bool { return a.err == "" }

// send posts a body once. Each try is signed anew, with its own time, by every secret that counts.
func (s *sender) send(ctx context.Context, target, id string, body []byte, secrets []string) attempt {
	began := time.Now()
	rctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	a := s.post(rctx, target, id, body, secrets)
	a.took = time.Since(began)
	if a.status == 0 && ctx.Err() != nil {
		a.cut = true
	}
	return a
}

func (s *sender) post(ctx context.Context, target, id string, body []byte, secrets []string) attempt {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return attempt{err: "the URL cannot be used"} // the error quotes it
	}
	at := s.now()
	signatures := make([]string, 0, len(secrets))
	for _, secret := range secrets {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return attempt{err: "the secret cannot be used"}
		}
		signature, err := w.Sign(id, at, body)
		if err != nil {
			return attempt{err: "the event cannot be signed"}
		}
		signatures = append(signatures, signature)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", s.agent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	resp, err := s.client.Do(req)
	if err != nil {
		return attempt{err: explain(err)}
	}
	defer func() { _ = resp.Body.Close() }()
	shown, _ := io.ReadAll(io.LimitReader(resp.Body, shownAnswer)) // an answer that breaks off has a status all the same
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	a := attempt{status: resp.StatusCode, answer: printable(shown)}
	switch resp.StatusCode / 100 {
	case 2:
		return a
	case 3:
		a.err = fmt.Sprintf("the receiver answered %d: redirects are not followed, name the final URL", resp.StatusCode)
	default:
		a.err = fmt.Sprintf("the receiver answered %d", resp.StatusCode)
	}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 { // RFC 9110 §10.2.3
		a.after = time.Duration(min(n, int(webhookPolicy().Max.Seconds()))) * time.Second
	}
	return a
}

// explain says what kept a request from an answer. It never quotes the URL, whose path may be a secret.
func explain(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var te interface{ Timeout() bool }
	switch {
	case errors.Is(err, errAddress):
		return errAddress.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &te) && te.Timeout():
		return "no answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &dns):
		return "the host's name cannot be resolved"
	case errors.As(err, &op) && op.Op == "dial":
		return "no connection: " + op.Err.Error()
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	return printable([]byte(err.Error()))
}

// printable is others' text for a record and a terminal.
func printable(b []byte) string {
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), " "))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > shownAnswer {
		s = strings.ToValidUTF8(s[:shownAnswer], "")
	}
	return s
}
