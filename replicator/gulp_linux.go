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

// waiting is how many bytes a socket has that were not read (tcp(7), SIOCINQ);
// 0 if it does not say.
func waiting(c syscall.RawConn) (bytes int) {
	if c == nil {
		return 0
	}
	_ = c.Control(func(fd uintptr) { bytes, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return bytes
}

// receiveBuffer is how large a socket's buffer is by now (socket(7), SO_RCVBUF); 0 if it does not say.
func receiveBuffer(c syscall.RawConn) (bytes int) {
	if c == nil {
		return 0
	}
	_ = c.Control(func(fd uintptr) { bytes, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	return bytes
}
