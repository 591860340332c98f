package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/tenant"
)

// probeWithin bounds one request to a gateway of this machine.
const probeWithin = 10 * time.Second

// redirects asks the old address for some paths and looks where it points to.
func (d *demo) redirects(ctx context.Context, name string, status int) Check {
	return redirectCheck(ctx, name, d.oldURL(), d.newURL(), status)
}

// redirectCheck: each method and path is answered with the status and the same place under the new URL.
func redirectCheck(ctx context.Context, name, oldURL, newURL string, status int) Check {
	c := Check{Name: name, Unit: "requests", OK: true}
	probes := []struct{ method, path string }{
		{http.MethodGet, "/realms/rlm-0001/events/00000000-0000-4000-8000-000000000000"},
		{http.MethodPost, "/realms/rlm-0001/transfers?from=demo&x=1%2F2"},
		{http.MethodGet, "/ws"},
	}
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, Timeout: probeWithin,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for _, p := range probes {
		got, location, err := probe(ctx, client, p.method, oldURL+p.path)
		if err == nil && (got != status || location != newURL+p.path) {
			err = fmt.Errorf("%s %s was answered with %d and %q; expected %d and %s", p.method, p.path, got, location, status, newURL+p.path)
		}
		if err != nil {
			c.OK, c.Detail = false, err.Error()
			return c
		}
		c.Figure++
	}
	c.Detail = fmt.Sprintf("%d, to the same path under %s", status, newURL)
	return c
}

func probe(ctx context.Context, client *http.Client, method, target string) (status int, location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(""))
	if err != nil {
		return 0, "", fmt.Errorf("ask the old address: %w", err)
	}
	req.Header.Set("User-Agent", "rehome-demo-probe/1")
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("ask the old address: %w", err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Location"), nil
}

// into runs a command whose output goes somewhere else than to the person.
func (i *installation) into(ctx context.Context, w io.Writer, args ...string) result {
	var errs strings.Builder
	code := cli.Run(ctx, cli.Env{Args: args, Stdout: w, Stderr: &errs, Environ: i.person, Dir: i.dir, HTTP: &http.Client{Transport: i.http.Transport}})
	return result{stderr: errs.String(), code: code}
}

func isConfirmation(m otp.Mail) bool { return m.Kind == otp.KindDeletion && m.Code != "" }

func passwordOf(dsn tenant.DSN) string {
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		return ""
	}
	p, _ := u.User.Password()
	return p
}
