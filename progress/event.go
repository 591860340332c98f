package progress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// SpecVersion is the version of CloudEvents that events follow.
const SpecVersion = "1.0"

// StreamInstallation is the stream of events that belong to no replication.
const StreamInstallation = "installation"

// Channel is what Append notifies (NOTIFY); the payload is the stream's name.
const Channel = "rehome_events"

const typePrefix = "dev.rehome."

// Event is a CloudEvents 1.0 event in JSON format (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md)
// with two extension attributes, stream and sequence.
type Event struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`      // random; also the Nats-Msg-Id
	Source          string    `json:"source"`  // the installation's base URL
	Type            string    `json:"type"`    // "dev.rehome.replication.progress"
	Subject         string    `json:"subject"` // the NATS subject
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Stream          string    `json:"stream"`   // what sequence counts
	Sequence        int64     `json:"sequence"` // 1, 2, 3 … without gaps in its stream

	Data json.RawMessage `json:"data,omitempty"`
}

// Stored is an event with its id in the outbox, the cursor of the whole installation's feed.
type Stored struct {
	ID    int64
	Event Event
}

// Entry is what a caller says has happened.
type Entry struct {
	Stream   string // default: ID, or StreamInstallation if that is empty too
	Database string // "" if the event concerns none
	Kind     string // "replication", "shard", "challenge"…
	ID       string // of that thing
	Event    string // "progress", "created"…
	Data     any    // anything that marshals to JSON; never a secret
}

func (e Entry) stream() string {
	if e.Stream != "" {
		return e.Stream
	}
	if e.ID != "" {
		return e.ID
	}
	return StreamInstallation
}

// Subject is the NATS subject of an event: rehome.v1.<installation>.<database>.<kind>.<id>.<event>. What NATS gives a
// meaning to (dots, wildcards, white space) becomes "_" inside a token, and so does an empty token.
func Subject(installation, database, kind, id, event string) string {
	tokens := []string{"rehome", "v1"}
	for _, t := range []string{installation, database, kind, id, event} {
		tokens = append(tokens, token(t))
	}
	return strings.Join(tokens, ".")
}

func token(s string) string {
	if s == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, s)
}

// Match reports whether a subject matches a NATS pattern, where * stands for one token and a final > for one or more.
// An empty pattern matches all.
func Match(pattern, subject string) bool {
	if pattern == "" {
		return true
	}
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, t := range p {
		if t == ">" && i == len(p)-1 {
			return len(s) > i
		}
		if i >= len(s) || (t != "*" && t != s[i]) {
			return false
		}
	}
	return len(p) == len(s)
}

// marshalData gives JSON that jsonb takes: it knows every character but U+0000, which becomes U+FFFD.
func marshalData(data any) (json.RawMessage, error) {
	if data == nil {
		return nil, nil
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("marshal the event's data: %w", err)
	}
	if !bytes.Contains(raw, []byte(`\u0000`)) {
		return raw, nil
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		if bytes.HasPrefix(raw[i:], []byte(`\u0000`)) {
			out = append(out, `\ufffd`...)
			i += len(`\u0000`) - 1
			continue
		}
		out = append(out, raw[i], raw[i+1]) // any other escape, the escaped backslash among them
		i++
	}
	return out, nil
}
