package snapshot

import (
	"context"
	"errors"
	"io"
	"sync"
)

// pipeDepth is how many full buffers may wait for one shard: enough to cover a flush of its WAL, small enough that many
// shards and jobs stay within the server's memory (with the ones in use: 4 × 256 KB per shard and job).
const pipeDepth = 2

// errAnswered says that the shard's server ended its COPY before all was sent.
var errAnswered = errors.New("the server answered")

// pipe carries buffers from the splitter to one shard's COPY. There is one writer and one reader.
type pipe struct {
	full chan []byte
	free chan []byte

	failOnce sync.Once
	failed   chan struct{}
	err      error // set before failed is closed

	cur []byte // what is being sent
}

func newPipe() *pipe {
	p := &pipe{full: make(chan []byte, pipeDepth), free: make(chan []byte, pipeDepth+1), failed: make(chan struct{})}
	for range pipeDepth + 1 {
		p.free <- nil // allocated by the splitter when it is needed
	}
	return p
}

// put hands a full buffer over and returns an empty one. It waits while the shard is behind, until ctx ends.
func (p *pipe) put(ctx context.Context, b []byte) ([]byte, error) {
	select {
	case p.full <- b:
	case <-p.failed:
		return nil, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case b = <-p.free:
		return b[:0], nil
	case <-p.failed:
		return nil, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// end says that all buffers were put: the reader sees io.EOF, and the shard's COPY completes.
func (p *pipe) end() { close(p.full) }

// fail makes the reader see err, so that the shard's COPY fails. After end and the last buffer it does nothing.
func (p *pipe) fail(err error) {
	p.failOnce.Do(func() {
		p.err = err
		close(p.failed)
	})
}

// next gives the next full buffer, which is the reader's until it asks for another one. io.EOF: that was all; errAnswered:
// answered was closed; else what the pipe failed with.
func (p *pipe) next(answered <-chan struct{}) ([]byte, error) {
	if p.cur != nil {
		select {
		case p.free <- p.cur:
		default: // there is a place for each buffer but the writer's, who has given up: nobody wants one any more
		}
		p.cur = nil
	}
	select {
	case <-p.failed:
		return nil, p.err
	default:
	}
	select {
	case full, ok := <-p.full:
		if !ok {
			return nil, io.EOF
		}
		p.cur = full
		return full, nil
	case <-p.failed:
		return nil, p.err
	case <-answered:
		return nil, errAnswered
	}
}
