package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
)

// sseReader reads server-sent events from one connection.
type sseReader struct {
	t    *testing.T
	scan *bufio.Scanner
	end  func()
}

func (b *bundle) watch(path, last string) *sseReader {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	withKey(testSecret)(req)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	end := func() { cancel(); _ = resp.Body.Close() }
	b.t.Cleanup(end)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		b.t.Fatalf("got %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &sseReader{t: b.t, scan: bufio.NewScanner(resp.Body), end: end}
}

// next is the next event; false when the stream has ended.
func (r *sseReader) next() (id int64, e progress.Event, ok bool) {
	r.t.Helper()
	for r.scan.Scan() {
		line := r.scan.Text()
		switch {
		case strings.HasPrefix(line, "id: "):
			var err error
			if id, err = strconv.ParseInt(line[4:], 10, 64); err != nil {
				r.t.Fatal(err)
			}
		case strings.HasPrefix(line, "data: "):
			if err := json.Unmarshal([]byte(line[6:]), &e); err != nil {
				r.t.Fatal(err)
			}
		case line == "" && e.ID != "":
			return id, e, true
		}
	}
	return 0, e, false
}

func (b *bundle) append(stream, event string) {
	b.t.Helper()
	if _, err := b.events.Append(b.t.Context(), b.pool, progress.Entry{Stream: stream, Kind: "replication", ID: stream, Event: event, Data: map[string]int{"n": 1}}); err != nil {
		b.t.Fatal(err)
	}
}

func TestStreamResumes(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID + "/events"
	s := b.watch(path, "")
	id, e, _ := s.next()
	if id != 1 || e.Sequence != 1 || e.Stream != r.ID || !strings.HasSuffix(e.Type, "created") {
		t.Fatalf("got %d %+v", id, e)
	}
	b.append(r.ID, "progress") // while it is watched
	if id, _, _ := s.next(); id != 2 {
		t.Fatalf("got %d", id)
	}
	s.end()
	b.append(r.ID, "progress") // while nobody watches
	b.append(r.ID, "progress")
	s = b.watch(path, "2")
	for want := int64(3); want <= 4; want++ {
		if id, e, ok := s.next(); !ok || id != want || e.Sequence != want {
			t.Fatalf("want %d, got %d %+v", want, id, e)
		}
	}
	if a := b.do("GET", path, nil, nil, withHeader("Last-Event-ID", "x")); a.problem.Code != "bad-event-id" {
		t.Errorf("got %s", a.body)
	}
}

func TestInstallationStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append("one", "before")
	s := b.watch("/v1/events", "") // from now on
	b.append("two", "progress")
	id, e, ok := s.next()
	if !ok || e.Stream != "two" {
		t.Fatalf("got %d %+v", id, e)
	}
	all := b.watch("/v1/events?after=0", "")
	if _, e, _ := all.next(); e.Stream != "one" {
		t.Fatalf("got %+v", e)
	}
	some := b.watch("/v1/events?after=0&subject="+"rehome.v1.*.*.replication.two.>", "")
	if got, e, _ := some.next(); got != id || e.Stream != "two" {
		t.Fatalf("got %d %+v", got, e)
	}
}

func TestStopDrains(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	s := b.watch("/v1/replications/"+r.ID+"/events", "1")
	var c struct{ ID string }
	b.must("POST", "/v1/replications/"+r.ID+"/pause", nil, &c)
	polled := make(chan int, 1)
	go func() {
		status, _ := b.try("GET", "/v1/commands/"+c.ID+"?wait=30")
		polled <- status
	}()
	b.eventually("stream and long poll are there", func() bool {
		_, body := b.get("/metrics")
		return strings.Contains(body, "rehome_api_requests_in_flight 2")
	})
	began := time.Now()
	if err := b.stop(); err != nil {
		t.Fatalf("stop: %v\n%s", err, b.logs)
	}
	if status := <-polled; status != http.StatusOK || time.Since(began) > 20*time.Second {
		t.Errorf("the long poll ended with %d after %s", status, time.Since(began))
	}
	for {
		if _, _, ok := s.next(); !ok {
			break
		}
	}
	if status, _ := b.get("/livez"); status != 0 {
		t.Errorf("still answers: %d", status)
	}
	for _, bad := range []string{"request failed", "panicked", "part ended with an error", "cut what did not finish"} {
		if strings.Contains(b.logs.String(), bad) {
			t.Errorf("%s while stopping:\n%s", bad, b.logs)
		}
	}
}

func TestStreamEndsWithItsKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.client(api.ClientRequest{})
	id, _, _ := strings.Cut(key, ":")
	p := &principal{actor: owner, client: id}
	ctx := withRequest(t.Context(), &request{principal: p})
	if err := b.stillValid(ctx); err != nil {
		t.Fatal(err)
	}
	b.must("DELETE", "/v1/clients/"+id, nil, nil)
	if err := b.stillValid(ctx); !errors.Is(err, errBadCredentials) {
		t.Errorf("a revoked key goes on reading: %v", err)
	}
	if err := b.stillValid(withRequest(t.Context(), &request{principal: &principal{client: operatorName, operator: true}})); err != nil {
		t.Errorf("the operator: %v", err)
	}
}
