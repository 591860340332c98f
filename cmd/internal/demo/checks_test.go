package demo

import (
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// Each check that judges what was seen holds for what is right, and fails for each thing that may be wrong.
func TestChecksCanFail(t *testing.T) {
	t.Parallel()
	const url = "http://new.example/acme"
	clients := func(change func(*workload.WriterReport)) Check {
		r := workload.WriterReport{Redirects: 1, Counts: workload.Counts{Acknowledged: 2, BySide: map[string]int64{workload.SideSource: 1, workload.SideShards: 1}}}
		change(&r)
		return clientsCheck(r)
	}
	told := func(change func(*workload.SocketReport)) Check {
		r := workload.SocketReport{Opened: 6, MovedTo: url, Closes: map[string]int64{"4301 " + url: 3}}
		change(&r)
		return socketsCheck(r, url)
	}
	verified := func(change func(*tenant.Verification)) Check {
		v := tenant.Verification{Clean: true, Rows: 10, Digest: "abc"}
		change(&v)
		return verificationCheck(v, 10, 1)
	}
	cases := []struct {
		name string
		got  Check
		want bool
	}{
		{"clients", clients(func(*workload.WriterReport) {}), true},
		{"nothing at the source", clients(func(r *workload.WriterReport) { r.Counts.BySide[workload.SideSource] = 0 }), false},
		{"nothing on the shards", clients(func(r *workload.WriterReport) { r.Counts.BySide[workload.SideShards] = 0 }), false},
		{"no answer", clients(func(r *workload.WriterReport) { r.Counts.Unknown = 1 }), false},
		{"nobody was redirected", clients(func(r *workload.WriterReport) { r.Redirects = 0 }), false},
		{"sockets", told(func(*workload.SocketReport) {}), true},
		{"a socket was cut", told(func(r *workload.SocketReport) { r.Closes["4301 "+url] = 2 }), false},
		{"sockets told wrongly", told(func(r *workload.SocketReport) { r.MovedTo = "http://other.example/acme" }), false},
		{"sockets did not come back", told(func(r *workload.SocketReport) { r.Opened = 3 }), false},
		{"pause", pauseCheck(65.2), true},
		{"no pause was measured", pauseCheck(0), false},
		{"long pause", pauseCheck(5001), false},
		{"connections", connectionsCheck([]int{3, 2, 0}), true},
		{"one stayed", connectionsCheck([]int{3, 1}), false},
		{"nobody was ever there", connectionsCheck([]int{0, 0}), false},
		{"never counted", connectionsCheck(nil), false},
		{"verification", verified(func(*tenant.Verification) {}), true},
		{"differences", verified(func(v *tenant.Verification) { v.Clean = false }), false},
		{"too few rows", verified(func(v *tenant.Verification) { v.Rows = 9 }), false},
		{"nobody wrote", verificationCheck(tenant.Verification{Clean: true, Rows: 10, Digest: "abc"}, 10, 0), false},
		{"unfinished", verified(func(v *tenant.Verification) { v.Error = "cut off" }), false},
	}
	for _, c := range cases {
		if c.got.OK != c.want {
			t.Errorf("%s: ok is %t: %+v", c.name, c.got.OK, c.got)
		}
	}
}

func TestRedirectCheck(t *testing.T) {
	t.Parallel()
	const to = "http://new.example/acme"
	gateway := func(status int, location func(r *http.Request) string) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", location(r))
			w.WriteHeader(status)
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	right := func(r *http.Request) string { return to + r.URL.RequestURI() }
	cases := map[string]struct {
		url  string
		want bool
	}{
		"right":            {gateway(308, right), true},
		"other status":     {gateway(307, right), false},
		"answers itself":   {gateway(200, func(*http.Request) string { return "" }), false},
		"loses the query":  {gateway(308, func(r *http.Request) string { return to + r.URL.EscapedPath() }), false},
		"another place":    {gateway(308, func(r *http.Request) string { return "http://evil.example/acme" + r.URL.RequestURI() }), false},
		"nobody is there":  {"http://127.0.0.1:1", false},
		"not even an URL":  {"::", false},
		"only for reading": {gateway(308, func(r *http.Request) string { return map[bool]string{true: right(r)}[r.Method == http.MethodGet] }), false},
	}
	for name, c := range cases {
		if got := redirectCheck(t.Context(), "redirect", c.url, to, 308); got.OK != c.want || got.Detail == "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCertificateHolds(t *testing.T) {
	t.Parallel()
	const url = "http://new.example/acme"
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signed := tenant.Certificate{Version: 1, Target: url, GateEpoch: 2, Attempt: "a1", Verification: "v1", Digest: "abc", PauseMillis: 12}
	if err := cutover.Sign(&signed, private); err != nil {
		t.Fatal(err)
	}
	state := gate.State{Epoch: 2, Side: gate.SideTarget, Attempt: "a1", NewURL: url}
	v := tenant.Verification{ID: "v1", Digest: "abc"}
	if err := certificateHolds(signed, public, state, v, url); err != nil {
		t.Fatal(err)
	}
	changed := signed
	changed.PauseMillis = 11
	later, elsewhere := state, state
	later.Epoch, elsewhere.Side = 4, gate.SideSource
	for name, err := range map[string]error{
		"changed":              certificateHolds(changed, public, state, v, url),
		"another key":          certificateHolds(signed, other, state, v, url),
		"another epoch":        certificateHolds(signed, public, later, v, url),
		"the source writes":    certificateHolds(signed, public, elsewhere, v, url),
		"another verification": certificateHolds(signed, public, state, tenant.Verification{ID: "v2", Digest: "abc"}, url),
		"another digest":       certificateHolds(signed, public, state, tenant.Verification{ID: "v1", Digest: "abd"}, url),
		"another target":       certificateHolds(signed, public, state, v, "http://elsewhere.example/acme"),
	} {
		if err == nil {
			t.Errorf("%s: it holds", name)
		}
	}
}

func TestFailureNamesTheStepAndShowsTheLogs(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "own.log")
	if err := os.WriteFile(log, []byte(strings.Repeat("old\n", 50)+"the last words\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p := &output.Printer{Out: &out, Err: &out}
	d := newDemo(options{}, &show{out: &out, p: p, answer: p})
	d.rep, d.own, d.step, d.title = &Report{}, &installation{logFile: log}, 7, "Copy"
	err := d.failure(errors.New("not within 3s: in sync"))
	if tenant.AsError(err).Kind.ExitCode() != 1 || !strings.Contains(err.Error(), "step 7 (Copy): not within 3s: in sync") {
		t.Error(err)
	}
	if d.rep.Failed == nil || d.rep.Failed.Step != 7 {
		t.Errorf("%+v", d.rep.Failed)
	}
	if !strings.Contains(out.String(), "the last words") || strings.Count(out.String(), "old") > logLines {
		t.Errorf("the log's end is not shown as it should be:\n%s", out.String())
	}
}

func TestShownHidesSecrets(t *testing.T) {
	t.Parallel()
	got := strings.Join(shown([]string{"cutover", "--from", "postgres://me:hidden@h/acme", "--otp-id", "ch_1", "--otp", "123456", "--confirm", "654321"}), " ")
	if want := "cutover --from postgres://me@h/acme --otp-id ch_1 --otp •••••• --confirm ••••••"; got != want {
		t.Errorf("%s", got)
	}
}

func TestSparkline(t *testing.T) {
	t.Parallel()
	for want, figures := range map[string][]int{"": {}, "▁▁": {0, 0}, "█▅▂▁": {14, 8, 1, 0}, "▂▁": {9, 1, 0}} {
		width := 60
		if len(figures) == 3 {
			width = 2
		}
		if got := sparkline(figures, width); got != want {
			t.Errorf("%v: %s, want %s", figures, got, want)
		}
	}
}
