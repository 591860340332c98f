package notify

import (
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/tenant"
)

func TestWhatIsNews(t *testing.T) {
	t.Parallel()
	phase := func(from, to tenant.Phase) string { return `{"from":"` + string(from) + `","to":"` + string(to) + `"}` }
	for _, c := range []struct {
		kind, data string
		want       Topic // "": no news
	}{
		{typePhase, phase(tenant.CatchingUp, tenant.InSync), InSync},
		{typePhase, phase(tenant.CuttingOver, tenant.InSync), CutoverTakenBack},
		{typePhase, phase(tenant.Paused, tenant.InSync), ""},
		{typePhase, phase(tenant.InSync, tenant.CatchingUp), ""},
		{typePhase, phase(tenant.CuttingOver, tenant.CutOver), CutoverDone},
		{typePhase, phase(tenant.InSync, tenant.CutOver), CutoverDone}, // found by another server after a crash
		{typePhase, phase(tenant.RollingBack, tenant.CutOver), RollbackTakenBack},
		{typePhase, phase(tenant.Paused, tenant.CutOver), ""},
		{typePhase, phase(tenant.RollingBack, tenant.RolledBack), RolledBack},
		{typePhase, phase(tenant.Paused, tenant.RolledBack), ""},
		{typePhase, phase(tenant.InSync, tenant.Paused), Paused},
		{typePhase, phase(tenant.CutOver, tenant.Completed), Completed},
		{typePhase, phase(tenant.InSync, tenant.Cancelled), Cancelled},
		{typeVerified, `{"clean":true,"differs":false}`, ""},
		{typeVerified, `{"clean":false,"differs":true}`, VerificationFail},
		{typeVerified, `{"clean":false,"differs":false,"unfinished_tables":3}`, ""},
		{typeVerified, `{"clean":false}`, VerificationFail}, // of a server that does not say yet whether it differs
		{typeAlarm, `{"code":"slot-in-danger","seconds":600}`, SlotInDanger},
		{typeAlarm, `{"code":"slot-wal-high"}`, SlotInDanger},
		{typeAlarm, `{"code":"way-back-broken"}`, WayBackBroken},
		{typeAlarm, `{"code":"source-written"}`, Alarm},
		{typeAlarm, `{"code":"verification-not-clean"}`, ""},
		{typeDeleted, `{}`, DeleteConfirmed},
		{"dev.rehome.replication.progress", `{}`, ""},
		{typeAlarm, `[]`, ""},
	} {
		e := progress.Event{Type: c.kind, Data: json.RawMessage(c.data), Subject: progress.Subject("i", "acme", "replication", "r1", "x")}
		got, ok := newsOf(progress.Stored{ID: 7, Event: e})
		if ok != (c.want != "") || got.topic != c.want {
			t.Errorf("%s %s: %q, expected %q", c.kind, c.data, got.topic, c.want)
		}
		if ok && (got.id != 7 || got.database != "acme" || got.replication != "r1") {
			t.Errorf("got %+v", got)
		}
	}
}

// The defaults are what docs/webhooks.md says.
func TestDefaultPolicies(t *testing.T) {
	t.Parallel()
	p := webhookPolicy()
	var pauses []string
	for n := 1; n < p.Tries; n++ {
		pauses = append(pauses, p.pause(n).Round(time.Minute/12).String())
	}
	want := []string{"5s", "15s", "45s", "2m15s", "6m45s", "20m15s", "1h0m45s", "3h2m15s", "9h6m45s", "10h0m0s", "10h0m0s"}
	if d := cmp.Diff(want, pauses); d != "" {
		t.Error(d)
	}
	if h := p.total().Hours(); h < 24 || h > 48 {
		t.Errorf("webhooks are tried for %.1f hours", h)
	}
	if h := mailPolicy().total().Hours(); h < 12 || h > 24 {
		t.Errorf("mails are tried for %.1f hours", h)
	}
	for tries := 1; tries < p.Tries; tries++ {
		d, more := p.next(tries, 0, 0)
		if low, high := 8*p.pause(tries)/10, 12*p.pause(tries)/10; !more || d < low || d > high {
			t.Errorf("after %d tries: %s, %t", tries, d, more)
		}
	}
	if _, more := p.next(p.Tries, 0, 0); more {
		t.Error("there is no end")
	}
	if _, more := p.next(1, p.MaxAge+1, 0); more {
		t.Error("what waited for too long is tried")
	}
	if d, _ := p.next(1, 0, time.Hour); d != time.Hour {
		t.Errorf("Retry-After of an hour: %s", d)
	}
	if d, _ := p.next(1, 0, 1000*time.Hour); d != p.Max {
		t.Errorf("Retry-After of 1000 hours: %s", d)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]struct{ anywhere, public bool }{
		"93.184.216.34:443":          {true, true},
		"[2606:2800:220:1::1]:443":   {true, true},
		"10.1.2.3:443":               {true, false},
		"192.168.0.1:80":             {true, false},
		"100.64.0.1:443":             {true, false},
		"127.0.0.1:80":               {true, false},
		"[::1]:80":                   {true, false},
		"[::ffff:10.0.0.1]:80":       {true, false},
		"[fd00::1]:443":              {true, false},
		"169.254.169.254:80":         {false, false},
		"[::ffff:169.254.169.254]:1": {false, false},
		"[fe80::1]:443":              {false, false},
		"0.0.0.0:80":                 {false, false},
		"[::]:80":                    {false, false},
		"224.0.0.1:80":               {false, false},
		"receiver.example:80":        {false, false}, // no address: never dialled so
	} {
		if got := checkAddress(address, NetworksAny) == nil; got != want.anywhere {
			t.Errorf("%s: %t", address, got)
		}
		if got := checkAddress(address, NetworksPublic) == nil; got != want.public {
			t.Errorf("%s, public only: %t", address, got)
		}
	}
}

func TestLabelsHideWhatMayBeSecret(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://hooks.example/services/T00/B00/XXX": "https://hooks.example/services/…",
		"https://hooks.example":                      "https://hooks.example/",
		"https://hooks.example/in/":                  "https://hooks.example/in",
		"https://hooks.example/?token=1":             "https://hooks.example/…",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := label(u); got != want {
			t.Errorf("%s is shown as %s", raw, got)
		}
	}
}
