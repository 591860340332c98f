// Package keyfile reads and writes the two files of a working directory:
//
//   - rehome.json, {"serviceUrl": "https://own.example", "dbUrl": "https://own.example/acme"}: what commands talk to when
//     nothing else is said. It may be checked in.
//   - rehome.key, {"https://own.example": {"clientId": "…", "clientSecret": "…"}}: an API client per installation, mode
//     0600, never to be checked in.
//
// Each is looked for in the directory and then in its parents; the nearest one counts, and is the one that is changed.
package keyfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// The names of the files.
const (
	ConfigName = "rehome.json"
	KeyName    = "rehome.key"
)

// Config is rehome.json.
type Config struct {
	ServiceURL string `json:"serviceUrl,omitempty"`
	DBURL      string `json:"dbUrl,omitempty"`
}

// Key is one API client.
type Key struct {
	ClientID     string
	ClientSecret tenant.Secret
}

// keyJSON is Key in the file: the one place where the secret is written out.
type keyJSON struct {
	ClientID     string `json:"clientId"`
	ClientSecret string `json:"clientSecret"`
}

// Find returns the path of the nearest file of that name in dir or above, or "" if there is none.
func Find(dir, name string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	for {
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		if err == nil && st.Mode().IsRegular() {
			return path, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", nil
		}
		dir = parent
	}
}

// ReadConfig reads the nearest rehome.json; none is an empty Config.
func ReadConfig(dir string) (Config, error) {
	var c Config
	path, err := Find(dir, ConfigName)
	if err != nil || path == "" {
		return c, err
	}
	return c, read(path, &c)
}

// WriteConfig writes rehome.json into dir, or over the nearest one above; members of it that Config lacks are kept.
func WriteConfig(dir string, c Config) (string, error) {
	path, err := nearest(dir, ConfigName)
	if err != nil {
		return "", err
	}
	all := map[string]any{}
	if err := read(path, &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if c.ServiceURL != "" {
		all["serviceUrl"] = c.ServiceURL
	}
	if c.DBURL != "" {
		all["dbUrl"] = c.DBURL
	}
	return path, write(path, all, 0o644)
}

// ReadKey finds the client for an installation's base URL in the nearest rehome.key. loose says that others than the
// owner may read the file.
func ReadKey(dir, baseURL string) (key Key, found, loose bool, err error) {
	path, err := Find(dir, KeyName)
	if err != nil || path == "" {
		return Key{}, false, false, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Key{}, false, false, fmt.Errorf("read %s: %w", KeyName, err)
	}
	all := map[string]keyJSON{}
	if err := read(path, &all); err != nil {
		return Key{}, false, false, err
	}
	want := Normalise(baseURL)
	for u, k := range all {
		if Normalise(u) == want {
			return Key{ClientID: k.ClientID, ClientSecret: tenant.Secret(k.ClientSecret)}, true, st.Mode().Perm()&0o077 != 0, nil
		}
	}
	return Key{}, false, false, nil
}

// WriteKey adds or replaces the client of an installation in the nearest rehome.key, or makes one in dir.
func WriteKey(dir, baseURL string, k Key) (string, error) {
	path, err := nearest(dir, KeyName)
	if err != nil {
		return "", err
	}
	all := map[string]keyJSON{}
	if err := read(path, &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	want := Normalise(baseURL)
	maps.DeleteFunc(all, func(u string, _ keyJSON) bool { return Normalise(u) == want })
	all[want] = keyJSON{ClientID: k.ClientID, ClientSecret: k.ClientSecret.Reveal()}
	return path, write(path, all, 0o600)
}

// Normalise makes two spellings of a base URL equal: scheme and host in lower case, no default port, no trailing slash.
// What is no URL is returned as it is, and so equals only itself.
func Normalise(base string) string {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return base
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host + strings.TrimRight(u.Path, "/")
}

func nearest(dir, name string) (string, error) {
	path, err := Find(dir, name)
	if err != nil || path != "" {
		return path, err
	}
	return filepath.Join(dir, name), nil
}

// read fills v. The content is never part of the error: it may hold secrets.
func read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return tenant.Errorf(tenant.KindInvalid, "bad-file", "mend or remove it; rehome init and rehome authorize --save write it anew", "%s is not valid JSON of the expected shape", path)
	}
	return nil
}

// write replaces the file at once, so that a crash leaves the old one or the new one.
func write(path string, v any, mode os.FileMode) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".rehome-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when all went well
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
