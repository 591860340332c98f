//go:build !linux

package halfopen

import "syscall"

func boundUnacknowledged(string, string, syscall.RawConn) error { return nil }
