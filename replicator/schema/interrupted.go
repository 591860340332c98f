package schema

import "strings"

// interruptions are what libpq and the server say, in the C locale, when a connection ends or cannot be had just now, and
// when the exported snapshot went with its session. pg_dump gives no SQLSTATE; in brackets what it would be.
var interruptions = [...]string{
	"server closed the connection unexpectedly", // 08006
	"no connection to the server",
	"connection not open",
	"could not receive data from server",
	"could not send data to server",
	"SSL connection has been closed unexpectedly",
	"SSL SYSCALL error",
	"Connection refused",
	"Connection reset by peer",
	"Connection timed out",
	"Broken pipe",
	"No route to host",
	"Network is unreachable",
	"timeout expired",
	"terminating connection due to",           // 57P01
	"the database system is",                  // 57P03: starting up, shutting down, in recovery mode
	"sorry, too many clients already",         // 53300
	"remaining connection slots are reserved", // 53300
	"canceling statement due to lock timeout", // 55P03
	"invalid snapshot identifier",             // 22023: until 16; the session that exported it is gone
	"could not import the requested snapshot",
}

// passes reports whether what pg_dump ended with may be gone when it is tried again.
func passes(stderr string) bool {
	for _, text := range interruptions {
		if strings.Contains(stderr, text) {
			return true
		}
	}
	// From version 17 on the missing snapshot is named: snapshot "…" does not exist.
	return strings.Contains(stderr, "snapshot \"") && strings.Contains(stderr, "does not exist")
}
