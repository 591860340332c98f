package redirect

import (
	"strings"
	"testing"
)

func TestProduct(t *testing.T) {
	for in, want := range map[string][2]string{
		"": {"unknown"}, "   ": {"unknown"}, "(only comment)": {"unknown"}, "curl/8.5.0": {"curl", "8.5.0"}, "Go-http-client/1.1": {"Go-http-client", "1.1"}, "bare": {"bare"},
		"dexie-cloud/4.0.1 (node 22)": {"dexie-cloud", "4.0.1"}, "/1.0": {"unknown", "1.0"},
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36":                     {"Chrome", "126"},
		"Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.1":           {"Edg", "126"},
		"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0":                                                    {"Firefox", "128"},
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/604.1": {"Safari", "604"},
		"evil\x00\x01/1": {"evil"}, strings.Repeat("ü", 100): {strings.Repeat("ü", 32)}, "x/" + strings.Repeat("9", 100): {"x", strings.Repeat("9", 32)},
	} {
		if name, version := product(in); name != want[0] || version != want[1] {
			t.Errorf("%q: %q %q, want %q", in, name, version, want)
		}
	}
}

func TestApplication(t *testing.T) {
	for in, want := range map[string][2]string{
		"": {"unknown"}, "psql": {"psql"}, "billing/1.4": {"billing", "1.4"}, "pgAdmin 4 - DB:acme": {"pgAdmin", "4"}, "DBeaver 23.1.0 - Main": {"DBeaver", "23.1.0"},
		"PostgreSQL JDBC Driver": {"PostgreSQL JDBC Driver"}, "sidekiq v6.5.1 [2 of 5]": {"sidekiq", "v6.5.1"}, "my app/v2": {"my app", "v2"}, "a/b/c": {"a/b/c"}, "4 horses": {"4 horses"},
		strings.Repeat("x", 70): {strings.Repeat("x", 64)},
	} {
		if name, version := application(in); name != want[0] || version != want[1] {
			t.Errorf("%q: %q %q, want %q", in, name, version, want)
		}
	}
}
