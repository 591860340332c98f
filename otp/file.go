package otp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

type fileChannel struct {
	dir  string
	from string
	now  func() time.Time
}

func newFile(u *url.URL, opts Options) (Channel, error) {
	if (u.Host != "" && u.Host != "localhost") || !filepath.IsAbs(u.Path) {
		return nil, badChannel("file: needs an absolute path, as in file:///var/mail/rehome")
	}
	return &fileChannel{dir: filepath.Clean(u.Path), from: cmp.Or(u.Query().Get("from"), opts.From, defaultSender+"@localhost"), now: opts.Now}, nil
}

// String implements Channel.
func (c *fileChannel) String() string { return "file://" + c.dir }

// Send implements Channel: one .eml a message (RFC 5322), names in the order of sending. A reader never sees half a
// message: it is written under a hidden name and renamed.
func (c *fileChannel) Send(_ context.Context, m Message) error {
	var buf bytes.Buffer
	if err := writeMail(&buf, m, c.from); err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return undelivered(c, fmt.Errorf("make the directory: %w", err))
	}
	f, err := os.CreateTemp(c.dir, ".mail-*") // mode 0600: it holds a code
	if err != nil {
		return undelivered(c, fmt.Errorf("make the file: %w", err))
	}
	_, err = f.Write(buf.Bytes())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		name := c.now().UTC().Format("20060102T150405.000000000Z") + "-" + rand.Text()[:8] + ".eml"
		err = os.Rename(f.Name(), filepath.Join(c.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return undelivered(c, fmt.Errorf("write the file: %w", err))
	}
	return nil
}
