package otp

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/tenant"
)

// Kinds of messages.
const (
	KindCode           = "otp-code"
	KindDeletion       = "delete-confirmation"
	KindTOTPEnrol      = "totp-enrolment"
	KindTOTPEnrolled   = "totp-enrolled"
	KindTest           = "test"
	sendTimeout        = 20 * time.Second // a person waits at a prompt; a mail server that takes longer is down
	defaultSender      = "rehome"
	dataChallenge      = "challenge"
	webhookSecretStart = "whsec_" // Standard Webhooks, "Signature scheme"
)

// Message is a mail to one person. Text and HTML say the same.
type Message struct {
	To      string
	Subject string
	Text    string
	HTML    string
	Kind    string         // KindCode…; for a webhook that words its own mails
	Data    map[string]any // what the text is made of, code included
}

// Channel brings messages to people.
type Channel interface {
	Send(ctx context.Context, m Message) error
	String() string // scheme and host (or directory) only
}

// Options are what a channel's URL does not carry.
type Options struct {
	WebhookSecret string       // for https://: "whsec_…", see WebhookSecret
	Logger        *slog.Logger // for log:; default slog.Default()
	From          string       // sender, if the URL names none; default rehome@HOST
	HTTPClient    *http.Client // for https://; its CheckRedirect is not used: redirects are never followed
	TLSConfig     *tls.Config  // for smtp:// and smtps://; default: the system's roots
	Now           func() time.Time
}

// WebhookSecret is the installation's secret for signed webhooks, in the form that receivers are given.
func WebhookSecret(box *seal.Box) string {
	return webhookSecretStart + base64.StdEncoding.EncodeToString(box.Derive("otp-webhook"))
}

// ParseChannel makes the channel of a URL:
//
//	smtp://user:pass@host:port?from=ADDRESS&tls=opportunistic|required|none   (port 587; default opportunistic STARTTLS)
//	smtps://user:pass@host:port?from=ADDRESS                                   (port 465; TLS from the first byte)
//	https://host/path                                                          (POST, signed by Standard Webhooks)
//	file:///dir                                                                (one .eml a message)
//	log:                                                                       (the log, code included: for development)
//
// The error never contains the URL, which may carry a password.
func ParseChannel(rawURL string, opts Options) (Channel, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	u, err := url.Parse(strings.TrimSpace(rawURL))
	if err != nil { // its text quotes the URL
		return nil, badChannel("it is not a URL; a password's special characters must be percent-encoded")
	}
	switch u.Scheme {
	case "smtp", "smtps":
		return newSMTP(u, opts)
	case "https":
		return newWebhook(u, opts)
	case "file":
		return newFile(u, opts)
	case "log":
		return newLog(opts), nil
	case "http":
		return nil, badChannel("a webhook carries codes and must be https://")
	}
	return nil, badChannel("the scheme is not one of them")
}

func badChannel(why string) error {
	return tenant.Errorf(tenant.KindInvalid, "bad-email-channel",
		"give smtp://user:pass@host:port?from=ADDRESS, smtps://…, https://… (signed webhook), file:///dir or log:",
		"the e-mail channel's URL is unusable: %s", why)
}
