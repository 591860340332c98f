package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Machine is what the figures were made on.
type Machine struct {
	Cores           int
	CPUModel        string
	MemoryGB        float64
	Kernel          string
	Filesystem      string // of the clusters
	Commit          string
	Versions        []string
	ClusterSettings string // of every cluster, as the servers say themselves
}

// ownSettings are those that each cluster must have for itself.
const ownSettings = `'port', 'listen_addresses', 'unix_socket_directories', 'config_file', 'data_directory', 'hba_file', 'ident_file'`

// clusterSettings are what differs from Postgres' defaults, which must be the same for all clusters.
func clusterSettings(ctx context.Context, rig *Rig) (string, error) {
	var all string
	for _, c := range rig.clusters() {
		set, err := Scalar[string](ctx, c.DSN("postgres"), `SELECT string_agg(name || ' = ' || current_setting(name), ', ' ORDER BY name)
			FROM pg_settings WHERE source NOT IN ('default', 'override', 'client', 'session') AND name NOT IN (`+ownSettings+`)`)
		if err != nil {
			return "", err
		}
		if all != "" && set != all {
			return "", fmt.Errorf("the clusters have different settings: %s; and %s", all, set)
		}
		all = set
	}
	return all, nil
}

func machineOf(ctx context.Context, rig *Rig) (m Machine, err error) {
	say := func(program string, args ...string) string {
		cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // programs of the benchmark
		out, err := cmd.CombinedOutput()
		if err != nil && len(out) == 0 {
			return "unknown"
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line
	}
	m = Machine{Cores: runtime.NumCPU(), Kernel: say("uname", "-sr"), Commit: say("git", "rev-parse", "--short", "HEAD")}
	if say("git", "status", "--porcelain", "--untracked-files=no") != "" {
		m.Commit += " with changes"
	}
	if out, err := exec.CommandContext(ctx, "df", "--output=fstype,source", rig.Source.Dir()).Output(); err == nil { //nolint:gosec // the cluster's own directory
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		m.Filesystem = strings.Join(strings.Fields(lines[len(lines)-1]), " on ")
	}
	m.CPUModel, m.MemoryGB = procField("/proc/cpuinfo", "model name"), 0
	var kb float64
	if _, err := fmt.Sscanf(procField("/proc/meminfo", "MemTotal"), "%f", &kb); err == nil {
		m.MemoryGB = kb / 1e6
	}
	m.Versions = []string{say(filepath.Join(rig.Source.BinDir(), "postgres"), "--version"), say(rig.Tool("psql"), "--version"), say(rig.Tool("pg_dump"), "--version"), say(rig.Rehome, "version"), runtime.Version()}
	if out, err := exec.CommandContext(ctx, "pgcopydb", "--version").Output(); err == nil { // it also says things on its stderr
		line, _, _ := strings.Cut(string(out), "\n")
		m.Versions = append(m.Versions, line)
	}
	if v, err := Scalar[*string](ctx, rig.Source.DSN("postgres"), `SELECT max(default_version) FROM pg_available_extensions WHERE name = 'pglogical'`); err == nil && v != nil {
		m.Versions = append(m.Versions, "pglogical "+*v)
	}
	m.ClusterSettings, err = clusterSettings(ctx, rig)
	return m, err
}

// procField is the first value of a name in a file of /proc.
func procField(file, name string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func (m Machine) section() Section {
	s := Section{Title: "Machine, versions, settings", Head: []string{"", ""}, Rows: [][]string{
		{"cores", fmt.Sprintf("%d (%s)", m.Cores, m.CPUModel)},
		{"memory", fmt.Sprintf("%.1f GB", m.MemoryGB)},
		{"kernel", m.Kernel},
		{"filesystem", m.Filesystem},
		{"versions", strings.Join(m.Versions, "; ")},
	}}
	s.Rows = append(s.Rows, []string{"settings of every cluster, where not the default", m.ClusterSettings})
	return s
}
