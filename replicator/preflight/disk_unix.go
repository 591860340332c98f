//go:build linux || darwin

package preflight

import "syscall"

// freeSpace is what an unprivileged user may still write to a directory's file system, in bytes.
func freeSpace(dir string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // types differ by system
}
