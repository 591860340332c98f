package snapshot

import (
	"context"
	"io"
	"sync"
)

// pipeDepth is how many full buffers may wait for one shard: enough to cover a flush of its WAL, small enough that many
// shards and jobs stay within the server's memory (with the ones in use: 4 × 256 KB per shard and job).
const pipeDepth = 2

// pipe carries buffers from the splitter to one shard's COPY. There is one writer and one reader.
type pipe struct {
	full chan []byte
	free chan []byte

	failOnce sync.Once
	failed   chan struct{}
	err      error // set before failed is closed

	cur  []byte // what is being read
	rest []byte // what is left of it
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

// Read implements io.Reader for the shard's COPY.
func (p *pipe) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.cur != nil {
			p.free <- p.cur // never blocks: there are as many places as buffers
			p.cur = nil
		}
		select {
		case <-p.failed:
			return 0, p.err
		default:
		}
		select {
		case full, ok := <-p.full:
			if !ok {
				return 0, io.EOF
			}
			p.cur, p.rest = full, full
		case <-p.failed:
			return 0, p.err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
