package redirect

import (
	"time"
)

// RoutesChannel is the NOTIFY channel that tells gateways that routes changed.
const RoutesChannel = "rehome_routes"

// Mode is what the old side does with clients after a move.
type Mode string

// Modes of a redirect.
const (
	ModeRedirect Mode = "redirect" // 307 or 308
	ModeProxy    Mode = "proxy"    // forward, for clients that do not follow redirects
	ModeRefuse   Mode = "refuse"   // 421 that names the new URL
)

// Redirect sends clients of a database to its new URL.
type Redirect struct {
	Database       string     `json:"database"`
	To             string     `json:"to"`
	Mode           Mode       `json:"mode"`      // default ModeRedirect
	Permanent      bool       `json:"permanent"` // 308 instead of 307
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by,omitempty"`
	TombstoneUntil *time.Time `json:"tombstone_until,omitempty"` // afterwards 410
}

// Connection is one client of a database, by protocol, program and address.
type Connection struct {
	Protocol string    `json:"protocol"` // http, websocket, postgres
	Client   string    `json:"client"`   // product of the user agent, or application_name
	Version  string    `json:"version"`  // of the client, where it tells
	User     string    `json:"user"`     // role in the database, of direct connections
	Address  string    `json:"address"`
	Via      string    `json:"via"` // gateway, or direct: seen in the database's pg_stat_activity
	Open     int       `json:"open"`
	LastSeen time.Time `json:"last_seen"`
}

// OpenConnection is a connection that this gateway has open.
type OpenConnection = Connection

// ClientUse is how much one client uses a database in one version, from whatever address.
type ClientUse struct {
	Protocol   string    `json:"protocol"`
	Client     string    `json:"client"`
	Version    string    `json:"version"`
	Via        string    `json:"via"`
	Open       int       `json:"open"`
	LastHour   int64     `json:"opened_last_hour"`
	Opened     int64     `json:"opened"`     // within the whole time, of stats the last day
	Redirected int64     `json:"redirected"` // of those, answered with the new URL or forwarded there
	LastSeen   time.Time `json:"last_seen"`
}

// Stats counts a database's connections. For HTTP an opening is a request, see the package comment.
type Stats struct {
	Database   string         `json:"database"`
	At         time.Time      `json:"at"`
	OpenNow    int            `json:"open_now"`
	ByProtocol map[string]int `json:"by_protocol"`
	ByVia      map[string]int `json:"by_via"`
	LastMinute int64          `json:"opened_last_minute"`
	LastHour   int64          `json:"opened_last_hour"`
	LastDay    int64          `json:"opened_last_day"`
	Redirected float64        `json:"redirected_share"` // of the last hour's requests, 0..1
	LastSeen   *time.Time     `json:"last_seen,omitempty"`
	Clients    []Connection   `json:"clients"`
	ByClient   []ClientUse    `json:"by_client"` // of the last day, the busiest ones
	Collecting bool           `json:"collecting"`
	Unseen     []string       `json:"unseen,omitempty"` // connections that there may be and that nobody can see
	Note       string         `json:"note,omitempty"`   // why a source of the counts is missing
}
