package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	rightCode    = "123456"
	clientSecret = "client-secret-1"
	operator     = "0123456789012345678901234567890123456789"
)

// contract speaks the HTTP contract to the command line, with one database "acme" and one replication, so that what a
// person sees of rare answers (differences, a cutover that was taken back) can be shown without staging them. What the
// real server answers is tested with the real server.
type contract struct {
	mu         sync.Mutex
	challenges map[string]api.ChallengeRequest
	tries      map[string]int
	commands   map[string]api.Command
	progress   int
	throttle   tenant.Throttle
	stats      int
	connects   int
}

func newContract() *contract {
	return &contract{challenges: map[string]api.ChallengeRequest{}, tries: map[string]int{}, commands: map[string]api.Command{}}
}

func (f *contract) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r.Header.Get("Authorization") {
	case "Bearer c1:" + clientSecret, "Bearer " + operator:
	default:
		fail(w, 401, tenant.KindUnauthorised, "bad-credentials", "the key is not known")
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/shards", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, []api.Shard{{Name: "eu-1", Address: "postgres://admin@10.0.0.7/postgres", Version: 150020, Weight: 100, Accepting: true, Buckets: 16384, Bytes: 214_000_000, Databases: []string{"acme"}, Reachable: true}})
	})
	mux.HandleFunc("POST /v1/shards", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.ShardRequest](r)
		answer(w, api.Shard{Name: q.Name, Address: tenant.DSN(q.DSN).String(), Version: 150020})
	})
	mux.HandleFunc("DELETE /v1/shards/{name}", func(w http.ResponseWriter, r *http.Request) {
		fail(w, 409, tenant.KindRefused, "shard-holds-realms", "shard "+r.PathValue("name")+" holds realms of acme")
	})
	orphan := tenant.Finding{Severity: tenant.Warning, Code: "slot-orphan", Object: "rehome_xyz", Message: "a slot belongs to no replication", Remedy: "find out whether another installation reads from this source"}
	mux.HandleFunc("GET /v1/doctor", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Doctor{Findings: []tenant.Finding{{Severity: tenant.Blocking, Code: "slot-left", Object: "rehome_abc", Message: "the slot of replication abc is still there", Remedy: "rehome doctor --fix takes it back", Fixable: true}, orphan}})
	})
	mux.HandleFunc("POST /v1/doctor/fix", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Doctor{Findings: []tenant.Finding{orphan}, Repairs: []api.Repair{{Code: "slot-left", Object: "rehome_abc", Done: true}}})
	})
	mux.HandleFunc("POST /v1/clients", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.ClientRequest](r)
		answer(w, api.ClientCreated{Client: api.Client{ID: "c2", Email: q.Email, Scopes: []string{"operate"}}, Secret: "made-secret-2"})
	})
	mux.HandleFunc("POST /v1/challenges", f.challenge)
	mux.HandleFunc("POST /v1/preflight", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.PlanRequest](r)
		accepted := slices.Contains(q.Options.Accept, "constraint-without-realm:public.accounts_pkey")
		answer(w, api.Preflight{Tables: 4, Rows: 2_000_000, Bytes: 300_000_000, OK: accepted, Findings: []tenant.Finding{{
			Severity: tenant.Blocking, Code: "constraint-without-realm", Object: "public.accounts_pkey",
			Message: "the primary key lacks the realm key", Remedy: "add bid to it", Acceptable: true, Accepted: accepted,
		}}})
	})
	mux.HandleFunc("GET /v1/replications", func(w http.ResponseWriter, _ *http.Request) { answer(w, []api.Replication{f.replication()}) })
	mux.HandleFunc("POST /v1/replications", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.StartRequest](r)
		if f.approved(w, q.Approval, q.PlanRequest) {
			answer(w, f.replication())
		}
	})
	mux.HandleFunc("GET /v1/replications/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != "rep1" {
			fail(w, 404, tenant.KindNotFound, "replication-not-found", "there is no replication "+r.PathValue("id"))
			return
		}
		answer(w, f.replication())
	})
	mux.HandleFunc("GET /v1/replications/rep1/progress", func(w http.ResponseWriter, _ *http.Request) { answer(w, f.nextProgress()) })
	mux.HandleFunc("GET /v1/replications/rep1/throttle", func(w http.ResponseWriter, _ *http.Request) { answer(w, f.throttled()) })
	mux.HandleFunc("PATCH /v1/replications/rep1/throttle", func(w http.ResponseWriter, r *http.Request) {
		u, _ := json.Marshal(body[api.ThrottleUpdate](r))
		f.throttle = tenant.Throttle{}
		_ = json.Unmarshal(u, &f.throttle) // the fields have the same names
		answer(w, f.throttled())
	})
	mux.HandleFunc("GET /v1/replications/rep1/events", f.events)
	mux.HandleFunc("POST /v1/replications/rep1/{verb}", f.command)
	mux.HandleFunc("GET /v1/commands/{id}", func(w http.ResponseWriter, r *http.Request) {
		c := f.commands[r.PathValue("id")]
		now := time.Now()
		c.FinishedAt = &now
		answer(w, c)
	})
	mux.HandleFunc("GET /v1/databases/acme", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Database{Name: "acme", RealmKey: "org_id"})
	})
	mux.HandleFunc("GET /v1/databases/acme/stats", func(w http.ResponseWriter, _ *http.Request) {
		f.stats++
		answer(w, api.Stats{
			Database: "acme", OpenNow: max(5-f.stats, 0), ByProtocol: map[string]int{"http": 1}, ByVia: map[string]int{"direct": 1}, Redirected: 0.25, Collecting: true,
			Clients: []api.Connection{{Protocol: "http", Client: "evil\x1b]0;title\x07agent", Address: "10.1.1.1", Via: "gateway", Open: 1, LastSeen: time.Now()}},
		})
	})
	mux.HandleFunc("PUT /v1/databases/acme/redirect", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.RedirectRequest](r)
		if f.approved(w, q.Approval, q.RedirectPlan) {
			answer(w, api.Redirect{Database: "acme", To: q.To, Mode: q.Mode, Permanent: q.Permanent})
		}
	})
	mux.HandleFunc("POST /v1/databases/acme/delete", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.DeleteRequest](r)
		if f.approved(w, q.Approval, q.DeletePlan) {
			answer(w, api.DeleteStatus{Database: "acme", State: "deleting", SentTo: "o***@acme.example"})
		}
	})
	mux.HandleFunc("POST /v1/databases/acme/delete/confirm", func(w http.ResponseWriter, r *http.Request) {
		if body[api.DeleteConfirm](r).Code != "777777" {
			fail(w, 403, tenant.KindUnauthorised, "wrong-code", "the code is wrong")
			return
		}
		answer(w, api.DeleteStatus{Database: "acme", State: "deleted"})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, 404, tenant.KindNotFound, "not-found", "there is no "+r.URL.Path)
	})
	mux.ServeHTTP(w, r)
}

func (f *contract) replication() api.Replication {
	return api.Replication{ID: "rep1", Database: "acme", From: "postgres://me@hosted.example/acme", To: "https://own.example/acme", State: tenant.State{Phase: tenant.InSync}, CreatedAt: time.Unix(1_700_000_000, 0)}
}

// nextProgress walks from the copy to in_sync, one step a question.
func (f *contract) nextProgress() tenant.Progress {
	f.progress++
	p := tenant.Progress{Replication: "rep1", Phase: tenant.InSync, LagMillis: 8, ETASeconds: -1}
	if f.progress < 3 {
		p = tenant.Progress{
			Replication: "rep1", Phase: tenant.Copying, Percent: 63, RowsDone: 1_260_000, RowsTotal: 2_000_000, BytesDone: 63, BytesTotal: 100, BytesPerSec: 214e6, ETASeconds: 130, RowsAgain: 70_000, BytesAgain: 12e6,
			Tables: []tenant.TableProgress{{Table: "public.accounts", State: "copying", RowsDone: 5, RowsTotal: 10, BytesTotal: 100}},
		}
	}
	return p
}

// throttled is a copy that waits for a standby while its slot is short of room.
func (f *contract) throttled() api.ThrottleStatus {
	since := time.Now().Add(-90 * time.Second)
	return api.ThrottleStatus{
		Replication: "rep1", Phase: tenant.Copying, Set: f.throttle, Throttled: "standby1 is 80.0 MB behind the source (limit 64.0 MB)",
		Care: &tenant.Care{Since: &since, CopyJobs: 2, SlotStatus: "extended", SlotLimit: 10e9, SlotSafe: 1e9, WALRate: 1e6, SlotLostSeconds: 1000, Warning: "slot rehome_rep1 loses its WAL in about 16 minutes"},
	}
}

func (f *contract) challenge(w http.ResponseWriter, r *http.Request) {
	q := body[api.ChallengeRequest](r)
	id := "ch" + strconv.Itoa(len(f.challenges)+1)
	f.challenges[id] = q
	channel, to := "email", "o***@acme.example"
	if q.Channel == "totp" {
		channel = "totp"
	}
	answer(w, api.Challenge{ID: id, Action: q.Action, SentTo: to, Channel: channel, Plan: "This will be done: " + q.Action + " of acme.", ExpiresAt: time.Now().Add(10 * time.Minute)})
}

// approved compares what is asked with what the challenge was for, as the server does with digests.
func (f *contract) approved(w http.ResponseWriter, a api.Approval, plan any) bool {
	q, ok := f.challenges[a.ID]
	if !ok {
		fail(w, 403, tenant.KindUnauthorised, "code-used", "the code was used or never asked for")
		return false
	}
	f.tries[a.ID]++
	switch {
	case f.tries[a.ID] > 5:
		fail(w, 403, tenant.KindUnauthorised, "too-many-tries", "too many wrong codes")
	case a.Code != rightCode:
		fail(w, 403, tenant.KindUnauthorised, "wrong-code", fmt.Sprintf("the code is wrong; %d tries left", 5-f.tries[a.ID]))
	case !samePlan(q, plan):
		fail(w, 403, tenant.KindUnauthorised, "code-for-another-plan", "the code is for another plan")
	default:
		delete(f.challenges, a.ID)
		return true
	}
	return false
}

func samePlan(q api.ChallengeRequest, plan any) bool {
	var asked any
	switch {
	case q.Start != nil:
		asked = *q.Start
	case q.Cutover != nil:
		asked = *q.Cutover
	case q.Redirect != nil:
		asked = *q.Redirect
	case q.Delete != nil:
		asked = *q.Delete
	}
	a, err1 := json.Marshal(asked)
	b, err2 := json.Marshal(plan)
	return err1 == nil && err2 == nil && string(a) == string(b)
}

func (f *contract) command(w http.ResponseWriter, r *http.Request) {
	verb := r.PathValue("verb")
	c := api.Command{ID: "cmd" + strconv.Itoa(len(f.commands)+1), Replication: "rep1", Kind: verb, CreatedAt: time.Now()}
	switch verb {
	case "verify":
		v := tenant.Verification{
			ID: "v1", Replication: "rep1", LSN: 0x16B374D848, Clean: f.progress > 0, Rows: 10, Digest: "abcdef0123456789",
			Tables: []tenant.TableVerification{{Table: "public.accounts", SourceRows: 10, TargetRows: 10, Equal: f.progress > 0, Digest: "0011223344556677"}},
		}
		if !v.Clean {
			v.Tables[0].Differences = []tenant.RowDiff{{Key: "bid=3, aid=17", Kind: "different", Shard: "eu-1", Columns: []string{"abalance"}}}
			v.Schema = []tenant.SchemaDiff{{Object: "public.accounts.bid", Kind: "column-type", Source: "integer", Target: "bigint", Shard: "eu-1"}}
		}
		c.Result = raw(v)
	case "cutover":
		q := body[api.CutoverRequest](r)
		rep := api.CutoverReport{Attempt: "a1", Outcome: "target", PauseMillis: 41.7, Steps: []tenant.StepTime{{Step: "fence", Millis: 8.2}, {Step: "drain", Millis: 21}}}
		switch {
		case q.DryRun:
			rep = api.CutoverReport{Outcome: "dry_run"}
		case !f.approved(w, q.Approval, q.CutoverPlan):
			return
		case q.MaxPauseMS == 1:
			rep.Outcome, rep.Culprits = "source", []string{"pid 4711: UPDATE accounts …"}
			c.Error = &api.Problem{Kind: "timeout", Code: "cutover-restored", Detail: "the pause would have been too long", Hint: "try again"}
		case q.Rehearse:
			rep.Outcome = "rehearsed"
			rep.Steps = []tenant.StepTime{
				{Step: "prelock", Millis: 210},
				{Step: "fence", Millis: 8, AtMillis: 210, Pause: true},
				{Step: "drain", Millis: 24, AtMillis: 218, Pause: true},
				{Step: "sequences", Millis: 0.1, AtMillis: 242, Pause: true},
			}
		}
		c.Result = raw(rep)
	case "rollback":
		fail(w, 409, tenant.KindConflict, "wrong-phase", "there is nothing to roll back")
		return
	}
	f.commands[c.ID] = c
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(c)
}

// events sends three, the connection breaking after the second.
func (f *contract) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	after, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	f.connects++
	phases := []tenant.Phase{tenant.Preparing, tenant.Copying, tenant.InSync}
	for n := after + 1; n <= len(phases) && (f.connects > 1 || n <= 2); n++ {
		_, _ = fmt.Fprintf(w, "id: %d\ndata: {\"specversion\":\"1.0\",\"type\":\"dev.rehome.replication.phase\",\"sequence\":%d,\"data\":{\"from\":\"created\",\"to\":%q}}\n\n", n, n, phases[n-1])
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, kind tenant.Kind, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Status: status, Detail: detail, Code: code, Kind: kind.String(), Hint: "what to do about " + strings.ReplaceAll(code, "-", " ")})
}

func body[T any](r *http.Request) T {
	var v T
	_ = json.NewDecoder(r.Body).Decode(&v)
	return v
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
