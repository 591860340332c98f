package natspub

import (
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// StreamName is the JetStream stream that keeps the events of all installations on a message server.
	StreamName = "REHOME"
	// Subjects are what it keeps.
	Subjects = "rehome.v1.>"

	// dedupWindow is how long JetStream recognises a message by its Nats-Msg-Id: longer than any plausible time between
	// a publish and its mark, a restart of this process included.
	dedupWindow = 2 * time.Hour
	// refillWindow is how far back a message server is refilled.
	refillWindow = time.Hour
	// keepFor is how long JetStream keeps messages; a consumer that is away longer reads the API.
	keepFor = 7 * 24 * time.Hour
	// embeddedBytes bounds the stream of the embedded server: a few 100,000 events on a disk that may be small.
	embeddedBytes = 256 << 20

	// batch is how many events are read and marked at once: few enough that a crash repeats little.
	batch = 100
	// ackTimeout is how long JetStream may take for one message before it is sent again.
	ackTimeout = 5 * time.Second
	// idlePoll is for a notification that was lost; notifications wake the publisher at once.
	idlePoll = time.Second
	// followerPoll is how often who does not drain tries to become who does.
	followerPoll = 2 * time.Second
	// maxBackoff bounds the pause between two attempts to reach NATS or the control database.
	maxBackoff = 5 * time.Second
	// reconnectWait is the client's own pause between two servers of a list.
	reconnectWait = 250 * time.Millisecond
)

// Config is what a Publisher needs. Pool and Log are required.
type Config struct {
	URL        string // nats://user:pass@host:port[,…]; empty: embedded
	StoreDir   string // embedded: where JetStream keeps its files; empty: a temporary directory, removed at the end
	ListenPort int    // embedded: port on 127.0.0.1 for consumers, who may read only; 0: none, -1: any free one
	Pool       *pgxpool.Pool
	Log        *progress.Log
	Logger     *slog.Logger // default: none
}

var errURL = &tenant.Error{
	Kind: tenant.KindInvalid, Code: "bad-nats-url", Message: "the NATS URL is unusable",
	Hint: "give nats://host:4222 or tls://user:password@host:4222, several separated by commas; leave it empty for the embedded server",
}

func (c Config) validate() error {
	if c.Pool == nil || c.Log == nil {
		return errors.New("a publisher needs the control database's pool and the log of events")
	}
	_, err := servers(c.URL)
	return err
}

// servers reads a list of NATS URLs. Its error does not quote them.
func servers(list string) ([]*url.URL, error) {
	if list == "" {
		return nil, nil
	}
	var out []*url.URL
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			return nil, errURL
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return nil, errURL
		}
		out = append(out, u)
	}
	return out, nil
}

// describe shows servers by scheme and host.
func describe(list []*url.URL) string {
	if len(list) == 0 {
		return "embedded"
	}
	names := make([]string, len(list))
	for i, u := range list {
		names[i] = u.Scheme + "://" + u.Host
	}
	return strings.Join(names, ",")
}

// scrub takes credentials out of an error of the NATS client, which may quote the URL it was given.
func scrub(err error, list []*url.URL) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, u := range list {
		if u.User == nil {
			continue
		}
		text = strings.ReplaceAll(text, u.User.String()+"@", "")
		if pass, ok := u.User.Password(); ok && pass != "" {
			text = strings.ReplaceAll(text, pass, "[redacted]")
		} else if name := u.User.Username(); name != "" { // a token
			text = strings.ReplaceAll(text, name, "[redacted]")
		}
	}
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}
