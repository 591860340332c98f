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
	Client   string    `json:"client"`   // user agent or application_name
	Address  string    `json:"address"`
	Via      string    `json:"via"` // gateway, or direct: seen in the database's pg_stat_activity
	Open     int       `json:"open"`
	LastSeen time.Time `json:"last_seen"`
}

// OpenConnection is a connection that this gateway has open.
type OpenConnection = Connection

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
	Collecting bool           `json:"collecting"`
	Note       string         `json:"note,omitempty"` // why a source of the counts is missing
}
