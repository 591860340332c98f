package replicator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// pair is both ends of a connection that dial opens.
func pair(t *testing.T, dial pgconn.DialFunc) (near, far net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if near, err = dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// TestGulp: whatever pieces come, in pauses or not, all of them are read in their order, also where a single one is
// larger than the buffer, and none is waited for once there is one.
func TestGulp(t *testing.T) {
	t.Parallel()
	var cfg pgconn.Config
	var d net.Dialer
	cfg.DialFunc = d.DialContext
	made := gulps(&cfg)
	_, far := pair(t, cfg.DialFunc)
	g := made.Load()

	random := rand.New(rand.NewPCG(1, 2))
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	answers := make(chan error, 1)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(1<<(2+random.IntN(16))))
			if _, err := far.Write(rest[:n]); err != nil {
				answers <- err
				return
			}
			rest = rest[n:]
		}
		answers <- nil
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer g.watch(ctx)()
	var got []byte
	buf := make([]byte, 2*gulpBytes)
	for k := 0; len(got) < len(sent); k++ {
		g.behind.Store(k%3 != 0)
		g.late.Store(k%3 == 2)
		n, err := g.Read(buf[:1+(k*7919)%len(buf)])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("what was read is not what was sent")
	}
	_ = far.Close()
	if _, err := g.Read(buf); err != io.EOF { //nolint:errorlint // an io.Reader's EOF is not wrapped
		t.Errorf("at the end: %v", err)
	}
	cancel()
	for limit := time.Now().Add(time.Minute); ; { // the deadline is set beside us
		if _, err := g.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("a context that has ended does not end what is read")
		}
	}
}

// reads counts those of a connection.
type reads struct {
	net.Conn
	n int
}

func (r *reads) Read(p []byte) (int, error) {
	r.n++
	return r.Conn.Read(p)
}

// TestGulpBelowTLS: a source sends each change as a record of its own, and TLS gives each to who reads by itself. What is behind
// is read in gulps all the same.
func TestGulpBelowTLS(t *testing.T) {
	t.Parallel()
	var cfg pgconn.Config
	var d net.Dialer
	cfg.DialFunc = d.DialContext
	made := gulps(&cfg)
	near, far := pair(t, cfg.DialFunc)
	g := made.Load()
	beneath := &reads{Conn: g.Conn}
	g.Conn = beneath

	https := httptest.NewTLSServer(nil) // lends its certificate for 127.0.0.1
	defer https.Close()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	server := tls.Server(far, &tls.Config{Certificates: https.TLS.Certificates, MinVersion: tls.VersionTLS12})
	client := tls.Client(near, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	const records, size = 50_000, 100
	answers := make(chan error, 1)
	go func() {
		change := make([]byte, size)
		for k := range records {
			binary.BigEndian.PutUint64(change, uint64(k))
			if _, err := server.Write(change); err != nil {
				answers <- err
				return
			}
		}
		answers <- nil
	}()
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.behind.Store(true)
	g.late.Store(true)
	beneath.n = 0
	got := make([]byte, size)
	for k := range records {
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		if at := binary.BigEndian.Uint64(got); at != uint64(k) {
			t.Fatalf("change %d came as number %d", at, k)
		}
	}
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d reads", beneath.n)
	if most := records / 20; beneath.n > most {
		t.Errorf("%d reads of the socket for %d changes, want %d at most", beneath.n, records, most)
	}
}
