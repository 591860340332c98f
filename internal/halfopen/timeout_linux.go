package halfopen

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unacknowledged bounds how long what was sent may stay without an acknowledgement: keep-alives are only sent while
// nothing is, and Linux would go on trying for a quarter of an hour.
const unacknowledged = 60 * time.Second

func boundUnacknowledged(network, _ string, c syscall.RawConn) error {
	if len(network) < 3 || network[:3] != "tcp" {
		return nil
	}
	var set error
	err := c.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	})
	return errors.Join(err, set)
}
