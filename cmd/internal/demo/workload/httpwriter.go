package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// httpWriter is a client of the application: it follows redirects, remembers permanent ones, and sends unacknowledged
// writes again.
type httpWriter struct {
	w      *Writers
	gen    *generator
	client *http.Client
	base   string
}

func newHTTPWriter(w *Writers, i int) *httpWriter {
	return &httpWriter{
		w: w, gen: newGenerator(w, uint64(i)+1), base: strings.TrimSuffix(w.cfg.URL, "/"),
		// A client of its own, as another user's browser has.
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: attemptTimeout},
	}
}

func (h *httpWriter) run(ctx, work context.Context) error {
	defer h.client.CloseIdleConnections()
	for h.gen.pause(ctx, h.w.cfg.Pace) {
		op := h.gen.transfer()
		if h.gen.rng.IntN(3) == 0 {
			op = h.gen.document()
		}
		if err := h.do(work, op); err != nil {
			return err
		}
	}
	return nil
}

// do sends one write until its outcome is known or the context ends.
func (h *httpWriter) do(ctx context.Context, op Op) error {
	body, err := json.Marshal(op)
	if err != nil {
		return fmt.Errorf("write %s: %w", op.Kind, err)
	}
	h.w.cfg.Ledger.Sent(op)
	h.deliver(ctx, op, body)
	return nil
}

func (h *httpWriter) deliver(ctx context.Context, op Op, body []byte) {
	started := time.Now()
	for try := 0; ; try++ {
		// From the second attempt on the outcome of the one before may be unknown. Asking first is cheap, but only "done" is
		// an answer: "not found" may be followed by a late commit, and the write must be sent again.
		if try > 0 && h.known(ctx, op) {
			h.w.stats.took(time.Since(started))
			return
		}
		switch done, reason := h.attempt(ctx, op, body); {
		case done:
			h.w.stats.took(time.Since(started))
			return
		case ctx.Err() != nil:
			return // stays unknown in the ledger
		default:
			h.w.stats.retry(reason)
		}
		if !wait(ctx, h.gen.backoff(try)) {
			return
		}
	}
}

func (h *httpWriter) known(ctx context.Context, op Op) bool {
	status, side, _, err := h.request(ctx, http.MethodGet, "/realms/"+op.Realm+"/events/"+op.ID, nil)
	if err != nil || status != http.StatusOK {
		return false
	}
	h.w.cfg.Ledger.Acknowledged(op.ID, GapHTTP, side)
	return true
}

// attempt sends a write once; reason says why it is not done.
func (h *httpWriter) attempt(ctx context.Context, op Op, body []byte) (done bool, reason string) {
	path := "/realms/" + op.Realm + "/" + string(op.Kind) + "s"
	status, side, answer, err := h.request(ctx, http.MethodPost, path, body)
	switch {
	case err != nil:
		return false, "no answer"
	case status == http.StatusCreated || status == http.StatusOK:
		h.w.cfg.Ledger.Acknowledged(op.ID, GapHTTP, side)
		return true, ""
	case status == http.StatusUnprocessableEntity:
		h.w.cfg.Ledger.Refused(op.ID)
		return true, ""
	case answer.Code != "":
		return false, strconv.Itoa(status) + " " + answer.Code
	}
	return false, strconv.Itoa(status)
}

// request follows redirects with method and body (307, 308: RFC 9110, 15.4.8 and 15.4.9).
func (h *httpWriter) request(ctx context.Context, method, path string, body []byte) (status int, side string, answer Answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, h.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", answer, fmt.Errorf("make a request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "rehome-demo-writer/1")
	resp, err := h.client.Do(req)
	if err != nil {
		return 0, "", answer, fmt.Errorf("send a request: %w", err)
	}
	defer resp.Body.Close()
	if before := resp.Request.Response; before != nil {
		h.w.stats.redirects.Add(1)
		if base, ok := strings.CutSuffix(resp.Request.URL.String(), path); ok && before.StatusCode == http.StatusPermanentRedirect {
			h.base = base
		}
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, "", answer, fmt.Errorf("read an answer: %w", err)
	}
	var problem struct {
		Answer
		MovedTo string `json:"moved_to"`
	}
	if json.Unmarshal(raw, &problem) == nil && resp.StatusCode == http.StatusMisdirectedRequest && problem.MovedTo != "" {
		h.base = strings.TrimSuffix(problem.MovedTo, "/")
	}
	return resp.StatusCode, resp.Header.Get(SideHeader), problem.Answer, nil
}
