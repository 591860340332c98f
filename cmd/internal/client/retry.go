package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/rehomedb/rehome/tenant"
)

// How long a request is made again. Each is counted from the first of the failures that follow each other, so that what
// had been worked on for minutes when its connection broke has all of it.
const (
	// reachFor is for an installation that has not answered this client yet: its URL may be wrong, and who mistyped it is
	// told within seconds. A server that starts listens within 15 s.
	reachFor = 15 * time.Second
	// restartFor is for one that has answered: it may drain for 20 s and start for 15 s, and a proxy before it needs some
	// seconds to notice.
	restartFor = 45 * time.Second
	// patientFor is for who only looks at what goes on at the server: a machine that boots anew, or a control database
	// that fails over, is back within it, and a program that waits does not hang for good.
	patientFor = 3 * time.Minute
	// workedOnFor is for the answer to an earlier try of the same request that the server still works on: as long as that
	// try would have waited for it.
	workedOnFor = answerWithin
	// glimpseWithin bounds one try of a patient client: the longest poll, and a slow moment of the server. A connection
	// that died without a word is noticed so.
	glimpseWithin = commandWait + 20*time.Second
	// longestPause between tries, so that a client is back soon after its server is.
	longestPause = 5 * time.Second
)

// Patience is for requests that only look at what goes on at the server by itself.
type Patience struct {
	GoesOn    string // told once when the server does not answer: "the cutover itself goes on at the server"
	LookAgain string // the hint when it is given up: which command looks again
}

// Patient is the same client for requests that only look: they are made again for minutes. It says once that the server
// does not answer, whichever of both notices first.
func (c *Client) Patient(p Patience) *Client {
	patient := *c
	patient.patience = &p
	return &patient
}

// contact is what is known of the server's being there. A client shares it with its patient copies.
type contact struct {
	mu       sync.Mutex
	answered bool // ever
	told     bool // the person knows that it does not answer now
}

// heard notes that the installation has said something; well, that it is at work.
func (t *contact) heard(well bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answered = true
	if well {
		t.told = false
	}
}

func (t *contact) known() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.answered
}

// tell reports whether the person is to be told now that the server does not answer.
func (t *contact) tell() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.told
	t.told = true
	return !was
}

// retryable is a failure after which the same request may succeed.
type retryable struct {
	err   *tenant.Error
	after time.Duration // at least so long from now; from Retry-After
	sent  bool          // the request may have reached the server and had its effect
	busy  bool          // an earlier try of the request is still worked on
}

func (r *retryable) Error() string { return r.err.Error() }

// attempts bounds for how long one request is made again.
type attempts struct {
	c     *Client
	wait  *backoff.ExponentialBackOff
	began time.Time
	away  time.Time // since when no server answers; zero: it does
	met   bool      // one had taken the request before
	busy  time.Time // since when an earlier try is worked on
}

func (c *Client) attempts() *attempts {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = c.pause, longestPause
	return &attempts{c: c, wait: wait, began: c.now()}
}

// next pauses before the next try, or says why there is none. endless is for a stream that stood once.
func (a *attempts) next(ctx context.Context, r *retryable, endless bool) error {
	now := a.c.now()
	since, limit := a.since(now, r)
	d := max(a.wait.NextBackOff(), r.after)
	if !endless && now.Sub(since)+d > limit {
		return a.c.giveUp(r, limit)
	}
	if r.busy && since.Equal(now) {
		a.c.note("an earlier try of this request is still worked on; its answer is waited for")
	} else if !r.busy && a.c.contact.tell() {
		a.c.noteAway(r.err, limit, endless)
	}
	return a.c.sleep(ctx, d)
}

// since is what the time is counted from, and how long it may take.
func (a *attempts) since(now time.Time, r *retryable) (time.Time, time.Duration) {
	if r.busy {
		a.away = time.Time{}
		if a.busy.IsZero() {
			a.busy = now
		}
		return a.busy, workedOnFor
	}
	if a.away.IsZero() {
		a.away = now
	}
	a.met = a.met || r.sent
	switch {
	case !a.c.contact.known() && !a.met:
		return a.began, reachFor
	case !a.c.contact.known():
		return a.away, reachFor
	case a.c.patience != nil:
		return a.away, patientFor
	}
	return a.away, restartFor
}

// answered begins anew: what fails from now on is another absence.
func (a *attempts) answered() { a.away = time.Time{} }

func (c *Client) noteAway(err *tenant.Error, limit time.Duration, endless bool) {
	goesOn, upTo := "", " for up to "+plain(limit)
	if c.patience != nil && c.patience.GoesOn != "" && c.contact.known() {
		goesOn = c.patience.GoesOn + ", "
	}
	if endless {
		upTo = ""
	}
	c.note("%v; %strying again%s", err, goesOn, upTo)
}

// giveUp is the last failure, with what the person does now.
func (c *Client) giveUp(r *retryable, limit time.Duration) error {
	e := *r.err
	switch {
	case r.busy:
		e.Hint = fmt.Sprintf("it may still succeed there, after %s and more: look with rehome audit before you ask for it once more", plain(limit))
	case c.patience != nil && c.patience.LookAgain != "" && c.contact.known():
		e.Message = fmt.Sprintf("%s, for %s now", e.Message, plain(limit))
		e.Hint = c.patience.LookAgain
	}
	return &e
}

// plain writes 15s, 45s, 3m.
func plain(d time.Duration) string {
	if d%time.Minute == 0 {
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

// errNoAnswer ends one try.
var errNoAnswer = errors.New("no answer in time")

// tryWithin bounds one try of a request.
func (c *Client) tryWithin() time.Duration {
	if c.patience != nil {
		return glimpseWithin
	}
	return answerWithin
}

// pause sleeps unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
