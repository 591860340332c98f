package cli_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rehomedb/rehome/cmd/internal/cli"
)

// absent is a server that refuses connections between two moments after its first request of a kind: in process, so that
// minutes pass at once in a synctest bubble.
type absent struct {
	h     http.Handler
	after string // the request that it goes away after, as "POST /v1/…"; "" : it is never there
	away  time.Duration

	mu   sync.Mutex
	gone time.Time
}

func (a *absent) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.after == "" || !a.gone.IsZero() && time.Since(a.gone) < a.away {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	if a.gone.IsZero() && strings.HasPrefix(r.Method+" "+r.URL.Path, a.after) {
		a.gone = time.Now()
	}
	return w.Result(), nil
}

// alone is a run without a terminal whose server is absent.
func alone(t *testing.T, srv *absent, args ...string) bundle {
	b := bundle{out: &buffer{}, err: &buffer{}}
	b.env = cli.Env{
		Args: args, Stdout: b.out, Stderr: b.err, Dir: t.TempDir(), HTTP: &http.Client{Transport: srv},
		Environ: []string{"REHOME_URL=http://rehome.example", "REHOME_SECRET=" + operator},
	}
	return b
}

// A command that the server has recorded goes on without who waits for it; who waits outlasts a restart.
func TestWaitOutlastsRestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, after, says string
		away              time.Duration
		code              int
		args              []string
	}{
		{"a restart", "POST /v1/replications/rep1/pause", "the pause itself goes on at the server", 35 * time.Second, 0, []string{"pause-replication"}},
		{"minutes", "POST /v1/replications/rep1/pause", "the pause itself goes on at the server", 150 * time.Second, 0, []string{"pause-replication"}},
		{"for good", "POST /v1/replications/rep1/pause", "look again with: rehome replications rep1", time.Hour, 1, []string{"pause-replication"}},
		{"for good, elsewhere", "POST /v1/replications/rep1/pause", "look again with: rehome replications rep1 --url http://other.example", time.Hour, 1, []string{"pause-replication", "--url", "http://other.example"}},
		{"a verification for good", "POST /v1/replications/rep1/verify", "look again with: rehome verify rep1 --last", time.Hour, 1, []string{"verify"}},
		{"a view", "GET /v1/replications/rep1/progress", "replication rep1 itself goes on at the server", 35 * time.Second, 0, []string{"replication-progress", "--until", "in_sync"}},
		{"a view for good", "GET /v1/replications/rep1/progress", "look again with: rehome replication-progress rep1 --watch --until in_sync", time.Hour, 1, []string{"replication-progress", "--until", "in_sync"}},
		{"events for good", "GET /v1/replications/rep1/events", "look again with: rehome replication-progress rep1 --watch", time.Hour, 1, []string{"replication-progress", "--watch", "-o", "json"}},
		{"stats for good", "GET /v1/databases/acme/stats", "look again with: rehome stats --watch --db acme", time.Hour, 1, []string{"stats", "--watch", "--db", "acme"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newContract()
				b := alone(t, &absent{h: f, after: c.after, away: c.away}, c.args...)
				if len(c.args) > 1 && c.args[1] == "--url" {
					b.env.Environ = append(b.env.Environ, "REHOME_URL=http://other.example")
				}
				began := time.Now()
				b.run(t.Context(), t, c.code)
				if n := strings.Count(b.err.String(), "trying again"); n != 1 {
					t.Errorf("it is said %d times that the server does not answer:\n%s", n, b.err)
				}
				if !strings.Contains(b.err.String(), c.says) {
					t.Errorf("%q is not in:\n%s", c.says, b.err)
				}
				if took := time.Since(began); c.code != 0 && (took < 2*time.Minute || took > 4*time.Minute) {
					t.Errorf("it was given up after %s", took)
				}
			})
		})
	}
}

// A server that never was there is told within seconds.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := alone(t, &absent{}, "replication-progress", "--watch")
		began := time.Now()
		b.run(t.Context(), t, 1)
		for _, want := range []string{"error: rehome.example cannot be reached: connection refused", "hint: check the URL"} {
			if !strings.Contains(b.err.String(), want) {
				t.Errorf("%q is not in:\n%s", want, b.err)
			}
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
