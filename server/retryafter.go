package server

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/rehomedb/rehome/tenant"
)

// How many seconds a client is asked to wait before it sends the same request again (RFC 9110 §10.2.3).
const (
	// retryRate is after too many tries: a minute, as the refusals' hints say.
	retryRate = 60
	// retrySoon is where nothing but a moment is needed: what was slow may be quick now, an answer may be there.
	retrySoon = 1
	// retryAway is while something is away: a server that stops hands over to the next, a database comes back.
	retryAway = 2
)

// retryAfter is when the same request may succeed, in seconds; 0: it is for a person to say, or never.
func (p *problem) retryAfter() int {
	switch {
	case p.Status == http.StatusTooManyRequests:
		return retryRate
	case p.Code == errKeyBusy.Code:
		return retrySoon
	case p.Status != http.StatusServiceUnavailable:
		return 0
	}
	switch p.Code {
	case "timed-out", "client-gone":
		return retrySoon
	case "stopping":
		return retryAway
	case "database-unreachable":
		// A connection string that a person gave may be wrong: the handler says that by itself, the control database's is
		// a failure that nobody named.
		if _, named := errors.AsType[*tenant.Error](p.hidden); !named {
			return retryAway
		}
	}
	return 0
}

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if n := p.retryAfter(); n > 0 {
		h.Set("Retry-After", strconv.Itoa(n))
	}
	return h
}
