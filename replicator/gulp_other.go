//go:build !linux

package replicator

import "syscall"

func lowWater(syscall.RawConn, int) {}

func waiting(syscall.RawConn) (bytes int) { return 0 }

func receiveBuffer(syscall.RawConn) (bytes int) { return 0 }
