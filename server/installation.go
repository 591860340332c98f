package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	settingEmailChannel = "email_channel"
	purposeEmailChannel = "email-channel"
	// mailTimeout bounds the test message: a person waits for it.
	mailTimeout = 25 * time.Second
)

type installationOutput struct{ Body api.Installation }

type emailChannelInput struct{ Body api.EmailChannelRequest }

type emailChannelOutput struct{ Body api.EmailChannel }

func (s *Server) getInstallation(ctx context.Context, _ *struct{}) (*installationOutput, error) {
	var admin string
	if err := s.pool.QueryRow(ctx, `SELECT admin_email FROM rehome_control.installations`).Scan(&admin); err != nil {
		return nil, fmt.Errorf("read the installation: %w", err)
	}
	out := &installationOutput{Body: api.Installation{
		ID: s.installation.ID, BaseURL: s.installation.BaseURL, Version: s.cfg.Version,
		PublicKey: base64.StdEncoding.EncodeToString(s.installation.PublicKey), NATS: s.news.Describe(), NATSUp: s.news.Up(),
	}}
	if requestOf(ctx).principal.unbound() {
		out.Body.AdminEmail = admin
		ch, err := s.channel(ctx)
		if err != nil {
			return nil, err
		}
		out.Body.EmailChannel = ch.String()
	}
	return out, nil
}

// channel is the e-mail channel in force: the one that was set, else the settings'.
func (s *Server) channel(ctx context.Context) (otp.Channel, error) {
	var sealed []byte
	err := s.pool.QueryRow(ctx, `SELECT value_sealed FROM rehome_control.settings WHERE name = $1`, settingEmailChannel).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.parseChannel(s.cfg.EmailURL.Reveal())
	}
	if err != nil {
		return nil, fmt.Errorf("read the e-mail channel: %w", err)
	}
	raw, err := s.box.Open(purposeEmailChannel, sealed)
	if err != nil {
		return nil, fmt.Errorf("open the e-mail channel: %w", err)
	}
	return s.parseChannel(raw)
}

func (s *Server) parseChannel(raw string) (otp.Channel, error) {
	return otp.ParseChannel(raw, otp.Options{WebhookSecret: otp.WebhookSecret(s.box), Logger: s.log, Now: s.cfg.Now})
}

// setEmailChannel stores a channel after a test message has gone through it.
func (s *Server) setEmailChannel(ctx context.Context, in *emailChannelInput) (*emailChannelOutput, error) {
	ch, err := s.parseChannel(in.Body.URL)
	if err != nil {
		return nil, err
	}
	about(ctx, ch.String())
	out := &emailChannelOutput{Body: api.EmailChannel{Channel: ch.String()}}
	if to := in.Body.TestTo; to != "" {
		if err := checkEmail(to); err != nil {
			return nil, err
		}
		m, err := otp.TestMessage(to, s.installation.BaseURL)
		if err != nil {
			return nil, err
		}
		sendCtx, cancel := context.WithTimeout(ctx, mailTimeout)
		defer cancel()
		if err := ch.Send(sendCtx, m); err != nil {
			te := &tenant.Error{Kind: tenant.KindUnavailable, Code: "test-mail-failed", Message: "the test message could not be sent through " + ch.String(), Hint: "check the channel's URL; nothing was changed", Err: err}
			if known, ok := errors.AsType[*tenant.Error](err); ok {
				te.Message, te.Hint = known.Message, known.Hint
			}
			return nil, te
		}
		out.Body.TestedTo = to
		note(ctx, "tested_to", to)
	}
	if _, err := s.pool.Exec(ctx, `INSERT INTO rehome_control.settings (name, value_sealed, updated_at) VALUES ($1,$2,$3)
		ON CONFLICT (name) DO UPDATE SET value_sealed = excluded.value_sealed, updated_at = excluded.updated_at`,
		settingEmailChannel, s.box.Seal(purposeEmailChannel, in.Body.URL), s.cfg.Now()); err != nil {
		return nil, fmt.Errorf("store the e-mail channel: %w", err)
	}
	if u, err := url.Parse(in.Body.URL); err == nil && u.Scheme == "https" {
		out.Body.WebhookSecret = otp.WebhookSecret(s.box)
	}
	return out, nil
}
