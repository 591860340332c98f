package schema

import (
	"os"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

func FuzzTOC(f *testing.F) {
	f.Add([]byte("PGDMP\x01\x0e\x00\x04\x08\x01"))
	f.Add([]byte("PGDMP\x01\x10\x00\x04\x08\x01\x00" + "\x00\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := parseTOC(b)
		if err != nil && items != nil {
			t.Error("items with an error")
		}
	})
}

func TestDamagedArchive(t *testing.T) {
	t.Parallel()
	for _, b := range []string{"", "PGDMP", "PGDMP\x01\x20\x00\x04\x08\x01", "PGDMP\x01\x0e\x00\x04\x08\x01\x00\x00"} {
		if _, err := parseTOC([]byte(b)); err == nil {
			t.Errorf("%q is taken for an archive", b)
		}
	}
}

// The environment of pg_dump carries what its command line must not.
func TestParameters(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]string{
		"postgres://u:p@h/d?sslmode=disable&options=-c%20a%3Db": "-c a=b",
		`host=h sslmode = disable options='-c a=\'b' dbname=d`:  "-c a='b",
		"dbname=d":            "",
		`options=a\ b user=u`: "a b",
	} {
		if got := parameters(dsn)["options"]; got != want {
			t.Errorf("%s: %q", dsn, got)
		}
	}
	env, err := environment(tenant.DSN("postgres://u:secret@h,i:99/d?sslmode=disable"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var password, file string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PGPASSWORD="); ok {
			password = v
		}
		if v, ok := strings.CutPrefix(e, "PGSERVICEFILE="); ok {
			file = v
		}
	}
	if password != "secret" {
		t.Error("no password")
	}
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"host=h,i\n", "port=5432,99\n", "user=u\n", "dbname=d\n", "sslmode=disable\n"} {
		if !strings.Contains(string(out), line) {
			t.Errorf("%q is missing in\n%s", line, out)
		}
	}
}

// What this process was given for itself does not go to pg_dump: nor do our secrets, nor another server's password.
func TestEnvironmentKeepsOurSecrets(t *testing.T) {
	for _, name := range []string{"REHOME_SECRET", "REHOME_DATABASE_URL", "DATABASE_URL", "PGPASSWORD", "PGHOSTADDR"} {
		t.Setenv(name, "127.0.0.9")
	}
	t.Setenv("PGCONNECT_TIMEOUT", "7")
	env, err := environment(tenant.DSN("postgres://u:secret@h/d?sslmode=disable"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kept := false
	for _, e := range env {
		if strings.HasSuffix(e, "=127.0.0.9") {
			t.Errorf("%s is handed on", e)
		}
		kept = kept || e == "PGCONNECT_TIMEOUT=7"
	}
	if !kept {
		t.Error("settings that pgx reads as well are lost")
	}
}
