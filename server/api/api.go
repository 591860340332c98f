// Package api holds the bodies of the HTTP API under /v1: what the server answers and the command line reads. It is
// plain data; the server's handlers turn it into OpenAPI.
//
//	GET    /v1/installation                              Installation
//	GET    /v1/doctor                                    Doctor
//	POST   /v1/doctor/fix                                Doctor                                     (with repairs)
//	POST   /v1/email-channel                             EmailChannelRequest -> EmailChannel       (sends a test mail)
//	GET    /v1/shards                                    []Shard
//	POST   /v1/shards                                    ShardRequest -> Shard
//	PATCH  /v1/shards/{name}                             ShardUpdate -> Shard
//	DELETE /v1/shards/{name}                             204
//	GET    /v1/databases                                 []Database
//	POST   /v1/databases                                 DatabaseRequest -> Database
//	POST   /v1/databases/adopt                           AdoptRequest -> Database
//	GET    /v1/databases/{name}                          Database
//	PATCH  /v1/databases/{name}                          DatabaseUpdate -> Database                (upstream, start/stop)
//	GET    /v1/databases/{name}/placement                tenant.Placement
//	GET    /v1/databases/{name}/realms?shard=&sort=      []Realm
//	GET    /v1/databases/{name}/stats                    Stats
//	GET    /v1/databases/{name}/stats/history?last=SECONDS   StatsHistory
//	POST   /v1/databases/{name}/delete                   DeleteRequest -> DeleteStatus             (challenge)
//	POST   /v1/databases/{name}/delete/confirm           DeleteConfirm -> DeleteStatus
//	GET    /v1/delete/{name}/{token}                     the confirmation link: an HTML page with a button (POSTs)
//	POST   /v1/databases/{name}/undelete                 Database
//	GET    /v1/databases/{name}/redirect                 Redirect
//	PUT    /v1/databases/{name}/redirect                 RedirectRequest -> Redirect               (challenge)
//	DELETE /v1/databases/{name}/redirect                 204
//	POST   /v1/challenges                                ChallengeRequest -> Challenge
//	POST   /v1/totp                                      TOTPEnrolRequest -> TOTPEnrolment
//	POST   /v1/totp/confirm                              TOTPConfirm -> 204
//	DELETE /v1/totp/{email}                              204
//	GET    /v1/clients                                   []Client
//	POST   /v1/clients                                   ClientRequest -> ClientCreated
//	DELETE /v1/clients/{id}                              204
//	POST   /v1/preflight                                 PlanRequest -> Preflight
//	GET    /v1/replications                              []Replication
//	POST   /v1/replications                              StartRequest -> 202 Replication           (challenge)
//	GET    /v1/replications/{id}                         Replication
//	GET    /v1/replications/{id}/progress                tenant.Progress
//	GET    /v1/replications/{id}/throttle                ThrottleStatus
//	PATCH  /v1/replications/{id}/throttle                ThrottleUpdate -> ThrottleStatus
//	GET    /v1/replications/{id}/events                  server-sent events: Event; Last-Event-ID resumes
//	POST   /v1/replications/{id}/pause|resume|cancel|complete   CommandRequest -> 202 Command       (complete with drop_fence or source_destroyed: challenge)
//	POST   /v1/replications/{id}/verify                  CommandRequest -> 202 Command
//	GET    /v1/replications/{id}/verifications/{vid}     tenant.Verification   ({vid} may be "latest")
//	POST   /v1/replications/{id}/cutover                 CutoverRequest -> 202 Command             (challenge, unless dry_run)
//	POST   /v1/replications/{id}/rollback                CutoverRequest -> 202 Command             (challenge)
//	GET    /v1/replications/{id}/certificate             tenant.Certificate
//	GET    /v1/commands/{id}?wait=SECONDS                Command                                   (long poll, at most 30 s)
//	GET    /v1/events?subject=&after=ID                  server-sent events: Event, of the installation
//	GET    /v1/webhooks                                  []Webhook
//	POST   /v1/webhooks                                  WebhookRequest -> WebhookSecret
//	GET    /v1/webhooks/{id}                             Webhook
//	PATCH  /v1/webhooks/{id}                             WebhookUpdate -> Webhook
//	DELETE /v1/webhooks/{id}                             204
//	POST   /v1/webhooks/{id}/test                        WebhookTest
//	POST   /v1/webhooks/{id}/rotate-secret               WebhookRotate -> WebhookSecret
//	GET    /v1/webhook-deliveries?webhook=&limit=        []WebhookDelivery                          (newest first)
//	POST   /v1/webhook-deliveries/{id}/redeliver         WebhookDelivery
//	GET    /v1/notifications                             []NotificationSettings
//	PUT    /v1/notifications/{email}                     NotificationUpdate -> NotificationSettings
//	GET    /v1/audit?limit=&before=                      []AuditEntry
//
// Authentication: "Authorization: Bearer CLIENT_ID:SECRET" or, for an installation's operator, "Bearer REHOME_SECRET".
// Errors: RFC 9457 problem documents (Problem).
package api

import (
	"encoding/json"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Problem is an RFC 9457 problem document with Rehome's stable code, kind and hint.
type Problem struct {
	Type     string           `json:"type,omitempty"`
	Title    string           `json:"title"`
	Status   int              `json:"status"`
	Detail   string           `json:"detail"`
	Code     string           `json:"code"`
	Kind     string           `json:"kind"` // tenant.Kind's name; gives the exit code
	Hint     string           `json:"hint,omitempty"`
	Findings []tenant.Finding `json:"findings,omitempty"`
	Request  string           `json:"request_id,omitempty"` // names the request in the server's log
}

// Installation describes the server that answers.
type Installation struct {
	ID           string `json:"id"`
	BaseURL      string `json:"base_url"`
	Version      string `json:"version"`
	PublicKey    string `json:"public_key"` // ed25519, base64
	AdminEmail   string `json:"admin_email"`
	EmailChannel string `json:"email_channel"` // scheme and host only
	NATS         string `json:"nats"`          // embedded, or the host of the outside server
	NATSUp       bool   `json:"nats_up"`
}

// EmailChannelRequest sets how codes reach people; TestTo gets a test message.
type EmailChannelRequest struct {
	URL    string `json:"url" doc:"smtp://, smtps://, https:// (signed webhook), file:///dir or log:"`
	TestTo string `json:"test_to,omitempty"`
}

// EmailChannel is the channel in force.
type EmailChannel struct {
	Channel       string `json:"channel"` // scheme and host only
	TestedTo      string `json:"tested_to,omitempty"`
	WebhookSecret string `json:"webhook_secret,omitempty"` // shown once, for https://
}

// ShardRequest adds a shard.
type ShardRequest struct {
	Name      string `json:"name"`
	DSN       string `json:"dsn"`
	Weight    int    `json:"weight,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Accepting *bool  `json:"accepting,omitempty"`
}

// ShardUpdate changes what is given.
type ShardUpdate struct {
	DSN       *string `json:"dsn,omitempty"`
	Weight    *int    `json:"weight,omitempty"`
	Zone      *string `json:"zone,omitempty"`
	Accepting *bool   `json:"accepting,omitempty"`
}

// Shard is a Postgres server that holds realms.
type Shard struct {
	Name      string    `json:"name"`
	Ordinal   int       `json:"ordinal"`
	Address   string    `json:"address"` // DSN without password
	Weight    int       `json:"weight"`
	Zone      string    `json:"zone"`
	Accepting bool      `json:"accepting"`
	Version   int       `json:"server_version"`
	Databases []string  `json:"databases"`
	Buckets   int       `json:"buckets"` // over all databases
	Bytes     int64     `json:"bytes"`   // size of those databases; -1: unreachable
	Reachable bool      `json:"reachable"`
	Error     string    `json:"error,omitempty"`
	CreatedAt time.Time `json:"created_at"`
}

// DatabaseRequest creates a sharded database.
type DatabaseRequest struct {
	Name     string   `json:"name"`
	Shards   []string `json:"shards,omitempty"` // empty: all that accept
	RealmKey string   `json:"realm_key,omitempty"`
	Owner    string   `json:"owner,omitempty"`    // e-mail that codes go to
	Upstream string   `json:"upstream,omitempty"` // application behind the gateway
	// SourceUpstream is the application until the cutover, which switches to Upstream; empty: Upstream all the time.
	SourceUpstream string `json:"source_upstream,omitempty"`
}

// AdoptRequest puts an existing Postgres database under management.
type AdoptRequest struct {
	Name     string `json:"name"`
	DSN      string `json:"dsn"`
	Owner    string `json:"owner,omitempty"`
	Upstream string `json:"upstream,omitempty"`
}

// DatabaseUpdate changes what is given. State is "active" or "stopped".
type DatabaseUpdate struct {
	Upstream       *string `json:"upstream,omitempty"`
	SourceUpstream *string `json:"source_upstream,omitempty"`
	Owner          *string `json:"owner,omitempty"`
	State          *string `json:"state,omitempty"`
}

// Database is a tenant's logical database.
type Database struct {
	Name           string     `json:"name"`
	URL            string     `json:"url"`
	Kind           string     `json:"kind"`
	State          string     `json:"state"`
	Owner          string     `json:"owner"`
	RealmKey       string     `json:"realm_key"`
	Upstream       string     `json:"upstream,omitempty"`
	SourceUpstream string     `json:"source_upstream,omitempty"` // until the cutover
	Domains        []string   `json:"domains,omitempty"`         // under which it is known too
	Shards         []string   `json:"shards"`
	PlacementEpoch int64      `json:"placement_epoch"`
	Bytes          int64      `json:"bytes"`
	RedirectTo     string     `json:"redirect_to,omitempty"`
	Replication    string     `json:"replication,omitempty"` // the active one
	CreatedAt      time.Time  `json:"created_at"`
	DeletedAt      *time.Time `json:"deleted_at,omitempty"`
	PurgeAfter     *time.Time `json:"purge_after,omitempty"`
}

// Realm is a realm's size on its shard.
type Realm struct {
	Realm  string `json:"realm"`
	Bucket int    `json:"bucket"`
	Shard  string `json:"shard"`
	Rows   int64  `json:"rows"`
	Pinned bool   `json:"pinned,omitempty"`
}

// Approval is how a person approved an action: a challenge's id and its code.
type Approval struct {
	ID   string `json:"id"`
	Code string `json:"code"`
}

// ChallengeRequest asks for a code. Exactly the member that belongs to the action is set; the server derives the plan
// from it, and the action itself must then be requested with the same member.
type ChallengeRequest struct {
	Action   string        `json:"action" enum:"start-replication,cutover,rollback,complete,redirect,delete-db"`
	Channel  string        `json:"channel,omitempty" enum:"email,totp" doc:"default email"`
	Start    *PlanRequest  `json:"start,omitempty"`
	Cutover  *CutoverPlan  `json:"cutover,omitempty"` // also for rollback
	Complete *CompletePlan `json:"complete,omitempty"`
	Redirect *RedirectPlan `json:"redirect,omitempty"`
	Delete   *DeletePlan   `json:"delete,omitempty"`
}

// Challenge is a pending request for a code.
type Challenge struct {
	ID        string    `json:"id"`
	Action    string    `json:"action"`
	SentTo    string    `json:"sent_to"` // masked: "a***@example.com"
	Channel   string    `json:"channel"`
	Plan      string    `json:"plan"` // in words
	ExpiresAt time.Time `json:"expires_at"`
}

// TOTPEnrolRequest enrols an authenticator app for an address.
type TOTPEnrolRequest struct {
	Email string `json:"email"`
}

// TOTPEnrolment is shown once; it counts after the mailed code and a first one of the app have confirmed it.
type TOTPEnrolment struct {
	Email     string    `json:"email"`
	URI       string    `json:"uri"`     // otpauth://
	SentTo    string    `json:"sent_to"` // masked: where the code went that the confirmation needs
	ExpiresAt time.Time `json:"expires_at"`
}

// TOTPConfirm proves that the address agrees and that the app works.
type TOTPConfirm struct {
	Email    string `json:"email"`
	MailCode string `json:"mail_code" doc:"the code that was mailed to the address"`
	Code     string `json:"code" doc:"a first code of the app"`
}

// ClientRequest authorises an API client.
type ClientRequest struct {
	Email     string     `json:"email"`
	Scopes    []string   `json:"scopes,omitempty"`    // admin, operate, read; default operate
	Databases []string   `json:"databases,omitempty"` // empty: all
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Client is an API client without its secret.
type Client struct {
	ID         string     `json:"id"`
	Email      string     `json:"email"`
	Scopes     []string   `json:"scopes"`
	Databases  []string   `json:"databases,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	RevokedAt  *time.Time `json:"revoked_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

// ClientCreated carries the secret, once.
type ClientCreated struct {
	Client
	Secret string `json:"secret"`
}

// PlanRequest says what to replicate.
type PlanRequest struct {
	From    string                    `json:"from" doc:"postgres:// of the source"`
	To      string                    `json:"to" doc:"URL of the database here"`
	Options tenant.ReplicationOptions `json:"options"`
}

// StartRequest starts it, with a person's approval of exactly this plan.
type StartRequest struct {
	PlanRequest
	Approval Approval `json:"approval"`
}

// Preflight is what a check found.
type Preflight struct {
	Findings []tenant.Finding `json:"findings"`
	OK       bool             `json:"ok"` // nothing blocks
	Tables   int              `json:"tables"`
	Rows     int64            `json:"rows"`
	Bytes    int64            `json:"bytes"`
}

// Replication is a running copy and stream.
type Replication struct {
	ID        string                    `json:"id"`
	Database  string                    `json:"database"`
	From      string                    `json:"from"` // without credentials
	To        string                    `json:"to"`
	State     tenant.State              `json:"state"`
	Slot      string                    `json:"slot"`
	Options   tenant.ReplicationOptions `json:"options"`
	Progress  *tenant.Progress          `json:"progress,omitempty"`
	CreatedAt time.Time                 `json:"created_at"`
	UpdatedAt time.Time                 `json:"updated_at"`
	EndedAt   *time.Time                `json:"ended_at,omitempty"`
	Steps     []ReplicationStep         `json:"steps,omitempty"` // of one replication, not in lists
}

// ReplicationStep is a step of the preparation or the copy, with its time.
type ReplicationStep struct {
	Name       string     `json:"name"`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// CommandRequest asks the worker for something. DropFence belongs to complete, what is embedded to verify.
type CommandRequest struct {
	VerifyRequest

	Reason          string `json:"reason,omitempty"`
	DropFence       bool   `json:"drop_fence,omitempty" doc:"complete: also let the old side accept writes again (takes a challenge)"`
	SourceDestroyed bool   `json:"source_destroyed,omitempty" doc:"complete: the old side is gone for good; where a cutover or rollback is in doubt the new side is opened, and what it had not received is lost (takes a challenge); cancel: the new side is emptied and nothing is dropped at the old side"`

	Approval Approval `json:"approval,omitzero"` // of complete with drop_fence or source_destroyed
}

// CompletePlan is what the code of a completion that drops the fence, or goes on without the source, is bound to.
type CompletePlan struct {
	Replication string `json:"replication"`
	DropFence   bool   `json:"drop_fence,omitempty"`

	SourceDestroyed bool `json:"source_destroyed,omitempty"`
}

// CutoverPlan is what the code of a cutover or rollback is bound to.
type CutoverPlan struct {
	Replication string `json:"replication"`
	MaxPauseMS  int64  `json:"max_pause_ms,omitempty"` // default 5000
	NoWayBack   bool   `json:"no_way_back,omitempty"`
	Rehearse    bool   `json:"rehearse,omitempty" doc:"cutover: do everything but the decision and take it back; writers pause as they would"`
}

// CutoverRequest asks for it. With DryRun nothing changes and no approval is needed.
type CutoverRequest struct {
	CutoverPlan
	DryRun   bool     `json:"dry_run,omitempty"`
	Approval Approval `json:"approval,omitzero"`
}

// Command is a request to a replication's worker and, when finished, its outcome.
type Command struct {
	ID          string          `json:"id"`
	Replication string          `json:"replication"`
	Kind        string          `json:"kind"`
	CreatedAt   time.Time       `json:"created_at"`
	StartedAt   *time.Time      `json:"started_at,omitempty"`
	FinishedAt  *time.Time      `json:"finished_at,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"` // verify: tenant.Verification, or VerifyModeResult; cutover: CutoverReport
	Error       *Problem        `json:"error,omitempty"`
}

// CutoverReport is what a cutover, a dry run or an attempt that was taken back tells.
type CutoverReport struct {
	Attempt     string              `json:"attempt,omitempty"`
	Outcome     string              `json:"outcome"` // target, source, dry_run, rehearsed
	Findings    []tenant.Finding    `json:"findings"`
	PauseMillis float64             `json:"pause_ms"`
	Steps       []tenant.StepTime   `json:"steps"`
	Culprits    []string            `json:"culprits,omitempty"` // who was in the way: pid and query
	Certificate *tenant.Certificate `json:"certificate,omitempty"`
	Rollback    *tenant.Rollback    `json:"rollback,omitempty"` // what a rollback that went through has done
}

// RedirectPlan is what the code of a redirect is bound to.
type RedirectPlan struct {
	Database  string `json:"database"`
	To        string `json:"to"`
	Mode      string `json:"mode,omitempty" enum:"redirect,proxy,refuse" doc:"default redirect"`
	Permanent bool   `json:"permanent,omitempty"` // 308 instead of 307
	Force     bool   `json:"force,omitempty"`     // although the old side still accepts writes
}

// RedirectRequest sets it.
type RedirectRequest struct {
	RedirectPlan
	Approval Approval `json:"approval"`
}

// Redirect is the redirect in force.
type Redirect struct {
	Database       string     `json:"database"`
	To             string     `json:"to"`
	Mode           string     `json:"mode"`
	Permanent      bool       `json:"permanent"`
	CreatedAt      time.Time  `json:"created_at"`
	TombstoneUntil *time.Time `json:"tombstone_until,omitempty"`
}

// DeletePlan is what the code of a deletion is bound to. Force names what is overridden: connections, certificate, redirect,
// way-back.
type DeletePlan struct {
	Database       string              `json:"database"`
	Force          []string            `json:"force,omitempty"`
	Certificate    *tenant.Certificate `json:"certificate,omitempty"`
	CertificateKey string              `json:"certificate_key,omitempty" doc:"the signer's public key that is trusted, or its fingerprint; default: the one in the certificate"`
}

// DeleteRequest begins a deletion; a confirmation e-mail follows.
type DeleteRequest struct {
	DeletePlan
	Approval Approval `json:"approval"`
}

// DeleteConfirm is the code of the confirmation e-mail.
type DeleteConfirm struct {
	Code string `json:"code"`
}

// DeleteStatus says how far a deletion is.
type DeleteStatus struct {
	Database       string     `json:"database"`
	State          string     `json:"state"` // deleting (waits for the confirmation), deleted, purged
	SentTo         string     `json:"sent_to,omitempty"`
	ConfirmBefore  *time.Time `json:"confirm_before,omitempty"`
	PurgeAfter     *time.Time `json:"purge_after,omitempty"`
	TombstoneUntil *time.Time `json:"tombstone_until,omitempty"`
}

// AuditEntry is one line of the audit log.
type AuditEntry struct {
	ID      int64           `json:"id"`
	At      time.Time       `json:"at"`
	Actor   string          `json:"actor"`
	Action  string          `json:"action"`
	Object  string          `json:"object"`
	Outcome string          `json:"outcome"`
	Address string          `json:"address,omitempty"`
	Detail  json.RawMessage `json:"detail,omitempty"`
}
