package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// startWithin bounds what a server needs to migrate its control database and listen, on a busy machine.
	startWithin = time.Minute
	// mailWithin is how long a mail may take to a folder of this machine.
	mailWithin = 15 * time.Second
	pollEvery  = 50 * time.Millisecond
	// drainWithin bounds a server's stop: nobody is there any more whose request would matter.
	drainWithin = "2s"
)

// installation is a Rehome server with its control database and mailbox, and the working directory of those who use it.
type installation struct {
	name    string // hosted, own
	url     string
	dir     string
	mail    string
	server  []string // environment of server and init
	person  []string // environment of all other commands: no secrets
	logFile string
	http    *http.Client
}

// newInstallation chooses an address and makes the working directory. Nothing runs yet.
func newInstallation(ctx context.Context, name, root, secret string, control tenant.DSN, environ []string) (*installation, error) {
	addr, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	i := &installation{
		name: name, url: "http://" + addr, dir: filepath.Join(root, name), mail: filepath.Join(root, name+"-mail"),
		logFile: filepath.Join(root, name+".log"), http: &http.Client{Transport: &http.Transport{}},
	}
	for _, dir := range []string{i.dir, i.mail} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a working directory: %w", err)
		}
	}
	i.person = append(i.person, environ...)
	i.server = append(append(i.server, environ...), "REHOME_DATABASE_URL="+control.Reveal(), "REHOME_SECRET="+secret, "REHOME_URL="+i.url, "REHOME_LISTEN="+addr,
		"REHOME_NATS_STORE="+filepath.Join(root, name+"-news"), "REHOME_DRAIN_TIMEOUT="+drainWithin, "REHOME_SERVER_NAME=demo-"+name)
	return i, nil
}

// freeAddress finds an address that nobody listens on. A server takes it a moment later.
func freeAddress(ctx context.Context) (string, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	if err := ln.Close(); err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return ln.Addr().String(), nil
}

// serve is `rehome server` until ctx ends.
func (i *installation) serve(ctx context.Context) error {
	log, err := os.OpenFile(i.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer log.Close() //nolint:errcheck // a log of a demonstration
	code := cli.Run(ctx, cli.Env{Args: []string{"server"}, Environ: i.server, Dir: i.dir, Stdout: log, Stderr: log})
	if code != 0 && ctx.Err() == nil {
		return fmt.Errorf("the %s server ended by itself with exit code %d", i.name, code)
	}
	return nil
}

// ready waits until the server answers that it is.
func (i *installation) ready(ctx context.Context) error {
	return eventually(ctx, startWithin, "the "+i.name+" server answers /readyz", func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, i.url+"/readyz", nil)
		if err != nil {
			return false, fmt.Errorf("ask the server: %w", err)
		}
		resp, err := i.http.Do(req)
		if err != nil {
			return false, nil // not yet
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
}

// result is what a command left.
type result struct {
	stdout, stderr string
	code           int
}

// quietly runs a command whose output nobody sees.
func (i *installation) quietly(ctx context.Context, environ []string, args ...string) result {
	var out, errs bytes.Buffer
	code := cli.Run(ctx, cli.Env{Args: args, Stdout: &out, Stderr: &errs, Environ: environ, Dir: i.dir, HTTP: &http.Client{Transport: i.http.Transport}})
	return result{stdout: out.String(), stderr: errs.String(), code: code}
}

// ask runs a command for its JSON.
func ask[T any](ctx context.Context, i *installation, args ...string) (T, error) {
	var v T
	r := i.quietly(ctx, i.person, append(args, "-o", "json")...)
	if r.code != 0 {
		return v, unexpected(args, r, 0)
	}
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		return v, fmt.Errorf("rehome %s: its answer is no JSON: %w", strings.Join(shown(args), " "), err)
	}
	return v, nil
}

// unexpected is the error of a command that did not end as it should have.
func unexpected(args []string, r result, want int) error {
	text := strings.TrimSpace(r.stderr)
	var p api.Problem
	if json.Unmarshal([]byte(text), &p) == nil && p.Detail != "" {
		text = p.Detail + " (" + p.Hint + ")"
	}
	if text == "" {
		text = "it said nothing"
	}
	return fmt.Errorf("rehome %s: exit code %d, expected %d: %s", strings.Join(shown(args), " "), r.code, want, text)
}

// shown is a command line without its secrets: passwords of connection strings and codes.
func shown(args []string) []string {
	out, flag := make([]string, len(args)), ""
	for i, a := range args {
		out[i] = a
		switch {
		case strings.HasPrefix(a, "postgres://"), strings.HasPrefix(a, "postgresql://"):
			out[i] = tenant.DSN(a).String()
		case flag == "--otp" || flag == "--confirm":
			out[i] = "••••••"
		}
		flag = a
	}
	return out
}

// letter waits for a mail.
func (i *installation) letter(ctx context.Context, what string, is func(otp.Mail) bool) (otp.Mail, error) {
	var found otp.Mail
	err := eventually(ctx, mailWithin, "the mail with "+what+" arrives", func(context.Context) (bool, error) {
		mails, err := otp.ReadMailbox(i.mail)
		if err != nil {
			return false, fmt.Errorf("read the mailbox: %w", err)
		}
		for _, m := range mails {
			if is(m) {
				found = m
				return true, nil
			}
		}
		return false, nil
	})
	return found, err
}

// client is the HTTP API as the installation's key opens it, for what no command prints.
func (i *installation) client() (*client.Client, error) {
	key, found, _, err := keyfile.ReadKey(i.dir, i.url)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	if !found {
		return nil, errors.New("there is no key for " + i.url)
	}
	return client.New(client.Options{
		Base: i.url, Bearer: tenant.Secret(key.ClientID + ":" + key.ClientSecret.Reveal()), HTTP: &http.Client{Transport: i.http.Transport},
		UserAgent: "rehome-demo", Note: func(string, ...any) {},
	})
}

// pair gives both outputs of a command to the person who watches, and keeps a copy.
func (s *show) pair(raw bool) (stdout, stderr io.Writer, kept func() (string, string)) {
	var out, errs bytes.Buffer
	mu := &sync.Mutex{}
	var w1, w2 io.Writer = &indented{mu: mu, w: s.out}, &indented{mu: mu, w: s.out}
	if raw {
		w1, w2 = s.out, s.out
	}
	return io.MultiWriter(w1, &out), io.MultiWriter(w2, &errs), func() (string, string) { return out.String(), errs.String() }
}

// eventually polls until a condition holds. The error says what was waited for.
func eventually(ctx context.Context, within time.Duration, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %s: %s", within, what))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		switch {
		case done:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
