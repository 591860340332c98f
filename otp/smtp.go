package otp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/wneessen/go-mail"

	"github.com/rehomedb/rehome/tenant"
)

const (
	submissionPort  = 587 // RFC 6409
	submissionsPort = 465 // RFC 8314 §3.3
)

type smtpChannel struct {
	scheme, host string
	port         int
	user, pass   string
	from         string
	opts         []mail.Option
}

func newSMTP(u *url.URL, opts Options) (Channel, error) {
	host := u.Hostname()
	if host == "" {
		return nil, badChannel("it names no mail server")
	}
	c := &smtpChannel{scheme: u.Scheme, host: host, port: submissionPort, user: u.User.Username()}
	c.pass, _ = u.User.Password()
	if u.Scheme == "smtps" {
		c.port = submissionsPort
	}
	if p := u.Port(); p != "" {
		port, err := strconv.Atoi(p)
		if err != nil {
			return nil, badChannel("its port is not a number")
		}
		c.port = port
	}
	q := u.Query()
	c.from = cmp.Or(q.Get("from"), opts.From, defaultSender+"@"+host)
	if err := mail.NewMsg().From(c.from); err != nil {
		return nil, badChannel("its sender (from=) is not an e-mail address")
	}
	c.opts = []mail.Option{mail.WithPort(c.port), mail.WithTimeout(sendTimeout)}
	switch policy := q.Get("tls"); {
	case u.Scheme == "smtps":
		c.opts = append(c.opts, mail.WithSSL())
	case policy == "" || policy == "opportunistic":
		c.opts = append(c.opts, mail.WithTLSPolicy(mail.TLSOpportunistic))
	case policy == "required":
		c.opts = append(c.opts, mail.WithTLSPolicy(mail.TLSMandatory))
	case policy == "none":
		c.opts = append(c.opts, mail.WithTLSPolicy(mail.NoTLS))
	default:
		return nil, badChannel("tls= takes opportunistic, required or none")
	}
	if opts.TLSConfig != nil {
		conf := opts.TLSConfig.Clone()
		conf.ServerName = cmp.Or(conf.ServerName, host)
		c.opts = append(c.opts, mail.WithTLSConfig(conf))
	}
	if c.user != "" { // the strongest mechanism that both know; none that shows the password without TLS
		c.opts = append(c.opts, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(c.user), mail.WithPassword(c.pass))
	}
	return c, nil
}

// String implements Channel.
func (c *smtpChannel) String() string {
	return c.scheme + "://" + net.JoinHostPort(c.host, strconv.Itoa(c.port))
}

// Send implements Channel.
func (c *smtpChannel) Send(ctx context.Context, m Message) error {
	msg, err := mailOf(m, c.from)
	if err != nil {
		return err
	}
	client, err := mail.NewClient(c.host, c.opts...)
	if err != nil {
		return c.failure(err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := client.DialAndSendWithContext(ctx, msg); err != nil {
		return c.failure(err)
	}
	return nil
}

// failure keeps a server's answer, which may quote what it was sent, free of the password.
func (c *smtpChannel) failure(err error) error {
	text := err.Error()
	if c.pass != "" {
		text = strings.ReplaceAll(text, c.pass, "[redacted]")
	}
	return undelivered(c, errors.New(text))
}

func undelivered(c Channel, err error) error {
	return &tenant.Error{
		Kind: tenant.KindUnavailable, Code: "mail-not-sent", Message: "the mail could not be sent through " + c.String(),
		Hint: "check the e-mail channel (rehome init-email-channel sends a test), then ask again", Err: err,
	}
}

// mailOf makes the MIME message: text, with HTML as the alternative.
func mailOf(m Message, from string) (*mail.Msg, error) {
	msg := mail.NewMsg()
	if err := msg.From(from); err != nil {
		return nil, fmt.Errorf("set the mail's sender: %w", err)
	}
	if err := msg.To(m.To); err != nil {
		return nil, fmt.Errorf("set the mail's recipient: %w", err)
	}
	msg.Subject(oneLine(m.Subject))
	msg.SetDate()
	msg.SetMessageID()
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no vacation answers
	msg.SetGenHeader(headerKind, m.Kind)
	if id, ok := m.Data[dataChallenge].(string); ok {
		msg.SetGenHeader(headerChallenge, id)
	}
	msg.SetBodyString(mail.TypeTextPlain, m.Text)
	if m.HTML != "" {
		msg.AddAlternativeString(mail.TypeTextHTML, m.HTML)
	}
	return msg, nil
}

func writeMail(w io.Writer, m Message, from string) error {
	msg, err := mailOf(m, from)
	if err != nil {
		return err
	}
	if _, err := msg.WriteTo(w); err != nil {
		return fmt.Errorf("write the mail: %w", err)
	}
	return nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
