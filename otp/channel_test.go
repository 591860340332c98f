package otp

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/tenant"
)

func aMessage(t *testing.T) Message {
	t.Helper()
	m, err := codeMessage("Rehome", aRequest(), "ch_1", "4821-9937", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// mailServer is a real SMTP server that keeps what it gets.
type mailServer struct {
	mu         sync.Mutex
	from, to   string
	mail       Mail
	user, pass string
	encrypted  bool
	reject     string
}

type mailSession struct {
	s *mailServer
	c *smtp.Conn
}

func (s *mailServer) NewSession(c *smtp.Conn) (smtp.Session, error) { return &mailSession{s, c}, nil }

func (m *mailSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (m *mailSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, pass string) error {
		m.s.mu.Lock()
		defer m.s.mu.Unlock()
		m.s.user, m.s.pass = user, pass
		if pass != "p:w/1" {
			return &smtp.SMTPError{Code: 535, Message: "no such password: " + pass} // a server that quotes it
		}
		return nil
	}), nil
}
func (m *mailSession) Reset()        {}
func (m *mailSession) Logout() error { return nil }
func (m *mailSession) Mail(from string, _ *smtp.MailOptions) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.from = from
	return nil
}

func (m *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.reject != "" {
		return &smtp.SMTPError{Code: 550, Message: m.s.reject}
	}
	m.s.to = to
	return nil
}

func (m *mailSession) Data(r io.Reader) error {
	got, err := parseMail(r)
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.mail = got
	_, m.s.encrypted = m.c.TLSConnectionState()
	return err
}

func startMail(t *testing.T, conf *tls.Config, implicit bool) (*mailServer, string) {
	t.Helper()
	ms := &mailServer{}
	srv := smtp.NewServer(ms)
	srv.Domain, srv.TLSConfig, srv.AllowInsecureAuth = "localhost", conf, conf == nil
	srv.ErrorLog = discardLog{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if implicit {
		l = tls.NewListener(l, conf)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return ms, l.Addr().String()
}

type discardLog struct{}

func (discardLog) Printf(string, ...any) {}
func (discardLog) Println(...any)        {}

func TestSMTP(t *testing.T) {
	t.Parallel()
	https := httptest.NewTLSServer(nil) // lends its certificate for 127.0.0.1
	t.Cleanup(https.Close)
	transport, ok := https.Client().Transport.(*http.Transport)
	if !ok {
		t.Fatal("the test's client has another transport")
	}
	roots := transport.TLSClientConfig
	serverTLS := &tls.Config{Certificates: https.TLS.Certificates, MinVersion: tls.VersionTLS12}

	for _, c := range []struct {
		name, scheme, query string
		conf                *tls.Config
		implicit, encrypted bool
		user                string
	}{
		{name: "plain", scheme: "smtp", query: "from=codes@own.example"},
		{name: "STARTTLS where offered", scheme: "smtp", query: "from=codes@own.example", conf: serverTLS, encrypted: true, user: "u%40x:p%3Aw%2F1@"},
		{name: "STARTTLS forced", scheme: "smtp", query: "from=codes@own.example&tls=required", conf: serverTLS, encrypted: true},
		{name: "no TLS though offered", scheme: "smtp", query: "from=codes@own.example&tls=none", conf: serverTLS},
		{name: "implicit TLS", scheme: "smtps", query: "from=codes@own.example", conf: serverTLS, implicit: true, encrypted: true, user: "u%40x:p%3Aw%2F1@"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ms, addr := startMail(t, c.conf, c.implicit)
			ch, err := ParseChannel(c.scheme+"://"+c.user+addr+"?"+c.query, Options{TLSConfig: roots})
			if err != nil {
				t.Fatal(err)
			}
			if ch.String() != c.scheme+"://"+addr {
				t.Errorf("it is called %s", ch)
			}
			if err := ch.Send(t.Context(), aMessage(t)); err != nil {
				t.Fatal(err)
			}
			ms.mu.Lock()
			defer ms.mu.Unlock()
			if ms.from != "codes@own.example" || ms.to != alice || ms.encrypted != c.encrypted {
				t.Errorf("%+v", ms)
			}
			if ms.mail.Code != "4821-9937" || ms.mail.Kind != KindCode || ms.mail.Challenge != "ch_1" || ms.mail.Subject != "Rehome: code for start-replication of acme" {
				t.Errorf("mail %+v", ms.mail)
			}
			if c.user != "" && (ms.user != "u@x" || ms.pass != "p:w/1") {
				t.Errorf("logged in as %s", ms.user)
			}
		})
	}
}

func TestSMTPErrorsKeepThePassword(t *testing.T) {
	t.Parallel()
	_, addr := startMail(t, nil, false)
	ch, err := ParseChannel("smtp://user:h4rdt0guess@"+addr+"?tls=none&from=a@b.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = ch.Send(t.Context(), aMessage(t))
	if te := tenant.AsError(err); err == nil || te.Code != "mail-not-sent" || te.Hint == "" {
		t.Fatalf("%v", err)
	}
	if strings.Contains(err.Error(), "h4rdt0guess") || strings.Contains(err.Error(), "4821") {
		t.Error(err)
	}
	_, addr = startMail(t, nil, false)
	ch, err = ParseChannel("smtp://"+addr+"?tls=required&from=a@b.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Send(t.Context(), aMessage(t)); err == nil {
		t.Error("sent without TLS though it was required")
	}
	ms, addr := startMail(t, nil, false)
	ms.reject = "no such mailbox"
	ch, err = ParseChannel("smtp://"+addr+"?from=a@b.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Send(t.Context(), aMessage(t)); err == nil || !strings.Contains(err.Error(), "no such mailbox") {
		t.Errorf("%v", err)
	}
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	box, err := seal.New(secret)
	if err != nil {
		t.Fatal(err)
	}
	key := WebhookSecret(box)
	verifier, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		t.Fatal(err)
	}
	var calls, elsewhere atomic.Int64
	var ids sync.Map
	var body string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /hook", func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body) // a short body fails the signature
		if err := verifier.Verify(raw, r.Header); err != nil {
			t.Errorf("signature: %v", err)
		}
		ids.Store(r.Header.Get("webhook-id"), true)
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway) // tried again
			return
		}
		body = string(raw)
	})
	mux.HandleFunc("/gone", func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); w.WriteHeader(http.StatusGone) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	srv := httptest.NewTLSServer(mux)
	t.Cleanup(srv.Close)
	open := func(path string) Channel {
		t.Helper()
		ch, err := ParseChannel(srv.URL+path, Options{WebhookSecret: key, HTTPClient: srv.Client()})
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	ch := open("/hook?token=sesame")
	if ch.String() != srv.URL {
		t.Errorf("it is called %s", ch)
	}
	if err := ch.Send(t.Context(), aMessage(t)); err != nil {
		t.Fatal(err)
	}
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if calls.Load() != 2 || n != 1 {
		t.Errorf("%d calls with %d ids", calls.Load(), n)
	}
	for _, want := range []string{`"type":"rehome.otp-code"`, `"code":"4821-9937"`, `"to":"` + alice + `"`, `"challenge":"ch_1"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	calls.Store(0)
	if err := open("/gone?token=sesame").Send(t.Context(), aMessage(t)); err == nil || strings.Contains(err.Error(), "sesame") || calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
	if err := open("/moved").Send(t.Context(), aMessage(t)); err == nil || elsewhere.Load() != 0 {
		t.Errorf("a code followed a redirect: %v", err)
	}
	srv.Close()
	if err := open("/hook?token=sesame").Send(t.Context(), aMessage(t)); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("%v", err)
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "mail box")
	if mails, err := ReadMailbox(dir); err != nil || len(mails) != 0 {
		t.Fatalf("%v, %v", mails, err)
	}
	ch, err := ParseChannel("file://"+strings.ReplaceAll(dir, " ", "%20"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := aMessage(t)
	m.Subject = "Größe\r\nBcc: evil@example.com" // no header of its own
	for range 3 {
		if err := ch.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	mails, err := ReadMailbox(dir)
	if err != nil || len(mails) != 3 {
		t.Fatalf("%d mails, %v", len(mails), err)
	}
	got := mails[0]
	if got.Code != "4821-9937" || got.To != alice || got.Challenge != "ch_1" || got.Subject != "Größe Bcc: evil@example.com" || got.Text != strings.ReplaceAll(m.Text, "\n", "\r\n") {
		t.Errorf("%+v", got)
	}
	info, err := os.Stat(got.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	var buf lockedBuffer
	ch, err := ParseChannel("log:", Options{Logger: slog.New(slog.NewTextHandler(&buf, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Send(t.Context(), aMessage(t)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(buf.String(), "4821-9937") || !strings.Contains(buf.String(), "level=WARN") || !strings.Contains(buf.String(), "development only") {
		t.Error(buf.String())
	}
}

func TestChannelURLs(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "smtp://", "smtp://u:s3cret@h:port", "smtp://u:s3cret@h?tls=maybe", "smtp://u:s3cret@h?from=nobody", "http://u:s3cret@h/hook", "https://u:s3cret@h/hook",
		"file://relative", "ftp://u:s3cret@h", "smtp://u:s3c%ret@h",
	} {
		_, err := ParseChannel(bad, Options{})
		if te := tenant.AsError(err); err == nil || te.Code != "bad-email-channel" || strings.Contains(err.Error()+te.Hint, "s3c") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if ch, err := ParseChannel("smtps://u:s3cret@mail.example", Options{}); err != nil || ch.String() != "smtps://mail.example:465" {
		t.Errorf("%v, %v", ch, err)
	}
}

// A name in a plan cannot pass for a line of ours.
func TestMailIsNotForged(t *testing.T) {
	t.Parallel()
	r := aRequest()
	r.PlanText = "Copy\nCode: 0000-0000\n<script>alert(1)</script>\u202e"
	r.RequestedBy = "x\nCode: 1111-1111"
	m, err := codeMessage("Rehome", r, "ch_1", "4821-9937", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := codeLine.FindAllString(m.Text, -1); len(got) != 1 || !strings.Contains(got[0], "4821-9937") {
		t.Errorf("%q in %s", got, m.Text)
	}
	if strings.Contains(m.HTML, "<script>") || strings.Contains(m.Text, "\u202e") {
		t.Error(m.HTML)
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"alice@example.com": "a***@example.com", "ü@x": "ü***@x", "nobody": "***", "@x": "***"} {
		if got := Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
}
