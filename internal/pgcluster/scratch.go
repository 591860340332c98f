package pgcluster

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ScratchEnv names the environment variable with a directory where all clusters without Options.Dir live, copied from a
// template that initdb made there once. It should be in memory: `make test` makes one for its time (scripts/in-memory),
// since making and deleting clusters and databases, a thousand small files each, was a third of its system time on a disk.
// What the tests prove is the same: they kill servers, which then lose what they did not write to the system, and cut
// nobody's power.
const ScratchEnv = "REHOME_PG_SCRATCH"

// passwordFile is the file beside a data directory with the superuser's password: initdb reads it; a template's stays.
const passwordFile = "password"

// scratchDir is the scratch directory's absolute path (the server runs in another directory than we), "" where there is none.
func scratchDir() (string, error) {
	scratch := os.Getenv(ScratchEnv)
	if scratch == "" {
		return "", nil
	}
	abs, err := filepath.Abs(scratch)
	if err != nil {
		return "", fmt.Errorf("find %s=%s: %w", ScratchEnv, scratch, err)
	}
	return abs, nil
}

// fromTemplate makes the data directory as a copy of the scratch directory's template, which it makes when it is the first.
func (c *Cluster) fromTemplate(ctx context.Context, scratch string) error {
	what := sha256.Sum256([]byte(strings.Join(append([]string{c.BinDir(), c.opts.Superuser}, c.opts.InitArgs...), "\x00")))
	template := filepath.Join(scratch, "template-"+hex.EncodeToString(what[:8]))
	if _, err := os.Stat(template); errors.Is(err, os.ErrNotExist) {
		if err := c.makeTemplate(ctx, template); err != nil {
			return err
		}
	}
	password, err := os.ReadFile(filepath.Join(template, passwordFile))
	if err != nil {
		return fmt.Errorf("read the template's password: %w", err)
	}
	c.password = string(password)
	if out, err := runToEnd(ctx, c.user, c.dir, "cp", "-R", filepath.Join(template, "data"), c.data()); err != nil {
		return fmt.Errorf("copy the template: %w: %s", err, strings.TrimSpace(out))
	}
	return newIdentity(c.data())
}

// makeTemplate puts a fresh data directory in a place. Several processes may do so at once: the first one's counts.
func (c *Cluster) makeTemplate(ctx context.Context, template string) error {
	dir, err := os.MkdirTemp(filepath.Dir(template), "making-")
	if err != nil {
		return fmt.Errorf("make a template: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // there only if it was not needed
	if c.user != nil {
		if err := os.Chown(dir, int(c.user.uid), int(c.user.gid)); err != nil {
			return fmt.Errorf("give the template away: %w", err)
		}
	}
	t := &Cluster{opts: c.opts, dir: dir, user: c.user}
	password := rand.Text()
	verifier, err := quickVerifier(password)
	if err != nil {
		return err
	}
	if err := t.initdb(ctx, verifier); err != nil {
		return err
	}
	if err := t.writeFile(filepath.Join(dir, passwordFile), password); err != nil {
		return err
	}
	if err := os.Rename(dir, template); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("put the template in its place: %w", err)
	}
	return nil
}

// quickVerifier is what Postgres keeps of a password (RFC 5803), with one iteration instead of 4,096: a fifth of what a
// connection costs, and tests open thousands. A password of 26 random letters needs no stretching.
func quickVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	salted, err := pbkdf2.Key(sha256.New, password, salt, 1, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive the template's key: %w", err)
	}
	sign := func(what string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(what))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$1:" + text(salt) + "$" + text(stored[:]) + ":" + text(sign("Server Key")), nil
}

// Places in a data directory that hold the system identifier: the first field of global/pg_control, whose last field is
// a CRC-32C of what is before it (pg_control.h), and the long page header of the log's segments (xlog_internal.h), which no
// checksum covers.
const (
	controlFile = "global/pg_control"
	walSegments = "pg_wal/00000001*" // of the first timeline
	// controlMin and controlMax bound where the checksum is: it moves with the version (288 bytes before it in 15).
	controlMin, controlMax = 128, 508
	identityInSegment      = 24
)

// newIdentity gives a copied data directory, whose server never ran, a system identifier of its own: it is what tells
// clusters apart. It is made as initdb makes one, of the time and something that differs.
func newIdentity(data string) error {
	control, err := os.ReadFile(filepath.Join(data, controlFile))
	if err != nil {
		return fmt.Errorf("read the control file: %w", err)
	}
	order, table := binary.NativeEndian, crc32.MakeTable(crc32.Castagnoli)
	at := controlMin
	for at <= controlMax && crc32.Checksum(control[:at], table) != order.Uint32(control[at:]) {
		at += 4
	}
	if at > controlMax {
		return errors.New("the control file's checksum is not where it is expected")
	}
	var noise [4]byte
	_, _ = rand.Read(noise[:]) // never fails
	old := order.Uint64(control)
	identity := uint64(time.Now().Unix())<<32 | uint64(order.Uint32(noise[:]))
	order.PutUint64(control, identity)
	order.PutUint32(control[at:], crc32.Checksum(control[:at], table))
	if err := overwrite(filepath.Join(data, controlFile), 0, control); err != nil {
		return err
	}

	segments, err := filepath.Glob(filepath.Join(data, walSegments)) // one, or several where they are small
	if err != nil || len(segments) == 0 {
		return fmt.Errorf("look for the segments of the log: %w", cmp.Or(err, os.ErrNotExist))
	}
	for _, path := range segments {
		if err := identifySegment(path, old, identity); err != nil {
			return err
		}
	}
	return nil
}

// identifySegment changes the identifier in a segment's header.
func identifySegment(path string, from, to uint64) error {
	segment, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a segment of the log: %w", err)
	}
	var id [8]byte
	_, err = segment.ReadAt(id[:], identityInSegment)
	if err = errors.Join(err, segment.Close()); err != nil {
		return fmt.Errorf("read a segment of the log: %w", err)
	}
	switch binary.NativeEndian.Uint64(id[:]) {
	case from:
		binary.NativeEndian.PutUint64(id[:], to)
		return overwrite(path, identityInSegment, id[:])
	case 0: // made for later, and empty
		return nil
	default:
		return fmt.Errorf("the identifier in %s is not where it is expected", filepath.Base(path))
	}
}

// overwrite changes bytes of a file and leaves its owner and mode as they are.
func overwrite(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Base(path), err)
	}
	_, err = f.WriteAt(b, at)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("change %s: %w", filepath.Base(path), err)
	}
	return nil
}
