package cutover

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// saver writes steps down beside the pause: a round trip to the control database for each would lengthen it. What is
// written is for people, and for whoever finishes the attempt after a death before the decision, who needs no more than the
// intent; what the certificate needs is written by itself, durably, before the COMMIT. Only the latest step counts.
type saver struct {
	steps chan draft
	g     errgroup.Group
}

// draft is the report as it stood after a step.
type draft struct {
	step string
	raw  []byte
}

// saveLater hands a step to the saver, which begins with the first.
func (r *run) saveLater(ctx context.Context, step string) error {
	raw, err := r.draft(step)
	if err != nil {
		return err
	}
	if r.saver == nil {
		s := &saver{steps: make(chan draft, len(Steps))} // there is room for every step there is
		r.saver = s
		s.g.Go(func() error {
			for d := range s.steps {
				for len(s.steps) > 0 { // a slow control database gets the latest only
					d = <-s.steps
				}
				if err := r.write(ctx, d.step, d.raw, false); err != nil {
					return err
				}
			}
			return nil
		})
	}
	r.saver.steps <- draft{step, raw}
	return nil
}

// saved waits for the saver. errTaken if another server has ended the attempt meanwhile.
func (r *run) saved() error {
	if r.saver == nil {
		return nil
	}
	close(r.saver.steps)
	err := r.saver.g.Wait()
	r.saver = nil
	return err
}
