package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// What a moment mends says so, whichever layer answers; what a person has to mend does not.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	away := &pgconn.PgError{Code: "57P03", Message: "the database system is starting up"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errStopping, "2"},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), "1"},
		{fmt.Errorf("read: %w", away), "2"},
		{&tenant.Error{Kind: tenant.KindUnavailable, Code: "database-unreachable", Message: "the database at … cannot be reached", Err: away}, ""},
		{tenant.Errorf(tenant.KindUnavailable, "unknown-host", "check its name", "the host cannot be found"), ""},
		{errKeyBusy, "1"},
		{tenant.Errorf(tenant.KindUnauthorised, codeRateLimited, "", "too many tries"), "60"},
		{tenant.Errorf(tenant.KindConflict, "wrong-phase", "", "it does not fit"), ""},
		{fmt.Errorf("preflight: %w", tookTooLong("the preflight", time.Minute)), ""},
		{errors.New("what nobody foresaw"), ""},
	} {
		p := problemOf(c.err, "id")
		w := httptest.NewRecorder()
		challengeHeader(w, p)
		if got := w.Header().Get("Retry-After"); got != c.want {
			t.Errorf("%v: Retry-After %q, want %q", c.err, got, c.want)
		}
		mux := http.NewServeMux()
		huma.Register(humago.New(mux, huma.DefaultConfig("test", "1")), huma.Operation{OperationID: "fails", Method: http.MethodGet, Path: "/fails"},
			func(context.Context, *struct{}) (*struct{}, error) {
				return nil, p
			})
		w = httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fails", nil))
		if got := w.Header().Values("Retry-After"); w.Code != p.Status || (c.want == "") != (len(got) == 0) || len(got) > 1 || (len(got) == 1 && got[0] != c.want) {
			t.Errorf("%v: an operation answers %d with Retry-After %q, want %q", c.err, w.Code, got, c.want)
		}
	}
}
