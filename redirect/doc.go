// Package redirect is the gateway: clients reach a database over HTTP and WebSocket under https://host/NAME/…, under
// https://NAME.host/… and under its own domains. It forwards to the database's upstream application, counts, holds while a
// cutover decides, switches to the application of the side that won, and after a move sends clients to the new URL.
//
// # Who is authoritative
//
// The control database (rehome_control.databases, redirects, domains, routes, holds). A gateway works from an immutable
// snapshot behind one atomic pointer, read again on NOTIFY rehome_routes and every RefreshEvery. Open connections are this
// process's own; statistics are written to the control database in batches and may lose the last seconds in a crash. Which
// side the clients of a database go to (routes.side) follows the gate at the source, and carries its epoch: an older word
// never replaces a newer one.
//
// # What a request gets
//
//	unknown name                              404 database-unknown
//	redirect, tombstone over                  410 database-gone
//	redirect, mode redirect                   307, after PermanentAfter or if said so 308; Location: NEW + rest + query; Connection: close
//	redirect, mode proxy                      forwarded to NEW
//	redirect, mode refuse                     421 database-moved; the problem document's moved_to and hint name NEW
//	deleted or purged, no redirect            410 database-gone
//	being created                             503 database-not-ready
//	stopped                                   503 database-stopped
//	no upstream application                   502 no-upstream
//	upstream not reachable                    502 upstream-unreachable
//	too many held requests                    503 too-many-held, Retry-After
//	held for longer than MaxWait              503 held-too-long, Retry-After
//	the request came through this server      508 proxy-loop
//	else                                      forwarded: path after /NAME, X-Forwarded-{For,Host,Proto,Prefix}
//
// 421 (RFC 9110, 15.5.20) and not 503 for refuse: 503 invites to try again, and trying here again never helps. A 308 may be
// kept for a day (Cache-Control), so that one that should not have been set is forgotten.
//
// An http:// upstream sees the client's Host, so that its origin checks hold; an https:// one sees its own, which its
// certificate and virtual hosts need. X-Forwarded-Host has the client's in both cases. What a client says of itself in
// X-Forwarded-* and Forwarded is dropped, unless a trusted proxy says it (proxies.go).
//
// # Credentials
//
// Nothing secret goes to another host than the one that the client addressed (name and port, and no step down from TLS), in
// Location or through the proxy: headers whose names say that they are credentials, cookies in both directions, query
// parameters such as access_token, subprotocols that carry tokens, URL userinfo, and all of Referer but its origin. Such a
// client has to sign in anew at the new side. A body cannot be judged and goes along (secrets.go).
//
// # WebSockets
//
// They end here and are opened anew to the upstream (or NEW), so that they can be counted, told and closed. A text
// message {"type":"moving"} announces a hold, {"type":"moved","url":NEW} a redirect; after that the connection is closed
// with code 4301 (CloseMoved) and NEW as reason, or an empty reason where NEW is longer than 123 bytes (RFC 6455,
// 5.5). In proxy mode too: the client reconnects and is then proxied. A stopped or deleted database closes with 1001, one
// whose application was switched by a cutover with 1012. Many are closed one after the other, 200 a second and all within
// CloseWindow, so that their clients do not come back at once; on a server's stop within half of the drain.
//
// # Hold
//
//	coordinator ─ Hold ─▶ holds row, NOTIFY ─▶ every gateway holds, waits for earlier writes, acknowledges ─▶ Hold returns
//	            ─ Switch ─▶ routes row + holds row gone, in one transaction ─▶ every gateway reads both, routes first
//
// Held requests wait in their own goroutine with their body unread. The wait is bounded in number (MaxHeld) and time
// (MaxWait). A client that went away meanwhile is dropped and its request never forwarded. On release the first
// ReleaseBatch go at once, the next ReleaseEvery later, and so on. A hold serves the pause, not safety: that is the fence's.
//
// Hold returns when every gateway with a live lease has acknowledged. A gateway whose lease has ended, by its own clock
// before the control database's, keeps new requests of all databases with an open replication waiting, at most MaxWait;
// when it has a lease again it first reads holds and routes. So nobody has to wait for it, and one that died in silence
// delays a hold by leaseTime at most.
//
// Requests that may write (not GET, HEAD, OPTIONS, TRACE) and came before the hold end before it is acknowledged, at most
// DrainHeld: behind the fence they would fail.
//
// A held request goes on only by routes that were read when, or after, its hold ended. A hold that nobody ends, since its
// coordinator died, ends by its time, and then the routes are read first; where they cannot be, the request waits on.
//
// # Counting
//
// For HTTP "open" is a connection that sent a request for the database and is still open (ConnContext and ConnState
// must be installed in the http.Server; without them only requests in flight are seen); "opened" is a request. For
// WebSockets both are connections. Kept are the User-Agent's product, its version, and the address without port; sessions past the
// gateway are sampled. Old rows are rolled up (RollUp). With UsageStats off only the number of open connections is known,
// in memory, and nothing is written.
package redirect
