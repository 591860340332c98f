package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// spoolPoll is how often the files of a server are looked at: a large transaction fills its file for seconds.
const spoolPoll = 50 * time.Millisecond

// forgetPeak lets the peak of a process's memory begin anew (proc(5), clear_refs), so that each workload has its own.
func forgetPeak(pid int) error {
	if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0o600); err != nil {
		return fmt.Errorf("reset the peak of the memory: %w", err)
	}
	return nil
}

// spooled is how many bytes a server keeps just now in files of transactions that are not over yet. They have no name any
// more, but its descriptors show them.
func spooled(pid int) int64 {
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil {
		return 0
	}
	total := int64(0)
	for _, fd := range fds {
		name, err := os.Readlink(fd)
		if err != nil || !strings.Contains(name, "rehome-spool-") {
			continue
		}
		if st, err := os.Stat(fd); err == nil {
			total += st.Size()
		}
	}
	return total
}

// watchSpool returns the most that a server kept in files while do ran.
func watchSpool(ctx context.Context, pid int, do func() error) (peak int64, err error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	tick := time.NewTicker(spoolPoll)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return peak, err
		case <-ctx.Done():
			return peak, errors.Join(context.Cause(ctx), <-done)
		case <-tick.C:
			peak = max(peak, spooled(pid))
		}
	}
}

// memoryWorkload is G: what A and D measured of memory and disk. It runs nothing itself.
type memoryWorkload struct{ scale float64 }

func (w *memoryWorkload) ID() string { return "G" }

func (w *memoryWorkload) Prepare(_ context.Context, b *Bench) error {
	w.scale = b.Options.Scale
	return nil
}

func (w *memoryWorkload) Round(context.Context, *Bench, int) error { return nil }

// Report has a row for every case of Rehome that has a figure of memory.
func (w *memoryWorkload) Report(r *Results) []Section {
	s := Section{
		Title: "G: memory and disk of the server",
		Text: "Peak RSS is VmHWM of the server's process, which is reset before each drain; spooled is the most that it kept in files of transactions in progress, looked at every 50 ms. Source spill is what the " +
			"walsender of each contender wrote to the source's disk (pg_stat_replication_slots.spill_bytes).",
		Head: []string{"case", "contender", ">peak RSS MiB", ">spooled MB", ">source spill MB", ">n"},
	}
	seen := map[[2]string]bool{}
	for _, sample := range r.Samples {
		key := [2]string{sample.Case, sample.Contender}
		_, memory := sample.Values[peakRSS]
		_, spill := sample.Values[sourceSpillMB]
		if sample.Failed != "" || seen[key] || (!memory && !spill) {
			continue
		}
		seen[key] = true
		figure := func(name string) string {
			if _, ok := sample.Values[name]; !ok {
				return ""
			}
			return r.Spread(key[0], key[1], Value(name)).String()
		}
		s.Rows = append(s.Rows, []string{key[0], key[1], figure(peakRSS), figure(spoolMB), figure(sourceSpillMB), digitsInt(r.Spread(key[0], key[1], Wall).N)})
	}
	return []Section{s}
}

// Aims of G.
func (w *memoryWorkload) Aims(r *Results) []Aim {
	var aims []Aim
	for _, l := range smallBacklogs(w.scale) {
		if l.large() {
			aims = append(aims, Aim{
				What: "memory: " + l.name, Bound: "≤ 286 MiB (300 MB) peak RSS", Limit: 286, Unit: " MiB",
				Measured: r.Spread(drainCase(l), rehomeShards(1), Value(peakRSS)), Note: "to one shard",
			})
		}
	}
	return aims
}
