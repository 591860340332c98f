package api

import "time"

// Connection is one client of a database, by protocol, program and address.
type Connection struct {
	Protocol string    `json:"protocol"` // http, websocket, postgres
	Client   string    `json:"client"`   // product of the user agent, or application_name
	Version  string    `json:"version"`  // of the client, where it tells
	User     string    `json:"user"`     // role in the database, of direct connections
	Address  string    `json:"address"`
	Via      string    `json:"via"` // gateway, or direct: seen in the source's pg_stat_activity
	Open     int       `json:"open"`
	LastSeen time.Time `json:"last_seen"`
}

// ClientUse is how much one client uses a database in one version, from whatever address.
type ClientUse struct {
	Protocol   string    `json:"protocol"`
	Client     string    `json:"client"` // "other": those that are not told apart any more
	Version    string    `json:"version"`
	Via        string    `json:"via"`
	Open       int       `json:"open"`
	LastHour   int64     `json:"opened_last_hour"`
	Opened     int64     `json:"opened"`     // within the whole time, of stats the last day
	Redirected int64     `json:"redirected"` // of those, answered with the new URL or forwarded there
	LastSeen   time.Time `json:"last_seen"`
}

// Stats counts a database's connections.
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
	Clients    []Connection   `json:"clients"`          // what is open now
	ByClient   []ClientUse    `json:"by_client"`        // of the last day, the busiest ones
	Collecting bool           `json:"collecting"`       // false: REHOME_USAGE_STATS is disabled, only what is open now is known
	Unseen     []string       `json:"unseen,omitempty"` // connections that there may be and that nobody can see
	Note       string         `json:"note,omitempty"`   // why a source of the counts is missing
}

// HistoryPoint is a database's use within one step. Means and maxima are of the samples, one a minute.
type HistoryPoint struct {
	At         time.Time `json:"at"`          // begin of the step
	Gateway    *float64  `json:"gateway"`     // open through gateways, mean; null: not sampled
	Direct     *float64  `json:"direct"`      // open past them, mean; null: not sampled
	GatewayMax int64     `json:"gateway_max"` // at most open
	DirectMax  int64     `json:"direct_max"`
	Opened     int64     `json:"opened"`     // through gateways
	Redirected int64     `json:"redirected"` // of those, answered with the new URL or forwarded there
}

// StatsHistory is how a database's use went.
type StatsHistory struct {
	Database   string         `json:"database"`
	Since      time.Time      `json:"since"`
	Until      time.Time      `json:"until"`
	Step       string         `json:"step"` // minute, hour, day
	Collecting bool           `json:"collecting"`
	Points     []HistoryPoint `json:"points"`  // in order; steps without samples are left out
	Clients    []ClientUse    `json:"clients"` // who came within it, the busiest ones
}
