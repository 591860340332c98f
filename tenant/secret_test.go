package tenant

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestDSNShowsNoPassword(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:hidden@h:5432/d?sslmode=require&password=hidden": "postgres://u@h:5432/d",
		"postgresql://u:hid%2Fden@h/d":                                 "postgres://u@h/d",
		"postgres://u:hid@den@h/d":                                     "postgres://u@h/d",
		"postgres:///d?host=/run/pg&user=u&password=hidden":            "postgres:///run/pg/d",
		// A password whose special characters are not escaped: what reads as the host's port is its beginning.
		"postgres://u:12/hidden@h/d":                       redacted,
		"postgres://u:12?hidden@h/d":                       redacted,
		"postgres://u:12#hidden@h/d":                       redacted,
		"postgres://u:hidden/x@h/d":                        redacted,
		"postgres://u:hidden@h:port/d":                     redacted,
		"host=h port=5432 user=u password=hidden dbname=d": "host=h port=5432 user=u dbname=d",
		"host=h password='hid host=den' user=u":            "host=h user=u",
		`host=h password='hid\' host=den' user=u`:          "host=h user=u",
		`password=hid\ host=den host=h`:                    "host=h",
		"password = host=hidden host = h":                  "host=h",
		"host='h' dbname='a b' password='hidden":           redacted,
		"hidden":                                           redacted,
		"":                                                 redacted,
		"sslmode=disable":                                  redacted,
	} {
		d := DSN(dsn)
		j, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.String(); got != want {
			t.Errorf("%s: %s", dsn, got)
		}
		for _, out := range []string{d.String(), fmt.Sprintf("%v %+v %#v %s %q", d, d, d, d, d), string(j), d.LogValue().String()} {
			for _, part := range []string{"hid", "den", "12"} {
				if strings.Contains(out, part) {
					t.Errorf("%s shows as %s", dsn, out)
				}
			}
		}
	}
}
