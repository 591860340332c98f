package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxEvent bounds one event: the largest carries the progress of some thousand tables.
	maxEvent = 8 << 20
	// silentFor ends a connection on which nothing comes: the server sends a comment every 15 s, so it is dead.
	silentFor = time.Minute
)

// Event is one server-sent event: its id, and the CloudEvents object as it was sent.
type Event struct {
	ID   string
	Data json.RawMessage
}

// errStop ends a stream from inside its function.
var errStop = errors.New("stop reading the stream")

// Stop is returned by a stream's function to end it without an error.
func Stop() error { return errStop }

// Stream reads server-sent events (HTML Living Standard §9.2) and calls fn for each, in order and once: it reconnects
// with Last-Event-ID after the last one that fn took, and drops what the server then sends again. It returns when fn
// fails, ctx ends, the server refuses, or none answers for as long as a request would be made again; a stream that stood
// once is taken up again until its reader stops, unless the client is a patient one.
func (c *Client) Stream(ctx context.Context, path string, query url.Values, after string, fn func(Event) error) error {
	again, last, stood := c.attempts(), after, false
	for {
		err := c.streamOnce(ctx, path, query, last, func(e Event) error {
			again.wait.Reset()
			if seen(last, e.ID) {
				return nil
			}
			if len(e.Data) > 0 {
				if err := fn(e); err != nil {
					return &fnError{err}
				}
			}
			if e.ID != "" {
				last = e.ID
			}
			return nil
		}, func() {
			stood = true
			again.answered()
			c.contact.heard(true)
		})
		if own, ok := errors.AsType[*fnError](err); ok {
			if errors.Is(own.err, errStop) {
				return nil
			}
			return own.err
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err == nil { // an orderly end
			if err := c.sleep(ctx, again.wait.NextBackOff()); err != nil {
				return err
			}
			continue
		}
		r, ok := errors.AsType[*retryable](err)
		if !ok {
			return err
		}
		if err := again.next(ctx, r, stood && c.patience == nil); err != nil {
			return err
		}
	}
}

// fnError tells the caller's failure from the stream's.
type fnError struct{ err error }

func (e *fnError) Error() string { return e.err.Error() }

// seen reports whether an event with this id was delivered before. Ids are numbers that rise.
func seen(last, id string) bool {
	l, err1 := strconv.ParseInt(last, 10, 64)
	n, err2 := strconv.ParseInt(id, 10, 64)
	return err1 == nil && err2 == nil && n <= l
}

// streamOnce reads one connection to its end. An orderly end by the server is nil: it stops or its proxy has had enough.
func (c *Client) streamOnce(ctx context.Context, path string, query url.Values, last string, fn func(Event) error, opened func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(silentFor, func() { cancel(context.DeadlineExceeded) })
	defer silence.Stop()
	req, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Cache-Control", "no-cache")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what can be read of a refusal explains it
		return c.statusError(resp, b)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return notRehome(c.base)
	}
	opened()
	return c.readEvents(ctx, &heard{r: resp.Body, silence: silence}, fn)
}

// heard puts the end of a silent connection off with each read.
type heard struct {
	r       io.Reader
	silence *time.Timer
}

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.silence.Reset(silentFor)
	return n, err
}

// readEvents parses the stream. An event that its connection did not finish with an empty line is not delivered.
func (c *Client) readEvents(ctx context.Context, r io.Reader, fn func(Event) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxEvent)
	var e Event
	var data []string
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			if data != nil || e.ID != "" {
				e.Data = json.RawMessage(strings.Join(data, "\n"))
				if len(e.Data) > 0 && !json.Valid(e.Data) {
					return notRehome(c.base)
				}
				if err := fn(e); err != nil {
					return err
				}
			}
			e, data = Event{}, nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			data = append(data, value)
		case "id":
			e.ID = value
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return tenant.Errorf(tenant.KindInternal, "event-too-long", "", "an event of %s is longer than %d MB", c.base.Host, maxEvent>>20)
	}
	if sc.Err() != nil {
		return c.transportError(ctx, sc.Err())
	}
	return nil
}
