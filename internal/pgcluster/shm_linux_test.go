package pgcluster

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
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

// TestRemoveLeavesNoSharedMemory: nor of what a server has for its parallel workers, whether it ran or was killed.
func TestRemoveLeavesNoSharedMemory(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]Options{"removed while it runs": {Fsync: true}, "killed before": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Start(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			maps, err := os.ReadFile("/proc/" + strconv.Itoa(c.Pid()) + "/maps")
			if err != nil {
				t.Fatal(err)
			}
			segments := regexp.MustCompile(`(/dev/shm/PostgreSQL\.|/\S+/pg_dynshmem/)\S*`).FindAllString(string(maps), -1)
			if len(segments) == 0 {
				t.Fatal("a server that runs has no such memory")
			}
			if name == "killed before" {
				if err := c.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Remove(); err != nil {
				t.Fatal(err)
			}
			for _, path := range segments {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is left: %v", path, err)
				}
			}
		})
	}
}
