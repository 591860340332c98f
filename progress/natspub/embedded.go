package natspub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	embeddedReady = 10 * time.Second // JetStream takes about 10 ms; a recovered store longer
	ownUser       = "rehome"
	readerUser    = "reader"
)

// embedded is a nats-server in this process.
type embedded struct {
	server   *server.Server
	password string // of ownUser: in memory only
	tempDir  string // to remove at the end
}

// startEmbedded starts a server with JetStream. Without a port it is reachable from this process only; with one,
// strangers on this machine become readerUser, who can consume the stream but neither publish events nor change it.
func startEmbedded(dir string, port int) (*embedded, error) {
	e := &embedded{password: rand.Text()}
	if dir == "" {
		temp, err := os.MkdirTemp("", "rehome-nats-")
		if err != nil {
			return nil, fmt.Errorf("make the embedded NATS store: %w", err)
		}
		dir, e.tempDir = temp, temp
	}
	opts := &server.Options{
		ServerName: "rehome-embedded", Host: "127.0.0.1", Port: port, DontListen: port == 0,
		JetStream: true, StoreDir: dir, JetStreamMaxStore: 2 * embeddedBytes, JetStreamMaxMemory: embeddedBytes / 4,
		NoLog: true, NoSigs: true, DisableJetStreamBanner: true,
		Users: []*server.User{
			{Username: ownUser, Password: e.password},
			{Username: readerUser, Password: rand.Text(), Permissions: readOnly()},
		},
		NoAuthUser: readerUser,
	}
	s, err := server.NewServer(opts)
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("configure the embedded NATS server: %w", err)
	}
	e.server = s
	s.Start()
	if !s.ReadyForConnections(embeddedReady) || !s.JetStreamEnabled() {
		e.stop()
		return nil, errors.New("start the embedded NATS server: it is not ready (is the port taken, the store's directory writable, the disk full?)")
	}
	return e, nil
}

// readOnly lets a consumer look at the stream, make consumers, fetch and acknowledge.
func readOnly() *server.Permissions {
	return &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO." + StreamName,
			"$JS.API.STREAM.MSG.GET." + StreamName, "$JS.API.DIRECT.GET." + StreamName, "$JS.API.DIRECT.GET." + StreamName + ".>",
			"$JS.API.CONSUMER.>", "$JS.ACK.>", "$JS.FC.>",
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{">"}},
	}
}

// stop stops the server, waits for it and removes a temporary store.
func (e *embedded) stop() {
	if e.server != nil {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	if e.tempDir != "" {
		_ = os.RemoveAll(e.tempDir) // a temporary directory: what remains is the system's to clean
	}
}

// runEmbedded keeps an embedded server until ctx ends; use is called while it runs.
func (p *Publisher) runEmbedded(ctx context.Context, use func(*embedded) error) error {
	e, err := startEmbedded(p.cfg.StoreDir, p.cfg.ListenPort)
	if err != nil {
		return err
	}
	defer e.stop()
	if p.cfg.ListenPort != 0 {
		p.setClientURL(e.server.ClientURL())
	}
	defer p.setClientURL("")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return use(e)
}
