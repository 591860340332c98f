package tenant

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
)

// Buckets is the number of hash classes of realms. It is a contract with data at rest.
const Buckets = 16384

// Bucket is the hash class of a realm: the first two bytes of the SHA-256 of its UTF-8 text, as a big-endian number,
// modulo 16384, as the SQL function at every shard computes it:
// substring(sha256(convert_to(realm::text,'UTF8')),1,2) as 16 bits & 16383.
func Bucket(realm string) int {
	sum := sha256.Sum256([]byte(realm))
	return int(binary.BigEndian.Uint16(sum[:2])) & (Buckets - 1)
}

// BucketBytes is Bucket for a byte slice; it does not allocate.
func BucketBytes(realm []byte) int {
	sum := sha256.Sum256(realm)
	return int(binary.BigEndian.Uint16(sum[:2])) & (Buckets - 1)
}

// Range is a run of buckets, both ends included, that lives on one shard.
type Range struct {
	From  int    `json:"from"`
	To    int    `json:"to"`
	Shard string `json:"shard"`
}

// Placement maps buckets and pinned realms to shards. It is immutable once built; Epoch numbers its versions.
type Placement struct {
	Epoch  int64             `json:"epoch"`
	Ranges []Range           `json:"ranges"`         // sorted, without gap or overlap, covering 0..16383
	Pins   map[string]string `json:"pins,omitempty"` // realm -> shard, stronger than its bucket
	Home   string            `json:"home"`           // where reference tables are written
}

// Validate refuses a placement that leaves a bucket without a shard or gives it two.
func (p Placement) Validate() error {
	next := 0
	for _, r := range p.Ranges {
		if r.From != next || r.To < r.From || r.Shard == "" {
			return fmt.Errorf("placement epoch %d: range %d-%d of shard %q does not follow bucket %d", p.Epoch, r.From, r.To, r.Shard, next-1)
		}
		next = r.To + 1
	}
	if next != Buckets {
		return fmt.Errorf("placement epoch %d: buckets %d-%d have no shard", p.Epoch, next, Buckets-1)
	}
	if !slices.Contains(p.Shards(), p.Home) {
		return fmt.Errorf("placement epoch %d: home shard %q holds nothing", p.Epoch, p.Home)
	}
	return nil
}

// Shards lists the shards of the placement in the order of their first bucket, then pinned ones by name.
func (p Placement) Shards() []string {
	var out []string
	for _, r := range p.Ranges {
		if !slices.Contains(out, r.Shard) {
			out = append(out, r.Shard)
		}
	}
	var pinned []string
	for _, s := range p.Pins {
		if !slices.Contains(out, s) && !slices.Contains(pinned, s) {
			pinned = append(pinned, s)
		}
	}
	sort.Strings(pinned)
	return append(out, pinned...)
}

// ShardOf names the shard of a realm.
func (p Placement) ShardOf(realm string) string {
	if s, ok := p.Pins[realm]; ok {
		return s
	}
	return p.shardOfBucket(Bucket(realm))
}

// ShardOfBytes is ShardOf for the realm's text as bytes; it does not allocate.
func (p Placement) ShardOfBytes(realm []byte) string {
	if len(p.Pins) > 0 {
		if s, ok := p.Pins[string(realm)]; ok {
			return s
		}
	}
	return p.shardOfBucket(BucketBytes(realm))
}

func (p Placement) shardOfBucket(b int) string {
	i := sort.Search(len(p.Ranges), func(i int) bool { return p.Ranges[i].To >= b })
	return p.Ranges[i].Shard
}
