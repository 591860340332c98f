package otp

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/seal"
)

// How a code reaches a person.
const (
	ChannelEmail = "email" // a fresh code by mail
	ChannelTOTP  = "totp"  // the code that the person's authenticator app shows
)

// Config is what a Service needs. Pool and Seal are required, and Channel as soon as a mail is to be sent.
type Config struct {
	Pool    *pgxpool.Pool
	Seal    *seal.Box
	Channel func(context.Context) (Channel, error) // the channel in force; asked for every message
	Now     func() time.Time                       // default time.Now
	Logger  *slog.Logger                           // default: none
	Audit   func(context.Context, AuditEntry) error
	Issuer  string // the name that authenticator apps and mails show; default "Rehome"
}

// Outcomes of an audit entry, as rehome_control.audit has them.
const (
	OutcomeOK      = "ok"
	OutcomeRefused = "refused"
	OutcomeFailed  = "failed"
)

// AuditEntry is one request, success or failure. It never holds a code, a token or a seed.
type AuditEntry struct {
	At      time.Time
	Actor   string         // who asked
	Action  string         // otp.request, otp.redeem, otp.totp-enrol, otp.totp-confirm, otp.totp-remove, otp.delete-begin, otp.delete-confirm
	Object  string         // the database, or for TOTP the address
	Outcome string         // OutcomeOK, OutcomeRefused (wrong code, rate limit…), OutcomeFailed (mail, database)
	Address string         // where the request came from
	Detail  map[string]any // challenge, for (the action asked for), reason…
}

// Service makes challenges and redeems them. It is safe for concurrent use, and several servers may share the tables.
type Service struct{ cfg Config }

// New makes a Service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Issuer == "" {
		cfg.Issuer = "Rehome"
	}
	return &Service{cfg: cfg}
}

// Request asks a person to approve a plan.
type Request struct {
	Action      string // start-replication, cutover, rollback, redirect, delete-db…
	Database    string
	Plan        any    // what the code is bound to; marshalled to JSON
	PlanText    string // the same in words, for the mail
	Recipient   string // e-mail address of who decides
	ChannelName string // ChannelEmail (default) or ChannelTOTP
	RequestedBy string // who asks: API client or operator
	Address     string // from where
}

// Challenge is a pending request for a code.
type Challenge struct {
	ID        string
	Action    string
	Database  string
	SentTo    string // masked: "a***@example.com"
	Channel   string // ChannelEmail or ChannelTOTP
	PlanText  string
	ExpiresAt time.Time
}

// Redemption is a code with the plan that it shall approve.
type Redemption struct {
	ID       string // the challenge's
	Code     string // as typed
	Action   string
	Database string
	Plan     any // what is about to happen; must have the digest that was approved
	By       string
	Address  string
}

// Grant is the single-purpose permission that a code has bought.
type Grant struct {
	ID         string
	Challenge  string
	Action     string
	Database   string
	PlanDigest []byte
	ApprovedBy string // the recipient of the code
	Channel    string
	CreatedAt  time.Time
	ExpiresAt  time.Time
}

// Enrolment is what an authenticator app needs; it is shown once.
type Enrolment struct {
	Email     string
	SentTo    string // masked: where the code went that the confirmation needs
	URI       string // otpauth://, for a QR code; it carries the seed
	ExpiresAt time.Time
}

// execer runs a statement: a *pgxpool.Pool or a pgx.Tx.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}
