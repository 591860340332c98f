package pgcluster

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shmLine is the line of postmaster.pid with the key and the id of the server's System V segment (miscadmin.h,
// LOCK_FILE_LINE_SHMEM_KEY).
const shmLine = 6

// removeSegment removes the System V segment that a killed server left: a system has 4,096 of them by default, and when
// they are used up no server starts. A server that is started again in its directory does so itself.
func removeSegment(data string) {
	lines := pidFile(data)
	if len(lines) <= shmLine {
		return // it ended in an orderly way
	}
	fields := strings.Fields(lines[shmLine])
	if len(fields) != 2 {
		return
	}
	if id, err := strconv.Atoi(fields[1]); err == nil {
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) // gone is as good; in use by nobody who lives
	}
}
