package cutover

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// crash calls the test's hook.
func (c *Coordinator) crash(step string) error {
	if c.cfg.Crash == nil {
		return nil
	}
	if err := c.cfg.Crash(step); err != nil {
		return &crashError{step: step, err: err}
	}
	return nil
}

// crashError makes the coordinator stop as a death does: without cleaning up.
type crashError struct {
	step string
	err  error
}

func (e *crashError) Error() string { return fmt.Sprintf("died after step %s: %v", e.step, e.err) }
func (e *crashError) Unwrap() error { return e.err }

func crashed(err error) bool {
	var c *crashError
	return errors.As(err, &c)
}

// die leaves everything as a dead process does: sockets closed without a word, or, for any other error than ErrKilled,
// open and silent as after a lost network. The gateways' hold expires by itself.
func (r *run) die(err error) (Report, error) {
	cut := errors.Is(err, ErrKilled)
	if r.gate != nil {
		r.gate.Abandon(cut)
	}
	if r.back != nil {
		r.back.Abandon(cut)
	}
	for _, f := range r.fences {
		if f != nil && f.fence != nil {
			f.fence.Abandon(cut)
		}
	}
	for _, s := range r.shards {
		for _, conn := range []*pgx.Conn{s.conn, s.aside} {
			if conn != nil && cut {
				_ = conn.PgConn().Conn().Close() // it is what a death does
			}
		}
	}
	if r.behind != nil {
		_ = r.behind.group.Wait() // it ends by itself, at closed sockets at once
		r.behind.cancel()
	}
	return r.rec.Report, err
}
