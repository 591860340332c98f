package redirect

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// ask sends a request with a Host of its own.
func (b *bundle) ask(t *testing.T, host, path string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.srv.URL+path, nil)
	must(t, err)
	req.Host = host
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return b.send(t, req)
}

func TestHosts(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { *c = c.WithBaseURL("https://Rehome.Example:8443/") })
	up := app(t, nil)
	b.database(t, "acme", up.URL)
	b.database(t, "other", up.URL)
	for _, d := range []string{"DB.Acme.Example.", "bücher.example"} {
		_, err := b.AddDomain(t.Context(), "acme", d)
		must(t, err)
	}
	for host, want := range map[string]string{
		"db.acme.example": "acme", "DB.Acme.Example": "acme", "db.acme.example.": "acme", "db.acme.example:8443": "acme", "db.acme.example.:80": "acme",
		"xn--bcher-kva.example": "acme", "acme.rehome.example": "acme", "Other.Rehome.Example.:8443": "other",
		"rehome.example": "", "nobody.rehome.example": "", "x.acme.rehome.example": "", "evil-acme.rehome.example": "", "acme.rehome.example.evil": "", "db.acme.example.evil": "", "127.0.0.1:80": "", "[::1]:8080": "", "[::1]": "", "::1": "", "": "",
	} {
		if got := b.byHost(host); got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
	}
	for _, host := range []string{"db.acme.example:81", "acme.rehome.example"} {
		a := b.ask(t, host, "/v1/a%2Fb?x=1", "X-Forwarded-Prefix", "/evil")
		if a.status != 200 || !strings.HasPrefix(a.body, "GET /v1/a%2Fb?x=1 host="+host) || !strings.Contains(a.body, "X-Forwarded-Prefix= ") {
			t.Errorf("%s: %+v", host, a)
		}
	}
	if a := b.ask(t, "[::1]:8080", "/acme/x"); !strings.HasPrefix(a.body, "GET /x host=[::1]:8080") {
		t.Errorf("%+v", a)
	}
	if a := b.ask(t, "db.acme.example", "/../x"); a.status != http.StatusBadRequest {
		t.Errorf("%+v", a)
	}
	// A redirect keeps path and query, whichever way the client came.
	_, err := b.SetRedirect(t.Context(), Redirect{Database: "acme", To: "https://own.example/acme"})
	must(t, err)
	for _, c := range [][2]string{{"db.acme.example:81", ""}, {"acme.rehome.example.", ""}, {"127.0.0.1", "/acme"}} {
		for path, want := range map[string]string{"/": "/", "/a%2Fb//c?x=%20y&z": "/a%2Fb//c?x=%20y&z", "/acme/x": "/acme/x"} {
			if a := b.ask(t, c[0], c[1]+path); a.status != 307 || a.header.Get("Location") != "https://own.example/acme"+want {
				t.Errorf("%s%s: %d %s", c[0], path, a.status, a.header.Get("Location"))
			}
		}
	}

	// Domains have one owner, and are none of the installation's.
	_, err = b.AddDomain(t.Context(), "other", "db.acme.example")
	wants(t, err, tenant.KindConflict, "domain-taken")
	_, err = b.AddDomain(t.Context(), "nobody", "new.example")
	wants(t, err, tenant.KindNotFound, "database-unknown")
	for _, d := range []string{"", "localhost", "https://x.example", "x.example:80", "x.example/y", "10.0.0.1", "::1", "rehome.example", "acme.rehome.example", "a b.example", strings.Repeat("a.", 130) + "example"} {
		if _, err := b.AddDomain(t.Context(), "other", d); tenant.AsError(err).Kind != tenant.KindInvalid {
			t.Errorf("%q: %v", d, err)
		}
	}
	wants(t, b.RemoveDomain(t.Context(), "other", "db.acme.example"), tenant.KindNotFound, "domain-unknown")
	must(t, b.RemoveDomain(t.Context(), "acme", "Db.Acme.example"))
	if a := b.ask(t, "db.acme.example", "/x"); a.status != 404 {
		t.Errorf("%+v", a)
	}
}

func TestBaseHost(t *testing.T) {
	for in, want := range map[string]string{
		"https://host.example": "host.example", "http://LOCALHOST:8080": "localhost", "http://127.0.0.1:8080": "", "http://[::1]:8080": "", "": "", "://": "",
	} {
		if got := (Config{}).WithBaseURL(in).BaseHost; got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// By itself a redirect becomes permanent with age; clients forget it after a while all the same.
func TestRedirectBecomesPermanent(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.PermanentAfter = 6 * time.Hour })
	b.database(t, "acme", app(t, nil).URL)
	set := func(to string) {
		t.Helper()
		_, err := b.SetRedirect(t.Context(), Redirect{Database: "acme", To: to})
		must(t, err)
	}
	expect := func(status int, cache string) {
		t.Helper()
		if a := b.do(t, "GET", "/acme/x"); a.status != status || a.header.Get("Cache-Control") != cache {
			t.Errorf("%d %s, want %d %s", a.status, a.header.Get("Cache-Control"), status, cache)
		}
	}
	set("https://own.example/acme")
	expect(307, "no-store")
	b.clock.add(6*time.Hour - time.Second)
	expect(307, "no-store")
	b.clock.add(time.Second)
	expect(308, "max-age=86400")
	set("https://own2.example/acme") // another target is young again
	expect(307, "no-store")
	b.clock.add(24 * time.Hour)
	b.cfg.PermanentAfter = -1
	expect(307, "no-store")
}

// Nothing secret goes to another host: not in Location, not through the proxy, and no cookie comes back from there.
func TestNoCredentialToAnotherHost(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	var got *http.Request
	next := app(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(t.Context())
		w.Header().Set("Set-Cookie", "there=1")
	})
	b.database(t, "acme", app(t, nil).URL)
	_, err := b.SetRedirect(t.Context(), Redirect{Database: "acme", To: next.URL + "/acme", Mode: ModeProxy})
	must(t, err)
	secrets := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Apikey", "X-Auth-Token", "X-Acme-Access-Token", "X-Csrf-Token", "X-Xsrf-Token", "X-Amz-Security-Token",
		"X-Goog-Api-Key", "Ocp-Apim-Subscription-Key", "X-Session-Id", "X-Client-Secret", "Php-Auth-User", "X-Jwt", "X-Vault-Token", "Private-Token",
	}
	plain := []string{"Accept", "Idempotency-Key", "X-Request-Id", "User-Agent", "If-None-Match", "X-Author", "X-Tokenizer", "X-Keyboard"}
	var header []string
	for _, h := range append(append([]string{}, secrets...), plain...) {
		header = append(header, h, "the value")
	}
	header = append(header, "Referer", "https://app.example/page?token=the+value")
	a := b.do(t, "GET", "/acme/x?a=%20b&access_token=s&page_token=p&Token=s&x;sig=s&c=d;e=f&api%5Fkey=s&key=k&a=2", header...)
	if a.status != 200 || a.header.Get("Set-Cookie") != "" {
		t.Errorf("%+v", a)
	}
	for _, h := range secrets {
		if v := got.Header.Get(h); v != "" {
			t.Errorf("%s: %s", h, v)
		}
	}
	for _, h := range plain {
		if v := got.Header.Get(h); v != "the value" {
			t.Errorf("%s: %q", h, v)
		}
	}
	const kept = "a=%20b&page_token=p&c=d;e=f&key=k&a=2"
	if got.URL.RawQuery != kept || got.Header.Get("Referer") != "https://app.example/" {
		t.Errorf("%s, %s", got.URL.RawQuery, got.Header.Get("Referer"))
	}
	// The same host may have them.
	next2 := app(t, nil)
	_, err = b.SetRedirect(t.Context(), Redirect{Database: "acme", To: next2.URL + "/acme", Mode: ModeProxy})
	must(t, err)
	if a := b.ask(t, strings.TrimPrefix(next2.URL, "http://"), "/acme/x?token=t", "Authorization", "mine"); !strings.Contains(a.body, "/acme/x?token=t ") || !strings.Contains(a.body, "Authorization=mine") {
		t.Errorf("%+v", a)
	}

	_, err = b.SetRedirect(t.Context(), Redirect{Database: "acme", To: "https://own.example/acme"})
	must(t, err)
	if a := b.do(t, "GET", "/acme/x?password=s&a=b"); a.header.Get("Location") != "https://own.example/acme/x?a=b" {
		t.Errorf("%+v", a)
	}
	if a := b.do(t, "GET", "/acme/x?password=s"); a.header.Get("Location") != "https://own.example/acme/x" {
		t.Errorf("%+v", a)
	}
}

func TestSameHost(t *testing.T) {
	for _, c := range []struct {
		host   string
		secure bool
		target string
		want   bool
	}{
		{"own.example", true, "https://own.example/acme", true},
		{"OWN.example.", true, "https://own.example:443/acme", true},
		{"own.example:80", false, "http://own.example/acme", true},
		{"own.example", false, "https://own.example/acme", false}, // another port
		{"own.example:443", false, "https://own.example/acme", true},
		{"own.example", true, "http://own.example/acme", false},
		{"own.example:8443", true, "https://own.example/acme", false},
		{"other.example", true, "https://own.example/acme", false},
		{"own.example.evil", true, "https://own.example/acme", false},
		{"[::1]:8080", false, "http://[::1]:8080/acme", true},
		{"[::1]", false, "http://[::2]/acme", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = c.host
		target := httptest.NewRequest(http.MethodGet, c.target, nil).URL
		if got := sameHost(r, c.secure, target); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestTrustedProxies(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for name, c := range map[string]struct {
		peer    string
		header  http.Header
		address string
		chain   string
		secure  bool
	}{
		"nobody trusted":     {"1.2.3.4:5", http.Header{"X-Forwarded-For": {"9.9.9.9"}, "X-Forwarded-Proto": {"https"}}, "1.2.3.4", "1.2.3.4", false},
		"one proxy":          {"10.0.0.1:5", http.Header{"X-Forwarded-For": {"9.9.9.9"}, "X-Forwarded-Proto": {"https"}}, "9.9.9.9", "9.9.9.9, 10.0.0.1", true},
		"a client that lies": {"10.0.0.1:5", http.Header{"X-Forwarded-For": {"6.6.6.6, 9.9.9.9"}}, "9.9.9.9", "6.6.6.6, 9.9.9.9, 10.0.0.1", false},
		"two proxies":        {"10.0.0.1:5", http.Header{"X-Forwarded-For": {"6.6.6.6", "9.9.9.9, 10.0.0.2"}}, "9.9.9.9", "6.6.6.6, 9.9.9.9, 10.0.0.2, 10.0.0.1", false},
		"mapped":             {"[::ffff:10.0.0.1]:5", http.Header{"X-Forwarded-For": {"9.9.9.9:1234"}}, "9.9.9.9", "9.9.9.9:1234, ::ffff:10.0.0.1", false},
		"forwarded":          {"[2001:db8::1]:5", http.Header{"Forwarded": {`for="[2001:db8:1::7]:99";proto=http, For=9.9.9.9;Proto="https";by=x`}}, "9.9.9.9", "[2001:db8:1::7]:99, 9.9.9.9, 2001:db8::1", true},
		"both, the same":     {"10.0.0.1:5", http.Header{"Forwarded": {"for=9.9.9.9"}, "X-Forwarded-For": {"9.9.9.9"}}, "9.9.9.9", "9.9.9.9, 10.0.0.1", false},
		"both, not the same": {"10.0.0.1:5", http.Header{"Forwarded": {"for=6.6.6.6"}, "X-Forwarded-For": {"9.9.9.9"}}, "10.0.0.1", "10.0.0.1", false},
		"hidden":             {"10.0.0.1:5", http.Header{"Forwarded": {"for=6.6.6.6, for=_secret"}}, "10.0.0.1", "6.6.6.6, _secret, 10.0.0.1", false},
		"says nothing":       {"10.0.0.1:5", http.Header{}, "10.0.0.1", "10.0.0.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(Config{TrustedProxies: trusted})
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr, r.Header = c.peer, c.header
			o := g.originOf(r)
			if o.address != c.address || strings.Join(o.chain, ", ") != c.chain || o.secure != c.secure {
				t.Errorf("%+v", o)
			}
		})
	}
}
