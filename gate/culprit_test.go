package gate_test

import (
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
)

func TestCulpritShowsNoPassword(t *testing.T) {
	t.Parallel()
	for _, query := range []string{"ALTER ROLE me PASSWORD 'hidden'", "create user u  encrypted\npassword 'hidden'", "SELECT dblink('host=h passwd=hidden')"} {
		if out := (gate.Culprit{PID: 1, User: "u", State: "active", Query: query}).String(); strings.Contains(out, "hidden") {
			t.Errorf("%s", out)
		}
	}
	if out := (gate.Culprit{PID: 1, User: "u", State: "active", Query: "UPDATE  t\n SET a = 1"}).String(); !strings.HasSuffix(out, "UPDATE t SET a = 1") {
		t.Errorf("%s", out)
	}
}
