package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rehomedb/rehome/progress"
)

// standardWebhook checks a request as a receiver does that was written from the specification, not from our code
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, "Verifying signatures"). It
// returns which of the secrets have signed.
func standardWebhook(h http.Header, body []byte, now time.Time, secrets ...string) ([]int, error) {
	id, stamp := h.Get("webhook-id"), h.Get("webhook-timestamp")
	sec, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || id == "" || strings.Contains(id, ".") {
		return nil, fmt.Errorf("id %q, timestamp %q", id, stamp)
	}
	if d := now.Sub(time.Unix(sec, 0)).Abs(); d > 5*time.Minute {
		return nil, fmt.Errorf("the timestamp is %s off", d)
	}
	var by []int
	for n, secret := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil {
			return nil, err
		}
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write([]byte(id + "." + stamp + "."))
		_, _ = mac.Write(body)
		want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for s := range strings.SplitSeq(h.Get("webhook-signature"), " ") {
			if hmac.Equal([]byte(s), []byte(want)) {
				by = append(by, n)
			}
		}
	}
	if len(by) == 0 {
		return nil, fmt.Errorf("no signature of %q is right", h.Get("webhook-signature"))
	}
	return by, nil
}

// The example that the specification publishes for implementers.
func TestStandardWebhookVector(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	h := http.Header{}
	h.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	h.Set("webhook-timestamp", "1614265330")
	h.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
	at := time.Unix(1614265330, 0)
	if _, err := standardWebhook(h, []byte(`{"test": 2432232314}`), at, secret); err != nil {
		t.Error(err)
	}
	if _, err := standardWebhook(h, []byte(`{"test": 2432232315}`), at, secret); err == nil {
		t.Error("another body passes")
	}
}

// received is one request at a receiver.
type received struct {
	id    string
	by    []int // secrets that have signed
	event progress.Event
	body  string
}

// receiver takes webhooks and refuses those that are not signed as they should.
type receiver struct {
	t   *testing.T
	url string
	now func() time.Time
	// answer says what to answer to the n-th request, from 1; nil: 200.
	answer func(n int, w http.ResponseWriter, r *http.Request)

	mu      sync.Mutex
	secrets []string
	got     []received
	bad     []string
}

func newReceiver(t *testing.T, now func() time.Time, answer func(int, http.ResponseWriter, *http.Request)) *receiver {
	t.Helper()
	r := &receiver{t: t, now: now, answer: answer}
	srv := httptest.NewServer(r)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, b := range r.bad {
			t.Errorf("a request that is not signed as it should: %s", b)
		}
	})
	r.url = srv.URL + "/hook/secret-part"
	return r
}

func (r *receiver) knows(secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = append(r.secrets, secret)
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	r.mu.Lock()
	x := received{id: q.Header.Get("webhook-id"), body: string(body)}
	if err == nil {
		x.by, err = standardWebhook(q.Header, body, r.now(), r.secrets...)
	}
	if err == nil {
		err = json.Unmarshal(body, &x.event)
	}
	if err == nil && (q.Method != http.MethodPost || !strings.HasPrefix(q.Header.Get("Content-Type"), "application/cloudevents+json")) {
		err = fmt.Errorf("%s %s", q.Method, q.Header.Get("Content-Type"))
	}
	if err != nil {
		r.bad = append(r.bad, err.Error())
	}
	r.got = append(r.got, x)
	n := len(r.got)
	r.mu.Unlock()
	if r.answer != nil {
		r.answer(n, w, q)
	}
}

func (r *receiver) all() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.got...)
}

// counts is how often each event came.
func (r *receiver) counts() map[string]int {
	m := map[string]int{}
	for _, x := range r.all() {
		m[x.id]++
	}
	return m
}
