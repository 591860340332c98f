package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// place is a server that can be away, its client, and a clock that only pauses move.
type place struct {
	*Client
	down     atomic.Bool // refuses connections
	requests atomic.Int32

	mu    sync.Mutex
	at    time.Duration // since the beginning
	notes []string
	then  func(time.Duration) // called with the time after each pause
}

func newPlace(t *testing.T, h http.HandlerFunc) *place {
	t.Helper()
	p := &place{then: func(time.Duration) {}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if p.down.Load() {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	c, err := New(Options{Base: srv.URL, Bearer: bearer, HTTP: &http.Client{Transport: transport}, Note: func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.notes = append(p.notes, fmt.Sprintf(format, args...))
	}})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Unix(1_700_000_000, 0)
	c.now = func() time.Time { return begin.Add(p.elapsed()) }
	c.sleep = func(ctx context.Context, d time.Duration) error {
		p.mu.Lock()
		p.at += d
		p.mu.Unlock()
		p.then(p.elapsed())
		return context.Cause(ctx)
	}
	p.Client = c
	return p
}

func (p *place) elapsed() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// answered makes the installation known to its client.
func (p *place) answered(t *testing.T) {
	t.Helper()
	if _, err := p.Shards(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.requests.Store(0)
}

func empty(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `[]`) }

// between fails unless the time that passed on the test's clock is within the bounds.
func (p *place) between(t *testing.T, least, most time.Duration) {
	t.Helper()
	if e := p.elapsed(); e < least || e > most {
		t.Errorf("it went on for %s, want %s to %s", e, least, most)
	}
}

// unavailable is what an error must be for the exit code of a server that is not there.
func unavailable(t *testing.T, err error) *tenant.Error {
	t.Helper()
	e, ok := errors.AsType[*tenant.Error](err)
	if !ok || e.Kind != tenant.KindUnavailable || e.Hint == "" {
		t.Fatalf("got %v", err)
	}
	return e
}

func TestMistypedURLIsToldSoon(t *testing.T) {
	t.Parallel()
	p := newPlace(t, empty)
	p.down.Store(true)
	_, err := p.Patient(Patience{GoesOn: "it goes on", LookAgain: "look"}).Shards(t.Context())
	if e := unavailable(t, err); !strings.Contains(e.Hint, "check the URL") || !strings.Contains(e.Message, "connection refused") {
		t.Errorf("got %v, hint %s", e, e.Hint)
	}
	p.between(t, reachFor-longestPause*2, reachFor)
	if len(p.notes) != 1 || strings.Contains(p.notes[0], "goes on") {
		t.Errorf("notes: %q", p.notes)
	}
}

func TestRestartIsOutlasted(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, `{"name":"eu-1"}`)
			return
		}
		empty(w, r)
	})
	p.answered(t)
	p.down.Store(true)
	p.then = func(at time.Duration) { p.down.Store(at < 35*time.Second) } // a drain and a start
	if s, err := p.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"}); err != nil || s.Name != "eu-1" {
		t.Fatalf("got %v, %v", s, err)
	}
	if len(p.notes) != 1 || p.requests.Load() != 1 {
		t.Errorf("%d requests, notes %q", p.requests.Load(), p.notes)
	}
	p.then = func(time.Duration) {}
	p.down.Store(true)
	began := p.elapsed()
	_, err := p.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"})
	_ = unavailable(t, err)
	p.between(t, began+restartFor-longestPause*2, began+restartFor)
	if len(p.notes) != 2 {
		t.Errorf("another absence is another note: %q", p.notes)
	}
}

// What was worked on for long before its connection broke has all of the time.
func TestTimeCountsFromTheFailure(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		var p *place
		p = newPlace(t, func(w http.ResponseWriter, r *http.Request) {
			if p.requests.Load() > 1 || r.Method == http.MethodGet {
				empty(w, r)
				return
			}
			p.mu.Lock()
			p.at += 4 * time.Minute
			p.mu.Unlock()
			p.down.Store(true)
			w.WriteHeader(http.StatusBadGateway)
		})
		if known {
			p.answered(t)
		}
		p.then = func(at time.Duration) { p.down.Store(at < 4*time.Minute+reachFor/2) }
		if _, err := send[[]int](t.Context(), p.Client, http.MethodPost, "/v1/preflight", nil); err != nil {
			t.Errorf("known %t: %v", known, err)
		}
	}
}

// What a try whose answer was lost has deleted is not missed by the next.
func TestDeletedByALostTry(t *testing.T) {
	t.Parallel()
	var p *place
	p = newPlace(t, func(w http.ResponseWriter, _ *http.Request) {
		if p.requests.Load() == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		problem(w, api.Problem{Status: 404, Kind: tenant.KindNotFound.String(), Code: "shard-not-found", Detail: "there is no shard eu-1"})
	})
	if err := p.RemoveShard(t.Context(), "eu-1"); err != nil || p.requests.Load() != 2 {
		t.Errorf("%d requests, %v", p.requests.Load(), err)
	}
	if err := p.RemoveShard(t.Context(), "eu-1"); tenant.AsError(err).Kind != tenant.KindNotFound {
		t.Errorf("one that is not there: %v", err)
	}
}

func TestWhichAnswersAreTriedAgain(t *testing.T) {
	t.Parallel()
	doc := func(status int, kind tenant.Kind, code string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			problem(w, api.Problem{Status: status, Kind: kind.String(), Code: code, Detail: "d", Hint: "h"})
		}
	}
	bare := func(status int, header ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	after := func(v string, f func(http.ResponseWriter)) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.Header().Set("Retry-After", v); f(w) }
	}
	for _, c := range []struct {
		name         string
		answer       func(http.ResponseWriter)
		again, looks bool // by who asks for something; by who only looks
		least        time.Duration
	}{
		{"bare 502", bare(502), true, true, 0},
		{"bare 503", bare(503), true, true, 0},
		{"bare 504", bare(504), true, true, 0},
		{"a proxy's JSON", func(w http.ResponseWriter) { problem(w, api.Problem{Status: 503, Title: "no healthy upstream"}) }, true, true, 0},
		{"stopping", doc(503, tenant.KindUnavailable, "stopping"), true, true, 0},
		{"timed out", doc(503, tenant.KindUnavailable, "timed-out"), true, true, 0},
		{"database away", after("2", doc(503, tenant.KindUnavailable, "database-unreachable")), true, true, 2 * time.Second},
		{"a source away", doc(503, tenant.KindUnavailable, "unknown-host"), false, true, 0},
		{"Retry-After", after("30", bare(503)), true, true, 30 * time.Second},
		{"Retry-After as a date", after(time.Unix(1_700_000_020, 0).UTC().Format(http.TimeFormat), bare(503)), true, true, 20 * time.Second},
		{"Retry-After too long", after("90", bare(503)), false, true, 90 * time.Second},
		{"rate", after("60", doc(429, tenant.KindUnauthorised, "rate-limited")), false, false, 0},
		{"rate, for a moment", after("3", bare(429)), true, true, 3 * time.Second},
		{"restored", doc(504, tenant.KindTimeout, "restored"), false, false, 0},
		{"401", doc(401, tenant.KindUnauthorised, "bad-credentials"), false, false, 0},
		{"403", doc(403, tenant.KindUnauthorised, "wrong-code"), false, false, 0},
		{"404", doc(404, tenant.KindNotFound, "database-not-found"), false, false, 0},
		{"409", doc(409, tenant.KindConflict, "wrong-phase"), false, false, 0},
		{"422", doc(422, tenant.KindInvalid, "bad-email"), false, false, 0},
		{"500", bare(500), false, false, 0},
	} {
		for _, patient := range []bool{false, true} {
			var p *place
			var failing atomic.Bool
			p = newPlace(t, func(w http.ResponseWriter, r *http.Request) {
				if failing.Load() && p.requests.Load() == 1 {
					c.answer(w)
					return
				}
				empty(w, r)
			})
			p.answered(t)
			failing.Store(true)
			asked, want := p.Client, c.again
			if patient {
				asked, want = p.Patient(Patience{}), c.looks
			}
			_, err := asked.Shards(t.Context())
			if got := p.requests.Load() == 2; got != want || (err == nil) != want {
				t.Errorf("%s, patient %t: asked again %t, want %t; %v", c.name, patient, got, want, err)
			}
			if want && p.elapsed() < c.least {
				t.Errorf("%s, patient %t: asked again after %s, want %s", c.name, patient, p.elapsed(), c.least)
			}
		}
	}
}

// The answer of an earlier try is waited for as long as that try would have.
func TestRequestInProgress(t *testing.T) {
	t.Parallel()
	var ready atomic.Bool
	p := newPlace(t, func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			problem(w, api.Problem{Status: 409, Code: "request-in-progress", Kind: "conflict", Detail: "it is worked on", Hint: "ask again"})
			return
		}
		_, _ = io.WriteString(w, `{"name":"eu-1"}`)
	})
	p.then = func(at time.Duration) { ready.Store(at > workedOnFor-time.Minute) }
	if s, err := p.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"}); err != nil || s.Name != "eu-1" {
		t.Fatalf("got %v, %v", s, err)
	}
	if len(p.notes) != 1 {
		t.Errorf("notes: %q", p.notes)
	}
	p.then = func(time.Duration) {}
	ready.Store(false)
	began := p.elapsed()
	_, err := p.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"})
	var e *tenant.Error
	if !errors.As(err, &e) || e.Code != "request-in-progress" || !strings.Contains(e.Hint, "rehome audit") {
		t.Fatalf("got %v", err)
	}
	p.between(t, began+workedOnFor-longestPause*2, began+workedOnFor)
}

func TestPatientOutlastsMinutes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := newPlace(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/commands/"):
			answerCommand(w, api.Command{ID: "c1", Kind: "cutover", FinishedAt: &now})
		default:
			empty(w, r)
		}
	})
	p.answered(t)
	p.down.Store(true)
	p.then = func(at time.Duration) { p.down.Store(at < patientFor-20*time.Second) }
	cmd, err := p.Wait(t.Context(), api.Command{ID: "c1", Kind: "cutover"})
	if err != nil || cmd.FinishedAt == nil {
		t.Fatalf("got %+v, %v", cmd, err)
	}
	if len(p.notes) != 1 || !strings.Contains(p.notes[0], "the cutover itself goes on at the server") {
		t.Errorf("notes: %q", p.notes)
	}
}

// Two requests of one patient client say once that the server does not answer.
func TestPatientGivesUp(t *testing.T) {
	t.Parallel()
	p := newPlace(t, empty)
	p.answered(t)
	p.down.Store(true)
	patient := p.Patient(Patience{GoesOn: "the verify itself goes on at the server", LookAgain: "look again with: rehome verify r1 --last"})
	for range 2 {
		began := p.elapsed()
		_, err := patient.Progress(t.Context(), "r1")
		if e := unavailable(t, err); !strings.Contains(e.Hint, "rehome verify r1 --last") || !strings.Contains(e.Message, "3 minutes") {
			t.Errorf("got %v, hint %s", e, e.Hint)
		}
		p.between(t, began+patientFor-longestPause*2, began+patientFor)
	}
	if len(p.notes) != 1 || !strings.Contains(p.notes[0], "the verify itself goes on") {
		t.Errorf("notes: %q", p.notes)
	}
}

func answerCommand(w http.ResponseWriter, cmd api.Command) {
	_, _ = fmt.Fprintf(w, `{"id":%q,"kind":%q,"finished_at":%q}`, cmd.ID, cmd.Kind, cmd.FinishedAt.Format(time.RFC3339))
}

// A PUT's code is used once, so what may have used it is not sent again; what refused the connection has not.
func TestPutAndRestart(t *testing.T) {
	t.Parallel()
	var starts, proxy atomic.Bool
	p := newPlace(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && !starts.Load() {
			if proxy.Load() { // its server went in the middle of the request
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			problem(w, api.Problem{Status: 503, Kind: "unavailable", Code: "stopping", Detail: "d"})
			return
		}
		if r.Method == http.MethodPut {
			_, _ = io.WriteString(w, `{}`)
			return
		}
		empty(w, r)
	})
	p.answered(t)
	if _, err := p.SetRedirect(t.Context(), api.RedirectRequest{}); err == nil || p.requests.Load() != 1 {
		t.Errorf("%d requests, %v", p.requests.Load(), err)
	}
	proxy.Store(true)
	if _, err := p.SetRedirect(t.Context(), api.RedirectRequest{}); err == nil || p.requests.Load() != 2 {
		t.Errorf("behind a proxy: %d requests, %v", p.requests.Load(), err)
	}
	starts.Store(true)
	p.down.Store(true)
	p.then = func(at time.Duration) { p.down.Store(at < 20*time.Second) }
	if _, err := p.SetRedirect(t.Context(), api.RedirectRequest{}); err != nil {
		t.Error(err)
	}
}

// A stream that stood is taken up until its reader stops; one of a patient client until it gives up.
func TestStreamAndRestart(t *testing.T) {
	t.Parallel()
	var p *place
	var n atomic.Int32
	p = newPlace(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		write(w, event(int(n.Add(1))))
		p.down.Store(true)
	})
	p.then = func(at time.Duration) { p.down.Store(at < 10*time.Minute) }
	got := 0
	err := p.ReplicationEvents(t.Context(), "r1", "", func(Event) error {
		if got++; got == 2 {
			return Stop()
		}
		return nil
	})
	if err != nil || got != 2 || len(p.notes) != 1 {
		t.Fatalf("%d events, %v, notes %q", got, err, p.notes)
	}
	p.then = func(time.Duration) {}
	p.down.Store(false)
	began := p.elapsed()
	err = p.Patient(Patience{LookAgain: "look"}).ReplicationEvents(t.Context(), "r1", "", func(Event) error { return nil })
	if e := unavailable(t, err); e.Hint != "look" {
		t.Errorf("hint %s", e.Hint)
	}
	p.between(t, began+patientFor-longestPause*2, began+patientFor+longestPause)
}

func TestTLSFailuresAreToldAtOnce(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(empty))
	t.Cleanup(plain.Close)
	secret := httptest.NewUnstartedServer(http.HandlerFunc(empty))
	secret.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshake that fails is meant
	secret.StartTLS()
	t.Cleanup(secret.Close)
	for url, code := range map[string]string{"https://" + plain.Listener.Addr().String(): "no-tls", secret.URL: "bad-certificate"} {
		c, err := New(Options{Base: url, Bearer: bearer})
		if err != nil {
			t.Fatal(err)
		}
		c.sleep = func(context.Context, time.Duration) error {
			t.Errorf("%s: it is tried again", url)
			return errors.New("tried again")
		}
		_, err = c.Shards(t.Context())
		var e *tenant.Error
		if !errors.As(err, &e) || e.Code != code || e.Kind != tenant.KindUnavailable {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

// A host that has answered may be unknown for a while, as when a name moves.
func TestKnownHostMayVanishForAWhile(t *testing.T) {
	t.Parallel()
	p := newPlace(t, empty)
	p.answered(t)
	lost := fmt.Errorf("dial: %w", &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true})
	if _, ok := errors.AsType[*retryable](p.transportError(t.Context(), lost)); !ok {
		t.Error("it is not tried again")
	}
	if _, ok := errors.AsType[*retryable](newPlace(t, empty).transportError(t.Context(), lost)); ok {
		t.Error("a host that never was is tried again")
	}
}
