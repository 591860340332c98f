package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func write(w http.ResponseWriter, text string) {
	_, _ = io.WriteString(w, text)
	_ = http.NewResponseController(w).Flush()
}

func event(n int) string {
	return fmt.Sprintf("id: %d\nevent: message\ndata: {\"sequence\": %d}\n\n", n, n)
}

// The connection is cut at every place: inside an event, after one, before the first. Each event arrives once, in order.
func TestStreamResumesWithoutGapsOrDuplicates(t *testing.T) {
	t.Parallel()
	const last = 20
	cuts := 0
	var asked []string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("Last-Event-ID")
		asked = append(asked, id)
		after, _ := strconv.Atoi(id)
		w.Header().Set("Content-Type", "text/event-stream")
		write(w, ": rehome\n\n")
		cuts++
		if cuts%3 == 0 { // an over-careful server repeats what it has sent
			after = max(after-2, 0)
		}
		for n := after + 1; n <= min(after+cuts%5, last); n++ {
			write(w, event(n))
		}
		if half := event(after + cuts%5 + 1); cuts%2 == 0 {
			write(w, half[:len(half)-1-cuts%len(half)])
		}
	})
	var got []int
	err := c.ReplicationEvents(t.Context(), "r1", "", func(e Event) error {
		n, err := strconv.Atoi(e.ID)
		if err != nil || string(e.Data) != fmt.Sprintf(`{"sequence": %d}`, n) {
			t.Errorf("event %q: %s", e.ID, e.Data)
		}
		if got = append(got, n); n == last {
			return Stop()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]int, last)
	for i := range want {
		want[i] = i + 1
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\nasked after %v", diff, asked)
	}
	if len(asked) < 5 {
		t.Errorf("the stream was taken up only %d times", len(asked))
	}
}

func TestStreamBeginsAfter(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Last-Event-ID") != "7" || r.URL.Query().Get("after") != "7" {
			t.Errorf("asked after %q, %q", r.Header.Get("Last-Event-ID"), r.URL.RawQuery)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		write(w, event(8))
	})
	if err := c.Events(t.Context(), "", "7", func(Event) error { return Stop() }); err != nil {
		t.Fatal(err)
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	own := errors.New("own")
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/replications/none/events" {
			problem(w, api.Problem{Status: 404, Code: "no-replication", Kind: "not_found", Detail: "none"})
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		write(w, event(1))
		<-r.Context().Done()
	})
	if err := c.ReplicationEvents(t.Context(), "x", "", func(Event) error { return own }); !errors.Is(err, own) {
		t.Errorf("the function's error: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.ReplicationEvents(ctx, "x", "", func(Event) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: got %v", err)
	}
	var e *tenant.Error
	if err := c.ReplicationEvents(t.Context(), "none", "", func(Event) error { return nil }); !errors.As(err, &e) || e.Code != "no-replication" {
		t.Errorf("a refusal: got %v", err)
	}
}

// Whatever pieces the network cuts a stream into, and however it is framed, the events are the same.
func TestReadEventsFraming(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(http.ResponseWriter, *http.Request) {})
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 8).Draw(rt, "events")
		text, want := "", []string{}
		for i := 1; i <= n; i++ {
			if rapid.Bool().Draw(rt, "comment") {
				text += ": beat\n\n"
			}
			end := rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(rt, "end")
			space := rapid.SampledFrom([]string{"", " "}).Draw(rt, "space")
			text += fmt.Sprintf("id:%s%d%sdata:%s[%d,%sdata:%s1]%s%s", space, i, end, space, i, end, space, end, end)
			want = append(want, fmt.Sprintf("%d [%d,\n1]", i, i))
		}
		got := []string{}
		r := &chopped{text: text, size: rapid.IntRange(1, 9).Draw(rt, "size")}
		if err := c.readEvents(t.Context(), r, func(e Event) error { got = append(got, e.ID+" "+string(e.Data)); return nil }); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatal(diff)
		}
	})
}

type chopped struct {
	text string
	size int
}

func (c *chopped) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(p, c.text[:min(c.size, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}
