package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/tenant"
)

const secret = "0123456789012345678901234567890123456789"

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("server", pflag.ContinueOnError)
	AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func environ(kv ...string) func() []string { return func() []string { return kv } }

func TestPrecedence(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "rehome.toml")
	if err := os.WriteFile(path, []byte("url = \"https://file.example/\"\nlisten = \"127.0.0.1:1\"\nusage_stats = \"disabled\"\ndrain_timeout = \"3s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Sources{
		Flags:   flags(t, "--config", path, "--listen", "127.0.0.1:3"),
		Environ: environ("REHOME_LISTEN=127.0.0.1:2", "REHOME_URL=https://env.example", "DATABASE_URL=postgres://u:pw@h/d", "REHOME_SECRET="+secret, "PORT=9"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:3" || c.URL != "https://env.example" || c.UsageStats != "disabled" || c.DatabaseURL.Reveal() != "postgres://u:pw@h/d" || c.DrainTimeout.String() != "3s" {
		t.Fatalf("got %+v", c)
	}
	if c.PGListen != DefaultPGListen || c.EmailURL.Reveal() != DefaultEmailURL || c.NATSURL != "" {
		t.Fatalf("defaults: got %+v", c)
	}
}

func TestPlatformNames(t *testing.T) {
	t.Parallel()
	c, err := Load(Sources{Environ: environ("PORT=9000", "DATABASE_URL=postgres://a/b", "REHOME_DATABASE_URL=postgres://c/d", "REHOME_SECRET="+secret)})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != ":9000" || c.DatabaseURL.Reveal() != "postgres://c/d" {
		t.Fatalf("got listen %s, database %s", c.Listen, c.DatabaseURL)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := []string{"REHOME_DATABASE_URL=postgres://a/b", "REHOME_SECRET=" + secret}
	for code, src := range map[string]Sources{
		"missing-database-url": {Environ: environ("REHOME_SECRET=" + secret)},
		"missing-secret":       {Environ: environ("DATABASE_URL=postgres://a/b")},
		"short-secret":         {Environ: environ("DATABASE_URL=postgres://a/b", "REHOME_SECRET=topsecret")},
		"bad-url":              {Environ: environ(append(good, "REHOME_URL=ftp://x")...)},
		"bad-listen":           {Environ: environ(append(good, "REHOME_LISTEN=8080")...)},
		"bad-usage-stats":      {Environ: environ(append(good, "REHOME_USAGE_STATS=yes")...)},
		"bad-webhook-networks": {Environ: environ(append(good, "REHOME_WEBHOOK_NETWORKS=mine")...)},
		"bad-pprof":            {Environ: environ(append(good, "REHOME_PPROF=6060")...)},
		"bad-pprof-networks":   {Environ: environ(append(good, "REHOME_PPROF_NETWORKS=mine")...)},
		"public-pprof":         {Environ: environ(append(good, "REHOME_PPROF=0.0.0.0:6060")...)},
		"bad-drain-timeout":    {Environ: environ(append(good, "REHOME_DRAIN_TIMEOUT=soon")...)},
		"bad-max-connections":  {Environ: environ(append(good, "REHOME_MAX_CONNECTIONS=20s")...)},
		"no-config-file":       {Environ: environ("REHOME_CONFIG=/nonexistent.toml")},
		"bad-config-file":      {Environ: environ("REHOME_CONFIG=" + file("secret = topsecret"))},
		"unknown-setting":      {Environ: environ("REHOME_CONFIG=" + file("secrets = \"topsecret\""))},
	} {
		_, err := Load(src)
		var te *tenant.Error
		if !errors.As(err, &te) || te.Code != code || te.Kind != tenant.KindInvalid || te.Hint == "" {
			t.Errorf("%s: got %v", code, err)
		} else if strings.Contains(te.Message+te.Hint, "topsecret") {
			t.Errorf("%s: the error shows a secret: %v", code, err)
		}
	}
}

func TestPrintHidesSecrets(t *testing.T) {
	t.Parallel()
	c, err := Read(Sources{Environ: environ("REHOME_DATABASE_URL=postgres://u:hidden1@h/d?password=hidden2", "REHOME_SECRET=hidden3"+secret,
		"REHOME_EMAIL_URL=smtp://me:hidden4@mail.example:587?token=hidden5", "REHOME_NATS_URL=nats://n:hidden6@nats:4222")})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	if err := (Config{NATSURL: "nats://hidden@nats:4222"}).Print(&b); err != nil { // a token
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "hidden") {
		t.Fatalf("a secret is printed:\n%s", b.String())
	}
	for _, want := range []string{`database_url = "postgres://u@h/d"`, `email_url = "smtp://me@mail.example:587"`, `usage_stats = "enabled"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

func TestGatewaySettings(t *testing.T) {
	t.Parallel()
	base := []string{"DATABASE_URL=postgres://u:pw@h/d", "REHOME_SECRET=" + secret}
	c, err := Load(Sources{Environ: environ(append(base, "REHOME_TRUSTED_PROXIES=10.1.2.3/8, ::1,::ffff:192.0.2.1", "REHOME_REDIRECT_PERMANENT_AFTER=off", "REHOME_HOLD_WAIT=3s")...)})
	if err != nil {
		t.Fatal(err)
	}
	proxies, err := c.Proxies()
	if err != nil || len(proxies) != 3 || proxies[0].String() != "10.0.0.0/8" || proxies[1].String() != "::1/128" || proxies[2].String() != "192.0.2.1/32" {
		t.Errorf("%v, %v", proxies, err)
	}
	if c.RedirectPermanentAfter >= 0 || c.HoldWait.String() != "3s" || c.CloseWindow != DefaultCloseWindow {
		t.Errorf("%+v", c)
	}
	var out bytes.Buffer
	if err := c.Print(&out); err != nil || !strings.Contains(out.String(), `redirect_permanent_after = "off"`) {
		t.Errorf("%s, %v", out.String(), err)
	}
	for _, bad := range []string{"REHOME_TRUSTED_PROXIES=example.com", "REHOME_TRUSTED_PROXIES=10.0.0.0/33", "REHOME_HOLD_WAIT=-1s", "REHOME_REDIRECT_PERMANENT_AFTER=soon"} {
		if _, err := Load(Sources{Environ: environ(append(base, bad)...)}); tenant.AsError(err).Kind != tenant.KindInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestPprofIsOfThisMachine(t *testing.T) {
	t.Parallel()
	base := []string{"DATABASE_URL=postgres://u:pw@h/d", "REHOME_SECRET=" + secret}
	if c, err := Load(Sources{Environ: environ(base...)}); err != nil || c.Pprof != "" {
		t.Errorf("it is on by default: %q, %v", c.Pprof, err)
	}
	for addr, want := range map[string]bool{
		"127.0.0.1:6060": true, "127.8.9.10:0": true, "[::1]:6060": true, "[::ffff:127.0.0.1]:6060": true, "localhost:6060": true,
		":6060": false, "0.0.0.0:6060": false, "[::]:6060": false, "10.0.0.1:6060": false, "192.0.2.1:6060": false, "rehome.example:6060": false, "localhost.example:6060": false, "[fe80::1%lo]:6060": false,
	} {
		_, err := Load(Sources{Environ: environ(base...), Flags: flags(t, "--pprof", addr)})
		if te := tenant.AsError(err); (err == nil) != want || (!want && (te == nil || te.Code != "public-pprof" || te.Kind != tenant.KindInvalid)) {
			t.Errorf("%s: %v", addr, err)
		}
		if _, err := Load(Sources{Environ: environ(append(base, "REHOME_PPROF_NETWORKS=any")...), Flags: flags(t, "--pprof", addr)}); err != nil {
			t.Errorf("%s, allowed by name: %v", addr, err)
		}
	}
}
