package snapshot

// paceBytes is how much is read between two looks at the pace: a row at a time would cost more than the row.
const paceBytes = 64 << 10

// paced counts what the source sends and waits as the pace asks. While it waits nothing is read, so that the source's
// session stops at a full socket.
type paced struct {
	c *copying
	n int
}

func (p *paced) Write(b []byte) (int, error) {
	if p.n += len(b); p.n >= paceBytes {
		n := p.n
		p.n = 0
		if err := p.c.spec.Pace(p.c.ctx, n); err != nil {
			return 0, err
		}
	}
	return p.c.split.Write(b)
}
