package snapshot

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestGivenUpAmidBuffers: a writer that gives up just after it handed a buffer over, and took none, leaves the reader one more
// than there are places for. The reader comes to the end all the same.
func TestGivenUpAmidBuffers(t *testing.T) {
	t.Parallel()
	why := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	handed := 0
	for range 200 { // which of several things that are ready counts is random
		p := newPipe()
		if _, err := p.put(ctx, make([]byte, 1)); err == nil {
			continue // it took a buffer
		}
		if len(p.full) == 0 || len(p.free) < cap(p.free) {
			continue // it gave up before
		}
		handed++
		ended := make(chan error, 1)
		go func() {
			if _, err := p.next(nil); err != nil {
				ended <- err
				return
			}
			p.fail(why)
			_, err := p.next(nil)
			ended <- err
		}()
		select {
		case err := <-ended:
			if !errors.Is(err, why) {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the reader hangs")
		}
	}
	if handed == 0 {
		t.Error("no writer gave up after it handed a buffer over")
	}
}
