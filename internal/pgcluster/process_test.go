package pgcluster

import (
	"os/exec"
	"testing"
)

// TestEndedIsNotSignalled: of a postmaster that was waited for the pid may be another process's.
func TestEndedIsNotSignalled(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*process){"quit": (*process).quit, "kill": (*process).kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other := exec.Command("cat") // ends in order when its input does
			in, err := other.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			p := &process{cmd: other, done: make(chan struct{})}
			close(p.done)
			end(p)
			if err := in.Close(); err != nil {
				t.Error(err)
			}
			if err := other.Wait(); err != nil {
				t.Errorf("the other process: %v", err)
			}
		})
	}
}
