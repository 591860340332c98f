package cutover_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
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
