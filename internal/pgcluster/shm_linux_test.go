package pgcluster

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestRemoveLeavesNoSegment: of a server that was killed nothing stays in the system.
func TestRemoveLeavesNoSegment(t *testing.T) {
	t.Parallel()
	c, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Fields(pidFile(c.data())[shmLine])[1]
	there := func() bool {
		b, err := os.ReadFile("/proc/sysvipc/shm") // key, shmid, …
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(strings.Split(string(b), "\n"), func(line string) bool {
			f := strings.Fields(line)
			return len(f) > 1 && f[1] == id
		})
	}
	if !there() {
		t.Fatalf("segment %s of a server that runs is not there", id)
	}
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if there() {
		t.Errorf("segment %s is left", id)
	}
}
