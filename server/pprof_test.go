package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

// TestProfiles wants profiles on their own address only, if one is set.
func TestProfiles(t *testing.T) {
	t.Parallel()
	off := setup(t)
	if off.profiles.listener != nil {
		t.Errorf("they are served on %s though nobody asked", off.profiles.listener.Addr())
	}
	on := setupWith(t, func(c *config.Config) { c.Pprof = "127.0.0.1:0" })
	for _, b := range []*bundle{off, on} {
		if status, body := b.get("/debug/pprof/"); status == http.StatusOK {
			t.Errorf("the public address shows them: %.100s", body)
		}
	}
	own := "http://" + on.profiles.listener.Addr().String()
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/pprof/heap?debug=1": "heap profile", "/debug/pprof/symbol": "num_symbols",
		"/debug/pprof/cmdline": "", "/v1/databases": "", "/metrics": "", "/": "", // an empty answer stands for none
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, own+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || (resp.StatusCode == http.StatusOK) != (want != "") || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d, %v: %.200s", path, resp.StatusCode, err, body)
		}
	}
	if err := on.stop(); err != nil {
		t.Error(err)
	}
	if req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, own+"/debug/pprof/", nil); err != nil {
		t.Error(err)
	} else if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("they outlive the server")
	}
	cfg := testConfig(on.control, on.mailbox, on.clock)
	cfg.Pprof = "0.0.0.0:0"
	s, err := New(t.Context(), cfg, Deps{})
	if te := tenant.AsError(err); err == nil || te.Code != "public-pprof" {
		if err == nil {
			s.Close()
		}
		t.Errorf("every interface: %v", err)
	}
}

// TestMetricsOfTheProcess wants what a benchmark reads of the server: its CPU time and its memory.
func TestMetricsOfTheProcess(t *testing.T) {
	t.Parallel()
	_, body := setup(t).get("/metrics")
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "go_memstats_heap_alloc_bytes", "go_gc_duration_seconds"} {
		if !strings.Contains(body, "\n"+name+" ") && !strings.Contains(body, "\n"+name+"{") {
			t.Errorf("no %s", name)
		}
	}
}
