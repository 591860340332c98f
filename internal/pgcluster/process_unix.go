//go:build unix && !linux

package pgcluster

import "syscall"

// processAttributes: other systems have no signal on the parent's death; a killed parent leaves its server behind.
func processAttributes(as *runAs, _ syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		attr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid}
	}
	return attr
}

// childrenOf knows none here: Postgres' children notice by themselves that their postmaster is gone.
func childrenOf(int) []int { return nil }

func zombie(int) bool { return false }
