package redirect

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// problem is an RFC 9457 problem document, with the members that the API's have, and where the database moved to.
type problem struct {
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Detail  string `json:"detail"`
	Code    string `json:"code"`
	Kind    string `json:"kind"`
	Hint    string `json:"hint,omitempty"`
	MovedTo string `json:"moved_to,omitempty"`
}

// refuse answers with a problem document. It has no body for HEAD, which net/http sees to.
func refuse(w http.ResponseWriter, status int, kind tenant.Kind, code, detail, hint string) {
	writeProblem(w, problem{Status: status, Kind: kind.String(), Code: code, Detail: detail, Hint: hint})
}

func writeProblem(w http.ResponseWriter, p problem) {
	p.Title = http.StatusText(p.Status)
	body, err := json.Marshal(p)
	if err != nil { // of strings and an int: cannot be
		body = []byte(`{}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone
}

// retryAfter sets Retry-After in whole seconds, at least 1.
func retryAfter(w http.ResponseWriter, d time.Duration) {
	seconds := int((d + time.Second - 1) / time.Second)
	w.Header().Set("Retry-After", strconv.Itoa(max(seconds, 1)))
}
