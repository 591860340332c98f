package replicator

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// lowWater sets how many bytes must have come before whoever polls a socket is woken (socket(7), SO_RCVLOWAT).
func lowWater(c syscall.RawConn, bytes int) {
	if c == nil {
		return
	}
	_ = c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
}
