package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// ticksPerSecond is USER_HZ, in which /proc counts CPU time on every Linux architecture that Go knows.
const ticksPerSecond = 100

// stat is what /proc/PID/stat says of a process (proc(5)).
type stat struct {
	pid, parent int
	own, waited float64 // CPU seconds, user and system: its own, and of descendants that ended and were waited for
}

// readStat: "pid (name) state ppid …"; the name may contain anything, so it is cut at the last ")".
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, fmt.Errorf("read the CPU time of a process: %w", err)
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	// After the name: state is the first, ppid the second, utime, stime, cutime, cstime are the 12th to 15th.
	const parent, utime, stime, cutime, cstime = 1, 11, 12, 13, 14
	if len(f) <= cstime {
		return stat{}, errors.New("read the CPU time of a process: /proc has another format")
	}
	n := func(i int) float64 {
		v, _ := strconv.ParseFloat(string(f[i]), 64) // the kernel writes numbers
		return v
	}
	return stat{pid: pid, parent: int(n(parent)), own: (n(utime) + n(stime)) / ticksPerSecond, waited: (n(cutime) + n(cstime)) / ticksPerSecond}, nil
}

// treeTries bounds how often the processes are read again because one ended meanwhile: what it used moves to its parent then,
// and would be counted twice or not at all.
const treeTries = 5

// TreeCPU is the CPU seconds that a process and all of its descendants have used so far, those that ended included if their
// parents waited for them, as a postmaster does.
func TreeCPU(pid int) (total float64, err error) {
	for range treeTries {
		before, err := readStat(pid)
		if err != nil {
			return 0, err
		}
		if total, err = treeCPU(pid); err != nil {
			return 0, err
		}
		if after, err := readStat(pid); err != nil || after.waited == before.waited {
			return total, err
		}
	}
	return total, nil
}

func treeCPU(pid int) (float64, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	all := make(map[int]stat, len(dirs))
	for _, dir := range dirs {
		p, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if s, err := readStat(p); err == nil { // it may have ended meanwhile
			all[p] = s
		}
	}
	total := 0.0
	for p, s := range all {
		for up, depth := p, 0; up > 1 && depth < 64; depth++ {
			if up == pid {
				total += s.own + s.waited
				break
			}
			up = all[up].parent
		}
	}
	return total, nil
}

// PeakRSS is the most memory that a process has held, in MiB.
func PeakRSS(pid int) (float64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("read the memory of a process: %w", err)
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "VmHWM:" {
			kb, err := strconv.ParseFloat(string(f[1]), 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of a process: %w", err)
			}
			return kb / 1024, nil
		}
	}
	return 0, errors.New("read the memory of a process: /proc does not say it")
}

// CPU is the CPU seconds of a turn, of all processes that took part.
type CPU struct {
	Tool    float64 `json:"tool"`    // the contender's own programs; of Rehome: server, command line, the pg_dump and pg_restore that it starts
	Source  float64 `json:"source"`  // the source cluster
	Targets float64 `json:"targets"` // all target clusters
	Control float64 `json:"control"` // Rehome's control database
}

// Sum is of all processes.
func (c CPU) Sum() float64 { return c.Tool + c.Source + c.Targets + c.Control }

func (c CPU) minus(o CPU) CPU {
	return CPU{Tool: c.Tool - o.Tool, Source: c.Source - o.Source, Targets: c.Targets - o.Targets, Control: c.Control - o.Control}
}
