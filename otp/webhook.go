package otp

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
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// webhookTries: one hiccup of the receiver should not make a person start again; more would outlast their patience.
const webhookTries = 3

type webhookChannel struct {
	url    *url.URL
	signer *standardwebhooks.Webhook
	client *http.Client
	now    func() time.Time
}

// webhookBody is what a receiver gets (https://github.com/standard-webhooks/standard-webhooks, "Payload structure").
type webhookBody struct {
	Type      string      `json:"type"` // "rehome." and the message's kind
	Timestamp time.Time   `json:"timestamp"`
	Data      webhookMail `json:"data"`
}

type webhookMail struct {
	To      string         `json:"to"`
	Subject string         `json:"subject"`
	Text    string         `json:"text"`
	HTML    string         `json:"html"`
	Values  map[string]any `json:"values,omitempty"`
}

func newWebhook(u *url.URL, opts Options) (Channel, error) {
	if u.Hostname() == "" {
		return nil, badChannel("it names no host")
	}
	if opts.WebhookSecret == "" {
		return nil, badChannel("a webhook needs a secret to sign with")
	}
	signer, err := standardwebhooks.NewWebhook(opts.WebhookSecret)
	if err != nil {
		return nil, badChannel("the webhook's secret is not base64")
	}
	client := &http.Client{}
	if opts.HTTPClient != nil {
		*client = *opts.HTTPClient
	}
	// The body holds a code: it goes to the host that was named and to no other.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &webhookChannel{url: u, signer: signer, client: client, now: opts.Now}, nil
}

// String implements Channel.
func (c *webhookChannel) String() string { return "https://" + c.url.Host }

// Send implements Channel. All tries carry the same webhook-id, so that a receiver can drop a repeated one.
func (c *webhookChannel) Send(ctx context.Context, m Message) error {
	body, err := json.Marshal(webhookBody{
		Type: "rehome." + m.Kind, Timestamp: c.now().UTC(),
		Data: webhookMail{To: m.To, Subject: oneLine(m.Subject), Text: m.Text, HTML: m.HTML, Values: m.Data},
	})
	if err != nil {
		return fmt.Errorf("marshal the webhook's body: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	id := "msg_" + rand.Text()
	_, err = backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, c.post(ctx, id, body) }, backoff.WithMaxTries(webhookTries))
	if err != nil {
		if permanent, ok := errors.AsType[*backoff.PermanentError](err); ok {
			err = permanent.Err
		}
		return undelivered(c, err)
	}
	return nil
}

func (c *webhookChannel) post(ctx context.Context, id string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(errors.New("make the webhook's request"))
	}
	at := c.now()
	signature, err := c.signer.Sign(id, at, body)
	if err != nil {
		return backoff.Permanent(fmt.Errorf("sign the webhook: %w", err))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	resp, err := c.client.Do(req)
	if err != nil {
		// The error's text has the URL, whose path or query may be secret.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode/100 == 5, resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("the receiver answered %d", resp.StatusCode)
	}
	return backoff.Permanent(fmt.Errorf("the receiver answered %d", resp.StatusCode))
}
