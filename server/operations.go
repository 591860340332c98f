package server

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// operations registers every endpoint of package api.
func (s *Server) operations(a huma.API) {
	const get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete
	const accepted, created = http.StatusAccepted, http.StatusCreated

	add(s, a, operation{method: get, path: "/v1/installation", name: "get-installation", summary: "Who answers", scope: scopeRead}, s.getInstallation)
	add(s, a, operation{method: get, path: "/v1/doctor", name: "examine", summary: "Compare the records with what is there; nothing changes", scope: scopeOperate, whole: true}, s.examine)
	add(s, a, operation{method: post, path: "/v1/doctor/fix", name: "doctor-fix", summary: "Perform the safe repairs, and examine again", scope: scopeAdmin, whole: true}, s.repair)
	add(s, a, operation{method: post, path: "/v1/email-channel", name: "set-email-channel", summary: "Set how codes reach people", scope: scopeAdmin, whole: true}, s.setEmailChannel)
	add(s, a, operation{method: get, path: "/v1/audit", name: "list-audit", summary: "The audit log, newest first", scope: scopeAdmin, whole: true}, s.listAudit)

	add(s, a, operation{method: get, path: "/v1/shards", name: "list-shards", summary: "Shards with reachability and sizes", scope: scopeRead, whole: true}, s.listShards)
	add(s, a, operation{method: post, path: "/v1/shards", name: "add-shard", summary: "Add a Postgres server", scope: scopeAdmin, whole: true, status: created}, s.addShard)
	add(s, a, operation{method: patch, path: "/v1/shards/{name}", name: "update-shard", summary: "Change a shard", scope: scopeAdmin, whole: true}, s.updateShard)
	add(s, a, operation{method: del, path: "/v1/shards/{name}", name: "remove-shard", summary: "Remove a shard that holds no realms", scope: scopeAdmin, whole: true}, s.removeShard)

	add(s, a, operation{method: get, path: "/v1/databases", name: "list-databases", summary: "Databases", scope: scopeRead}, s.listDatabases)
	add(s, a, operation{method: post, path: "/v1/databases", name: "create-database", summary: "Create a sharded database", scope: scopeAdmin, whole: true, status: created}, s.createDatabase)
	add(s, a, operation{method: post, path: "/v1/databases/adopt", name: "adopt-database", summary: "Put an existing Postgres database under management", scope: scopeAdmin, whole: true, status: created}, s.adoptDatabase)
	add(s, a, operation{method: get, path: "/v1/databases/{name}", name: "get-database", summary: "One database", scope: scopeRead}, s.getDatabase)
	add(s, a, operation{method: patch, path: "/v1/databases/{name}", name: "update-database", summary: "Change upstream or owner, start or stop", scope: scopeOperate}, s.updateDatabase)
	add(s, a, operation{method: get, path: "/v1/databases/{name}/placement", name: "get-placement", summary: "Which buckets live on which shard", scope: scopeRead}, s.getPlacement)
	add(s, a, operation{method: get, path: "/v1/databases/{name}/realms", name: "list-realms", summary: "Realms and their sizes", scope: scopeRead}, s.listRealms)
	add(s, a, operation{method: get, path: "/v1/databases/{name}/stats", name: "get-stats", summary: "Connections", scope: scopeRead}, s.getStats)
	add(s, a, operation{method: get, path: "/v1/databases/{name}/stats/history", name: "get-stats-history", summary: "Connections over time", scope: scopeRead}, s.getStatsHistory)

	add(s, a, operation{method: post, path: "/v1/databases/{name}/delete", name: "delete-database", summary: "Begin a deletion (takes a challenge; a confirmation e-mail follows)", scope: scopeOperate, status: accepted}, s.deleteDatabase)
	add(s, a, operation{method: post, path: "/v1/databases/{name}/delete/confirm", name: "confirm-delete", summary: "Confirm a deletion with the code of the e-mail", scope: scopeOperate}, s.confirmDelete)
	add(s, a, operation{method: post, path: "/v1/databases/{name}/undelete", name: "undelete-database", summary: "Take a deletion back", scope: scopeOperate}, s.undelete)

	add(s, a, operation{method: put, path: "/v1/databases/{name}/domains/{domain}", name: "add-domain", summary: "Make a database known under a domain of its own", scope: scopeAdmin, whole: true}, s.addDomain)
	add(s, a, operation{method: del, path: "/v1/databases/{name}/domains/{domain}", name: "remove-domain", summary: "Take a domain away", scope: scopeAdmin, whole: true}, s.removeDomain)

	add(s, a, operation{method: get, path: "/v1/databases/{name}/redirect", name: "get-redirect", summary: "The redirect in force", scope: scopeRead}, s.getRedirect)
	add(s, a, operation{method: put, path: "/v1/databases/{name}/redirect", name: "set-redirect", summary: "Send clients to the new URL (takes a challenge)", scope: scopeOperate}, s.setRedirect)
	add(s, a, operation{method: del, path: "/v1/databases/{name}/redirect", name: "clear-redirect", summary: "Take the redirect back", scope: scopeOperate}, s.clearRedirect)

	add(s, a, operation{method: post, path: "/v1/challenges", name: "request-challenge", summary: "Ask a person for a code for a plan", scope: scopeOperate, status: created}, s.requestChallenge)
	add(s, a, operation{method: post, path: "/v1/totp", name: "enrol-totp", summary: "Enrol an authenticator app", scope: scopeRead, status: created}, s.enrolTOTP)
	add(s, a, operation{method: post, path: "/v1/totp/confirm", name: "confirm-totp", summary: "Prove that the app works", scope: scopeRead}, s.confirmTOTP)
	add(s, a, operation{method: del, path: "/v1/totp/{email}", name: "remove-totp", summary: "Forget an authenticator app", scope: scopeRead}, s.removeTOTP)

	add(s, a, operation{method: get, path: "/v1/clients", name: "list-clients", summary: "API clients", scope: scopeAdmin, whole: true}, s.listClients)
	add(s, a, operation{method: post, path: "/v1/clients", name: "authorize-client", summary: "Authorise an API client", scope: scopeAdmin, whole: true, status: created}, s.createClient)
	add(s, a, operation{method: del, path: "/v1/clients/{id}", name: "revoke-client", summary: "Revoke an API client", scope: scopeAdmin, whole: true}, s.revokeClient)

	add(s, a, operation{method: post, path: "/v1/preflight", name: "preflight", summary: "Check a plan; nothing changes anywhere", scope: scopeOperate, quiet: true}, s.preflight)
	add(s, a, operation{method: get, path: "/v1/replications", name: "list-replications", summary: "Replications, newest first", scope: scopeRead}, s.listReplications)
	add(s, a, operation{method: post, path: "/v1/replications", name: "start-replication", summary: "Start a replication (takes a challenge)", scope: scopeOperate, status: accepted}, s.startReplication)
	add(s, a, operation{method: get, path: "/v1/replications/{id}", name: "get-replication", summary: "One replication", scope: scopeRead}, s.getReplication)
	add(s, a, operation{method: get, path: "/v1/replications/{id}/progress", name: "get-progress", summary: "How far it is", scope: scopeRead}, s.getProgress)
	add(s, a, operation{method: get, path: "/v1/replications/{id}/throttle", name: "get-throttle", summary: "What is allowed at the source, and what holds the copy back", scope: scopeRead}, s.getThrottle)
	add(s, a, operation{method: patch, path: "/v1/replications/{id}/throttle", name: "set-throttle", summary: "Change what is allowed at the source, while it runs", scope: scopeOperate}, s.setThrottle)
	add(s, a, operation{method: get, path: "/v1/replications/{id}/verifications/{vid}", name: "get-verification", summary: "A verification; {vid} may be latest", scope: scopeRead}, s.getVerification)
	add(s, a, operation{method: get, path: "/v1/replications/{id}/certificate", name: "get-certificate", summary: "The certificate of its cutover", scope: scopeRead}, s.getCertificate)
	for _, kind := range askKinds {
		add(s, a, operation{method: post, path: "/v1/replications/{id}/" + kind, name: kind + "-replication", summary: "Ask the worker: " + kind, scope: scopeOperate, status: accepted}, s.ask(kind))
	}
	add(s, a, operation{method: post, path: "/v1/replications/{id}/cutover", name: "cutover", summary: "Cut over (takes a challenge, unless dry_run)", scope: scopeOperate, status: accepted}, s.cutover)
	add(s, a, operation{method: post, path: "/v1/replications/{id}/rollback", name: "rollback", summary: "Go back to the source (takes a challenge)", scope: scopeOperate, status: accepted}, s.rollback)
	add(s, a, operation{method: get, path: "/v1/commands/{id}", name: "get-command", summary: "A request to a worker; ?wait=SECONDS waits for its end", scope: scopeRead}, s.getCommand)

	s.webhookOperations(a)
	s.streams(a)
}
