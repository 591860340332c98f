package snapshot

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// cutAtError is a connection whose writes fail once the server has answered the first row with an error.
type cutAtError struct {
	net.Conn
	answered chan struct{}
	copying  bool
}

func (c *cutAtError) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.copying && strings.Contains(string(p[:n]), "C23514") {
		close(c.answered)
	}
	return n, err
}

func (c *cutAtError) Write(p []byte) (int, error) {
	if len(p) == 0 || p[0] != 'd' {
		return c.Conn.Write(p)
	}
	if n, err := c.Conn.Write(p); err != nil {
		return n, err
	}
	<-c.answered
	return 0, io.ErrShortWrite
}

// TestHalfAMessage: a session of which nobody knows what was sent is not used again, though the server's own error is what
// is told.
func TestHalfAMessage(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1, `CREATE TABLE t (id int CHECK (id < 3), v text)`)
	cfg, err := pgx.ParseConfig(b.dsns[0].Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cut := &cutAtError{answered: make(chan struct{})}
	cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) {
		cut.Conn = c
		return cut, nil
	}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cut.copying = true
	data := strings.NewReader(strings.Repeat("9\tv\n", 1000))
	_, err = copyIn(t.Context(), conn.PgConn(), "COPY t FROM STDIN", pipeOf(data))
	if pe := new(pgconn.PgError); !errors.As(err, &pe) || pe.Code != "23514" {
		t.Errorf("got %v, want the server's own error", err)
	}
	if !conn.IsClosed() {
		t.Error("the session is offered for use")
	}
}
