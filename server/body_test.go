package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// TestLongRequest: an operation may take longer than its request's body may.
func TestLongRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.bodyTimeout = time.Second // the server that runs has its operations already
	srv := httptest.NewServer(b.apiHandler())
	t.Cleanup(srv.Close)
	b.url = srv.URL
	release := lock(t, b.control, "api_clients")
	b.must("POST", "/v1/clients", api.ClientRequest{Email: "slow@example.com"}, nil, withHeader("Idempotency-Key", "slow"))
	if err := <-release; err != nil {
		t.Error(err)
	}
	// Without a key the body is read where the deadline is set; without a body it is set for none.
	release = lock(t, b.control, "api_clients")
	b.must("POST", "/v1/clients", api.ClientRequest{Email: "slow@example.com"}, nil)
	if err := <-release; err != nil {
		t.Error(err)
	}
}

// TestStartBesideABusyControlDatabase: a server does not give up because the first answer takes a few seconds.
func TestStartBesideABusyControlDatabase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	release := lock(t, b.control, "gateways")
	b.serve(testConfig(b.control, b.mailbox, b.clock), Deps{})
	if err := <-release; err != nil {
		t.Error(err)
	}
}

// lock keeps others from writing to a table of the control database, until three seconds after one was seen to wait for it.
func lock(t *testing.T, control tenant.DSN, table string) (released <-chan error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, control.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "BEGIN; LOCK TABLE rehome_control."+table+" IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { _ = conn.Close(ctx) }() // and with it goes the lock
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			var waits bool
			const query = `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = $1::regclass)`
			if err := conn.QueryRow(ctx, query, "rehome_control."+table).Scan(&waits); err != nil {
				done <- err
				return
			}
			if waits {
				<-time.After(3 * time.Second)
				done <- nil
				return
			}
			<-time.After(20 * time.Millisecond) // between two looks
		}
		done <- errors.New("nobody waited for " + table)
	}()
	return done
}

// TestSlowBody: who does not send a body is told so, with an idempotency key and without.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.bodyTimeout = 100 * time.Millisecond
	srv := httptest.NewServer(b.apiHandler())
	t.Cleanup(srv.Close)
	for _, header := range []string{"", "Idempotency-Key: k\r\n"} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		request := "POST /v1/clients HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer " + testSecret + "\r\n" + header
		if _, err := io.WriteString(conn, request+"Content-Length: 400\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		raw := make([]byte, 4096)
		n, err := conn.Read(raw)
		if err != nil {
			t.Fatal(err)
		}
		answer := string(raw[:n])
		if !strings.HasPrefix(answer, "HTTP/1.1 408 ") || !strings.Contains(answer, `"slow-body"`) {
			t.Errorf("%sgot %s", header, answer)
		}
	}
}
