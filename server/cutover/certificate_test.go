package cutover_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

func TestCertificate(t *testing.T) {
	t.Parallel()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	otherPub, otherKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := tenant.Certificate{
		Version: 1, Database: "acme <&> ü", MarkerLSN: 77, PauseMillis: 123.45, DecidedAt: time.Now().UTC().Truncate(time.Microsecond),
		Shards: []tenant.ShardPosition{{Shard: "eu-1", LSN: 77, Durable: 77}}, Sequences: []tenant.SequenceSet{},
	}
	if err := cutover.Sign(&c, key); err != nil {
		t.Fatal(err)
	}
	if err := cutover.Verify(c, pub); err != nil {
		t.Error(err)
	}
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := cutover.VerifyJSON(raw, pub); err != nil {
		t.Errorf("after a round trip: %v", err)
	}
	if err := cutover.Verify(c, otherPub); !errors.Is(err, cutover.ErrCertificate) {
		t.Errorf("another installation's key: %v", err)
	}
	for name, change := range map[string]func(*tenant.Certificate){
		"marker":    func(c *tenant.Certificate) { c.MarkerLSN++ },
		"shard":     func(c *tenant.Certificate) { c.Shards = []tenant.ShardPosition{{Shard: "eu-2", LSN: 77, Durable: 77}} },
		"key":       func(c *tenant.Certificate) { c.PublicKey = "" },
		"signature": func(c *tenant.Certificate) { c.Signature = c.Signature[4:] },
		"resigned": func(c *tenant.Certificate) {
			if err := cutover.Sign(c, otherKey); err != nil {
				t.Fatal(err)
			}
		},
	} {
		forged := c
		change(&forged)
		if err := cutover.Verify(forged, pub); !errors.Is(err, cutover.ErrCertificate) {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
}

// TestEveryByteCounts changes each byte of a certificate's file in several ways: what is not mere space is noticed.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := tenant.Certificate{
		Version: 1, Database: "acme ü", MarkerLSN: 77, PauseMillis: 100, DecidedAt: time.Now().UTC().Truncate(time.Microsecond), WayBack: cutover.WayBackOpen,
		Shards: []tenant.ShardPosition{{Shard: "eu-1", LSN: 77, Durable: 77}}, Sequences: []tenant.SequenceSet{{Shard: "eu-1", Name: "s", Value: 10}},
	}
	if err := cutover.Sign(&c, key); err != nil {
		t.Fatal(err)
	}
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	space := func(b byte) bool { return b == ' ' || b == '\n' || b == '\r' || b == '\t' }
	for i := range raw {
		for _, to := range []byte{raw[i] ^ 1, raw[i] ^ 0x20, raw[i] ^ 0x80, raw[i] + 1, '0', ' ', '"'} {
			if to == raw[i] || space(to) && space(raw[i]) {
				continue
			}
			changed := slices.Clone(raw)
			changed[i] = to
			if err := cutover.VerifyJSON(changed, pub); !errors.Is(err, cutover.ErrCertificate) {
				t.Fatalf("byte %d, %q to %q: %v\n%s", i, raw[i], to, err, changed)
			}
		}
		if err := cutover.VerifyJSON(raw[:i], pub); !errors.Is(err, cutover.ErrCertificate) {
			t.Fatalf("cut off after %d bytes: %v", i, err)
		}
	}
	for what, doc := range map[string]string{
		"a member twice":              strings.Replace(string(raw), `{`, `{"database": "other",`, 1),
		"a member twice, in capitals": strings.Replace(string(raw), `{`, `{"Database": "other",`, 1),
		"something behind it":         string(raw) + `{}`,
		"a new member":                strings.Replace(string(raw), `{`, `{"note": "x",`, 1),
		"deep":                        strings.Repeat(`[`, 100000),
		"null":                        `null`, "a list": `[]`, "nothing": ``,
	} {
		if err := cutover.VerifyJSON([]byte(doc), pub); !errors.Is(err, cutover.ErrCertificate) {
			t.Errorf("%s: %v", what, err)
		}
	}
	compact, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for what, doc := range map[string][]byte{"as stored": raw, "compact": compact, "with spaces": append([]byte(" \n"), append(raw, '\n')...)} {
		if err := cutover.VerifyJSON(doc, pub); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
