package schema

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// TestSlowToolIsNotMissing: a pg_dump that does not say its version in time is no reason to refuse: it may be the one that
// serves, on a machine that is busy now. Where another serves, nothing is wrong.
func TestSlowToolIsNotMissing(t *testing.T) {
	t.Parallel()
	program := func(name, script string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	slow, broken := program("slow", "exec sleep 600"), program("broken", "exit 127")
	old, good := program("old", "echo 'pg_dump (PostgreSQL) 12.3'"), program("good", "echo 'pg_dump (PostgreSQL) 16.3'")
	const patience = 2 * time.Second // sh itself is to answer within it
	for name, c := range map[string]struct {
		programs, wrappers []string
		path               string
		kind               tenant.Kind
		code               string
	}{
		"slow":             {programs: []string{slow}, kind: tenant.KindUnavailable, code: "pg-dump-slow"},
		"slow, too old":    {programs: []string{slow, old}, kind: tenant.KindUnavailable, code: "pg-dump-slow"},
		"slow, wrapper":    {wrappers: []string{slow}, kind: tenant.KindUnavailable, code: "pg-dump-slow"},
		"slow, one serves": {programs: []string{slow, good}, path: good},
		"broken":           {programs: []string{broken}, kind: tenant.KindRefused, code: "pg-dump-missing"},
		"too old":          {programs: []string{old, broken}, kind: tenant.KindRefused, code: "pg-dump-too-old"},
		"none":             {kind: tenant.KindRefused, code: "pg-dump-missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := finder{patience: patience}
			tools, err := f.find(t.Context(), 15, c.programs, c.wrappers)
			if c.code == "" {
				if err != nil || tools.PgDump != c.path {
					t.Errorf("%+v, %v", tools, err)
				}
				return
			}
			te, ok := errors.AsType[*tenant.Error](err)
			if !ok || te.Kind != c.kind || te.Code != c.code {
				t.Errorf("%+v, %v", tools, err)
			}
		})
	}
	// Whoever asks is gone: that says nothing of the programs.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := finder{patience: patience}
	if _, err := f.find(ctx, 15, []string{good}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
