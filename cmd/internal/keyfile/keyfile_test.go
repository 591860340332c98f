package keyfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

func TestKeyIsPrivateAndKeepsOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for base, secret := range map[string]tenant.Secret{"https://One.example/": "s1", "https://two.example": "s2"} {
		if _, err := WriteKey(dir, base, Key{ClientID: "c", ClientSecret: secret}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, KeyName)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	deep := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	k, found, loose, err := ReadKey(deep, "https://one.example:443")
	if err != nil || !found || loose || k.ClientSecret.Reveal() != "s1" {
		t.Fatalf("got %v %v %v %v", k, found, loose, err)
	}
	// A key that was written from below goes into the same file.
	if got, err := WriteKey(deep, "https://three.example", Key{ClientID: "c", ClientSecret: "s3"}); err != nil || got != path {
		t.Fatalf("wrote %s, %v", got, err)
	}
	if _, found, _, err := ReadKey(deep, "http://one.example"); err != nil || found {
		t.Fatalf("a key of https was given for http (%v)", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("something was left beside the file: %v %v", entries, err)
	}
}

func TestConfigKeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ConfigName), []byte(`{"dbUrl":"https://own.example/acme","other":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := WriteConfig(dir, Config{ServiceURL: "https://own.example"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), `"other": 1`) {
		t.Fatalf("%s, %v", b, err)
	}
	c, err := ReadConfig(dir)
	if err != nil || c != (Config{ServiceURL: "https://own.example", DBURL: "https://own.example/acme"}) {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestDamagedFileIsNotShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, KeyName), []byte(`{"https://x": {"clientSecret": "hidden"`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, _, err := ReadKey(dir, "https://x")
	var e *tenant.Error
	if !errors.As(err, &e) || e.Kind != tenant.KindInvalid || strings.Contains(err.Error(), "hidden") {
		t.Fatalf("got %v", err)
	}
	if _, err := WriteKey(dir, "https://x", Key{}); err == nil {
		t.Fatal("a damaged file was overwritten")
	}
}
