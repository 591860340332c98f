// Package redirect is the gateway: clients reach a database under /NAME/… over HTTP and WebSocket. It forwards to the
// database's upstream application, counts, holds while a cutover decides, and after a move sends clients to the new URL.
//
// # Who is authoritative
//
// The control database (rehome_control.databases and redirects). A gateway works from an immutable snapshot behind one
// atomic pointer, read again on NOTIFY rehome_routes and every RefreshEvery. Holds and open connections are this
// process's own; statistics are written to the control database in batches and may lose the last seconds in a crash.
//
// # What a request gets
//
//	unknown name                              404 database-unknown
//	redirect, tombstone over                  410 database-gone
//	redirect, mode redirect                   307 (308 if permanent), Location: NEW + rest + query; Connection: close
//	redirect, mode proxy                      forwarded to NEW; Authorization, Cookie and Proxy-Authorization only if NEW has the same host
//	redirect, mode refuse                     421 database-moved; the problem document's moved_to and hint name NEW
//	deleted or purged, no redirect            410 database-gone
//	being created                             503 database-not-ready
//	stopped                                   503 database-stopped
//	no upstream application                   502 no-upstream
//	upstream not reachable                    502 upstream-unreachable
//	too many held requests                    503 too-many-held, Retry-After
//	the request came through this server      508 proxy-loop
//	else                                      forwarded: path after /NAME, X-Forwarded-{For,Host,Proto,Prefix}
//
// 421 (RFC 9110, 15.5.20) and not 503 for refuse: 503 invites to try again, and trying here again never helps.
//
// An http:// upstream sees the client's Host, so that its origin checks hold; an https:// one sees its own, which its
// certificate and virtual hosts need. X-Forwarded-Host has the client's in both cases.
//
// # WebSockets
//
// They end here and are opened anew to the upstream (or NEW), so that they can be counted, told and closed. A text
// message {"type":"moving"} announces a hold, {"type":"moved","url":NEW} a redirect; after that the connection is closed
// with code 4301 (CloseMoved) and NEW as reason, or an empty reason where NEW is longer than 123 bytes (RFC 6455,
// 5.5). In proxy mode too: the client reconnects and is then proxied. A stopped or deleted database closes with 1001.
//
// # Hold
//
// Held requests wait in their own goroutine with their body unread. The wait is bounded in number (MaxHeld) and time
// (MaxHold). A client that went away meanwhile is dropped and its request never forwarded. On release the first
// ReleaseBatch go at once, the next ReleaseEvery later, and so on. A hold serves the pause, not safety.
//
// # Counting
//
// For HTTP "open" is a connection that sent a request for the database and is still open (ConnContext and ConnState
// must be installed in the http.Server; without them only requests in flight are seen); "opened" is a request. For
// WebSockets both are connections. Kept are the User-Agent's product, its version, and the address without port; sessions past the
// gateway are sampled. Old rows are rolled up (RollUp). With UsageStats off only the number of open connections is known,
// in memory, and nothing is written.
package redirect
