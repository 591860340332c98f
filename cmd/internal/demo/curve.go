package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rehomedb/rehome/server/api"
)

const (
	// curveEvery is how often the old side's connections are counted, curveWidth how many figures are drawn.
	curveEvery = 250 * time.Millisecond
	curveWidth = 60
	// fallWithin bounds how long clients that were told to go may stay.
	fallWithin = 45 * time.Second
)

// curve is `rehome stats --watch` in another terminal, and what it has said so far.
type curve struct {
	args    []string
	running *service
	mu      sync.Mutex
	seen    []api.Stats
	failed  error
}

// watchConnections begins to count the old side's connections.
func (d *demo) watchConnections() {
	c := &curve{args: []string{"stats", "--db", d.oldURL(), "--watch", "--interval", curveEvery.String()}}
	d.curve = c
	c.running = d.start(func(ctx context.Context) error {
		r := d.own.into(ctx, &lines{fn: c.line}, append(c.args, "-o", "json")...)
		if ctx.Err() == nil {
			c.fail(unexpected(c.args, r, 0))
		}
		return nil
	})
}

func (c *curve) line(b []byte) {
	var s api.Stats
	if err := json.Unmarshal(b, &s); err != nil {
		c.fail(fmt.Errorf("rehome stats: a line is no JSON: %w", err))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, s)
}

func (c *curve) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = errors.Join(c.failed, err)
}

// until waits for figures that were counted from now on.
func (c *curve) until(ctx context.Context, what string, see func(api.Stats), ok func(api.Stats) bool) error {
	from := len(c.figures())
	err := eventually(ctx, fallWithin, what, func(context.Context) (bool, error) {
		c.mu.Lock()
		failed, n := c.failed, len(c.seen)
		c.mu.Unlock()
		if failed != nil || n <= from {
			return false, failed
		}
		s := c.last()
		see(s)
		return ok(s), nil
	})
	if err != nil {
		return fmt.Errorf("%w; connections seen: %v", err, c.figures())
	}
	return nil
}

// last is what was counted last.
func (c *curve) last() api.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		return api.Stats{}
	}
	return c.seen[len(c.seen)-1]
}

// figures are the open connections of each time.
func (c *curve) figures() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]int, len(c.seen))
	for i, s := range c.seen {
		out[i] = s.OpenNow
	}
	return out
}

func (c *curve) stop() { c.running.stop() }

// lines calls a function with each whole line that is written.
type lines struct {
	rest string
	fn   func([]byte)
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest += string(b)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		l.fn([]byte(line))
	}
}
