package api

import "time"

// WebhookRequest adds a webhook: where to send what happens.
type WebhookRequest struct {
	URL         string   `json:"url" doc:"https://; http:// only to this machine, or with insecure"`
	Events      []string `json:"events,omitempty" doc:"in-sync, cutover-done, …; empty: all"`
	Databases   []string `json:"databases,omitempty" doc:"empty: all"`
	Description string   `json:"description,omitempty" maxLength:"200"`
	Insecure    bool     `json:"insecure,omitempty" doc:"accept http:// to another machine"`
}

// WebhookUpdate changes what is given.
type WebhookUpdate struct {
	Enabled *bool `json:"enabled,omitempty"`
}

// Webhook is an address that is told what happens, without its secret.
type Webhook struct {
	ID             string     `json:"id"`
	URL            string     `json:"url"` // scheme, host and the path's beginning: the rest may be a secret
	Description    string     `json:"description,omitempty"`
	Events         []string   `json:"events"`    // empty: all
	Databases      []string   `json:"databases"` // empty: all
	Enabled        bool       `json:"enabled"`   // else nothing is sent
	DisabledReason string     `json:"disabled_reason,omitempty"`
	FormerUntil    *time.Time `json:"former_secret_until,omitempty"` // the former secret signs too until then
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by,omitempty"`
	Pending        int        `json:"pending"` // deliveries that wait or are tried again
	Dead           int        `json:"dead"`    // that were given up, of those that are kept
	LastAt         *time.Time `json:"last_attempt_at,omitempty"`
	LastStatus     *int       `json:"last_status,omitempty"` // HTTP status of the last answer
	LastError      string     `json:"last_error,omitempty"`
}

// WebhookSecret carries the signing secret, once.
type WebhookSecret struct {
	Webhook
	Secret string `json:"secret"` // whsec_…
}

// WebhookRotate asks for a new secret; the former one signs as well for a time.
type WebhookRotate struct {
	OverlapSeconds *int64 `json:"overlap_seconds,omitempty" minimum:"0" maximum:"2592000" doc:"default 86400, a day"`
}

// WebhookTest is what became of a test event.
type WebhookTest struct {
	Webhook string  `json:"webhook"`
	EventID string  `json:"event_id"` // the header webhook-id
	OK      bool    `json:"ok"`
	Status  int     `json:"status,omitempty"` // HTTP status; 0: no answer
	Millis  float64 `json:"ms"`
	Answer  string  `json:"answer,omitempty"` // the beginning of the answer's body
	Error   string  `json:"error,omitempty"`
}

// WebhookDelivery is one event on its way to one webhook.
type WebhookDelivery struct {
	ID         int64      `json:"id"`
	Webhook    string     `json:"webhook"`
	EventID    string     `json:"event_id"` // the header webhook-id
	Event      string     `json:"event"`    // in-sync, cutover-done, …
	Database   string     `json:"database,omitempty"`
	State      string     `json:"state"` // pending, delivered, dead
	Attempts   int        `json:"attempts"`
	Status     *int       `json:"status,omitempty"` // HTTP status of the last answer
	Error      string     `json:"error,omitempty"`  // of the last attempt
	CreatedAt  time.Time  `json:"created_at"`
	LastAt     *time.Time `json:"last_attempt_at,omitempty"`
	NextAt     *time.Time `json:"next_attempt_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// NotificationSettings is what an address does not want to be told of by e-mail.
type NotificationSettings struct {
	Email string   `json:"email"`
	Muted []string `json:"muted"` // events; all: nothing is sent
}

// NotificationUpdate changes it. What is given is muted, and nothing else.
type NotificationUpdate struct {
	Muted []string `json:"muted"`
}
