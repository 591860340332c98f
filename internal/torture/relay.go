package torture

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"

	"github.com/rehomedb/rehome/tenant"
)

// Relay is a proxy that understands Postgres' protocol (manual, "Message Formats") as far as it must to find one message
// of one session, and to be late with it, lose it, or lose its answer. Everything else passes untouched. Sessions come
// without TLS.
type Relay struct {
	ln       net.Listener
	upstream string

	mu    sync.Mutex
	rule  *Mishap
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

// Mishap is what happens to one message, once.
type Mishap struct {
	App  string // the session's application_name begins with it
	Text string // a simple query of which it is one statement, in lower case
	Do   Trick

	hit, release chan struct{}
	once         sync.Once
}

// Trick is what a relay does with a message.
type Trick int

// Tricks.
const (
	Late       Trick = iota // it is kept until Release, whether its sender lives or not
	Lost                    // it never arrives; the sender's connection ends
	Unanswered              // it arrives, and the sender's connection ends instead of an answer
)

// NewRelay makes a relay to a server and returns it with the connection string that leads through it.
func NewRelay(dsn tenant.DSN) (*Relay, tenant.DSN, error) {
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		return nil, "", fmt.Errorf("relay: the address cannot be read")
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", fmt.Errorf("relay: %w", err)
	}
	r := &Relay{ln: ln, upstream: u.Host, conns: map[net.Conn]bool{}}
	r.wg.Go(r.accept)
	u.Host = ln.Addr().String()
	return r, tenant.DSN(u.String()), nil
}

// Set makes a mishap happen to the next message that it fits, instead of any that was set before.
func (r *Relay) Set(m *Mishap) {
	m.hit, m.release = make(chan struct{}), make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rule = m
}

// Hit is closed when the mishap has happened.
func (m *Mishap) Hit() <-chan struct{} { return m.hit }

// Release lets a late message go on. It may be called again.
func (m *Mishap) Release() { m.once.Do(func() { close(m.release) }) }

// Close ends all connections.
func (r *Relay) Close() {
	_ = r.ln.Close()
	r.mu.Lock()
	if r.rule != nil {
		r.rule.Release()
	}
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *Relay) accept() {
	for {
		c, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(c) })
	}
}

func (r *Relay) keep(c net.Conn, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is {
		r.conns[c] = true
	} else {
		delete(r.conns, c)
		_ = c.Close()
	}
}

// Codes of messages that stand where the startup does.
const (
	sslRequest, gssRequest = 80877103, 80877104
	startupMax             = 10000
	// headSize is how much of a message is looked at: the statements that mishaps are for are short.
	headSize = 256
)

// serve carries one session.
func (r *Relay) serve(front net.Conn) {
	r.keep(front, true)
	defer r.keep(front, false)
	startup, err := readStartup(front)
	if err != nil {
		return
	}
	back, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", r.upstream)
	if err != nil {
		return
	}
	r.keep(back, true)
	defer r.keep(back, false)
	if _, err := back.Write(startup); err != nil {
		return
	}
	var mute sync.Mutex // held while an answer must not get through
	done := make(chan struct{})
	go func() { // ends with back, which this function closes
		defer close(done)
		buf := make([]byte, 32<<10)
		for {
			n, err := back.Read(buf)
			mute.Lock()
			if n > 0 {
				_, _ = front.Write(buf[:n]) // a sender that is gone keeps the session's other half from nothing
			}
			mute.Unlock()
			if err != nil {
				_ = front.Close()
				return
			}
		}
	}()
	r.carry(front, back, appName(startup), &mute)
	// As a sender's end closes its socket: what was delivered is done, and the server notices the end afterwards.
	if c, ok := back.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	<-done
}

// readStartup reads up to the message that opens the session.
func readStartup(front net.Conn) ([]byte, error) {
	for {
		var head [8]byte
		if _, err := io.ReadFull(front, head[:]); err != nil {
			return nil, err
		}
		n, code := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
		if code == sslRequest || code == gssRequest {
			if _, err := front.Write([]byte("N")); err != nil {
				return nil, err
			}
			continue
		}
		if n < 8 || n > startupMax {
			return nil, fmt.Errorf("a startup message of %d bytes", n)
		}
		msg := make([]byte, n)
		copy(msg, head[:])
		_, err := io.ReadFull(front, msg[8:])
		return msg, err
	}
}

func appName(startup []byte) string {
	_, rest, found := bytes.Cut(startup, []byte("application_name\x00"))
	if !found {
		return ""
	}
	name, _, _ := bytes.Cut(rest, []byte{0})
	return string(name)
}

// carry passes the sender's messages on, until one of both ends.
func (r *Relay) carry(front, back net.Conn, app string, mute *sync.Mutex) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(front, head[:]); err != nil {
			return
		}
		n := int64(binary.BigEndian.Uint32(head[1:])) - 4
		if n < 0 {
			return
		}
		begin := make([]byte, min(n, headSize))
		if _, err := io.ReadFull(front, begin); err != nil {
			return
		}
		m := r.fits(head[0], begin, app)
		if m != nil {
			switch m.Do {
			case Late:
				close(m.hit)
				<-m.release
			case Lost:
				close(m.hit)
				return
			case Unanswered:
				mute.Lock() // until the sender's connection is closed
			}
		}
		if _, err := back.Write(append(head[:], begin...)); err != nil {
			return
		}
		if _, err := io.CopyN(back, front, n-int64(len(begin))); err != nil {
			return
		}
		if m != nil && m.Do == Unanswered {
			_ = front.Close()
			close(m.hit)
			mute.Unlock()
			return
		}
	}
}

func (r *Relay) fits(kind byte, begin []byte, app string) *Mishap {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.rule
	if m == nil || kind != 'Q' || !strings.HasPrefix(app, m.App) || !hasStatement(string(begin), m.Text) {
		return nil
	}
	r.rule = nil
	return m
}

// hasStatement reports whether a query has a statement. Its quoting is not understood; the short ones looked for need none.
func hasStatement(query, statement string) bool {
	for s := range strings.SplitSeq(strings.TrimRight(query, "\x00"), ";") {
		if strings.EqualFold(strings.TrimSpace(s), statement) {
			return true
		}
	}
	return false
}
