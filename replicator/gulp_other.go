//go:build !linux

package replicator

import "syscall"

func lowWater(syscall.RawConn, int) {}
