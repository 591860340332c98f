package otp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

const (
	alice  = "Alice@example.com"
	secret = "a secret of at least thirty-two bytes, for tests"
)

type plan struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Rows    int64  `json:"rows"`
	Options any    `json:"options,omitempty"`
}

// bundle is a service with all it needs, and what came out of it.
type bundle struct {
	*Service
	pool *pgxpool.Pool
	log  *lockedBuffer

	mu      sync.Mutex
	now     time.Time
	sent    []Message
	audited []AuditEntry
	fail    error // what the channel answers
	noAudit error // what the audit hook answers
}

func setup(t *testing.T) *bundle {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	conf, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal("the test's DSN does not parse")
	}
	if _, err := migrations.Up(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal("the pool cannot be made")
	}
	t.Cleanup(pool.Close)
	box, err := seal.New(tenant.Secret(secret))
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{pool: pool, log: &lockedBuffer{}, now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	b.Service = New(Config{
		Pool: pool, Seal: box, Logger: slog.New(slog.NewTextHandler(b.log, nil)),
		Channel: func(context.Context) (Channel, error) { return b, nil },
		Now: func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.now
		},
		Audit: func(_ context.Context, e AuditEntry) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.audited = append(b.audited, e)
			return b.noAudit
		},
	})
	return b
}

// Send makes the bundle its own channel.
func (b *bundle) Send(_ context.Context, m Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.sent = append(b.sent, m)
	return nil
}

func (b *bundle) String() string { return "test:" }

func (b *bundle) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

func (b *bundle) lastMail(t *testing.T) Message {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.sent) == 0 {
		t.Fatal("no mail was sent")
	}
	return b.sent[len(b.sent)-1]
}

func (b *bundle) lastAudit(t *testing.T) AuditEntry {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.audited) == 0 {
		t.Fatal("nothing was audited")
	}
	return b.audited[len(b.audited)-1]
}

var thePlan = plan{From: "postgres://hosted/acme", To: "https://own.example/acme", Rows: 9007199254740993}

func aRequest() Request {
	return Request{
		Action: "start-replication", Database: "acme", Plan: thePlan, PlanText: "Copy postgres://hosted/acme\ninto https://own.example/acme",
		Recipient: alice, RequestedBy: "operator", Address: "192.0.2.7",
	}
}

func (b *bundle) ask(t *testing.T, r Request) (Challenge, string) {
	t.Helper()
	c, err := b.Request(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if r.ChannelName == ChannelTOTP {
		return c, ""
	}
	return c, codeLine.FindStringSubmatch(b.lastMail(t).Text)[1]
}

// mailedCode is the code of the newest mail.
func (b *bundle) mailedCode(t *testing.T) string {
	t.Helper()
	m := codeLine.FindStringSubmatch(b.lastMail(t).Text)
	if m == nil {
		t.Fatal("the newest mail has no code")
	}
	return m[1]
}

func redemption(c Challenge, code string) Redemption {
	return Redemption{ID: c.ID, Code: code, Action: c.Action, Database: c.Database, Plan: thePlan, By: "operator", Address: "192.0.2.7"}
}

// wants checks an error and that it was audited as refused, for the same reason.
func (b *bundle) wants(t *testing.T, err error, want *tenant.Error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %s", err, want.Code)
	}
	if a := b.lastAudit(t); a.Outcome != OutcomeRefused || a.Detail["reason"] != want.Code {
		t.Errorf("audited as %+v, want refused: %s", a, want.Code)
	}
	if want.Kind == tenant.KindUnauthorised && tenant.AsError(err).Kind.ExitCode() != 4 {
		t.Errorf("exit code %d", tenant.AsError(err).Kind.ExitCode())
	}
}

// wrong is a code that is not this one.
func wrong(code string) string {
	b := []byte(code)
	b[0] = '0' + (b[0]-'0'+1)%10
	return string(b)
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
