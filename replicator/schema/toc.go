package schema

import (
	"errors"
	"fmt"
	"slices"
)

// Sections of an archive (teSection in Postgres' pg_backup.h).
const (
	sectionNone = 1
	sectionPre  = 2
	sectionPost = 4
)

// archive versions that are understood: 1.11 (pg_dump 8.4) to 1.16 (17 and 18).
const (
	oldestArchive = 11
	newestArchive = 16
)

var errArchive = errors.New("the archive is damaged")

// item is an entry of an archive's table of contents.
type item struct {
	id        int
	tag, desc string
	section   int
	sql       string
	namespace string
	tableAM   string
	deps      []int
	key       string // its name in rehome.ddl_done
}

func (it *item) String() string {
	if it.namespace == "" {
		return it.desc + " " + it.tag
	}
	return it.desc + " " + it.namespace + "." + it.tag
}

// parseTOC reads the table of contents of pg_dump's custom format. It is what pg_restore itself works from (ReadHead and
// ReadToc in pg_backup_archiver.c); with --schema-only there is nothing after it.
func parseTOC(b []byte) (items []*item, err error) {
	r := &tocReader{b: b}
	defer func() {
		if r.bad {
			items, err = nil, errArchive
		}
	}()
	if string(r.take(5)) != "PGDMP" {
		return nil, errArchive
	}
	major, minor := r.byte(), r.byte()
	r.byte() // revision
	if major != 1 || minor < oldestArchive || minor > newestArchive {
		return nil, fmt.Errorf("archive format %d.%d of this pg_dump is not known", major, minor)
	}
	r.intSize, r.offSize = int(r.byte()), int(r.byte())
	if r.intSize < 1 || r.intSize > 8 || r.offSize < 1 || r.offSize > 8 {
		return nil, errArchive
	}
	r.byte() // format
	if minor >= 15 {
		r.byte() // compression algorithm
	} else {
		r.int() // compression level
	}
	for range 7 {
		r.int() // when it was made
	}
	for range 3 {
		r.string() // database, server version, pg_dump version
	}
	count := r.int()
	seen := make(map[string]int)
	for i := 0; i < count && !r.bad; i++ {
		it := &item{id: r.int()}
		r.int()    // has data
		r.string() // catalogue's OID
		r.string() // OID
		it.tag, _ = r.string()
		it.desc, _ = r.string()
		it.section = r.int()
		it.sql, _ = r.string()
		r.string() // drop statement
		r.string() // COPY statement
		it.namespace, _ = r.string()
		r.string() // tablespace
		if minor >= 14 {
			it.tableAM, _ = r.string()
		}
		if minor >= 16 {
			r.int() // relkind
		}
		r.string() // owner
		r.string() // with OIDs
		for !r.bad {
			dep, ok := r.string()
			if !ok {
				break
			}
			n := 0
			if _, err := fmt.Sscanf(dep, "%d", &n); err != nil {
				return nil, errArchive
			}
			it.deps = append(it.deps, n)
		}
		r.take(1 + r.offSize) // where its data is
		it.key = it.String()
		if seen[it.key]++; seen[it.key] > 1 {
			// Overloads and names with blanks can look alike; the order of an archive is by name, then stable.
			it.key = fmt.Sprintf("%s #%d", it.key, seen[it.key])
		}
		items = append(items, it)
	}
	placeComments(items)
	return items, nil
}

// placeComments gives comments, which belong to no section, that of what they comment on: they depend on it, and follow it.
func placeComments(items []*item) {
	section := make(map[int]int, len(items))
	current := sectionPre
	for _, it := range items {
		if it.section == sectionNone {
			it.section = current
			for _, d := range it.deps {
				if s, ok := section[d]; ok {
					it.section = s
				}
			}
		}
		current = it.section
		section[it.id] = it.section
	}
}

// tocReader reads the archive's primitives. After the end it gives zeros, and bad is set.
type tocReader struct {
	b                []byte
	intSize, offSize int
	bad              bool
}

func (r *tocReader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *tocReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// int reads a sign byte and intSize bytes, the lowest first.
func (r *tocReader) int() int {
	negative := r.byte() != 0
	v := 0
	for i, b := range r.take(r.intSize) {
		v |= int(b) << (8 * i)
	}
	if negative {
		return -v
	}
	return v
}

// string reads a length and that many bytes; a negative length is NULL.
func (r *tocReader) string() (string, bool) {
	n := r.int()
	if n < 0 || r.bad {
		return "", false
	}
	return string(r.take(n)), true
}

// notCarried are the types of items that no shard gets. Rows come by copy and stream; the rest has its finding in preflight.
var notCarried = [...]string{
	"DATABASE", "DATABASE PROPERTIES", "ACL", "DEFAULT ACL", "SECURITY LABEL", "EVENT TRIGGER",
	"PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "SUBSCRIPTION", "SUBSCRIPTION TABLE",
	"FOREIGN DATA WRAPPER", "SERVER", "FOREIGN SERVER", "USER MAPPING", "FOREIGN TABLE",
	"BLOB", "BLOBS", "BLOB COMMENTS", "BLOB METADATA", "TABLE DATA", "SEQUENCE SET", "MATERIALIZED VIEW DATA", "STATISTICS DATA",
}

func (it *item) carried() bool {
	if it.sql == "" || slices.Contains(notCarried[:], it.desc) {
		return false
	}
	if it.desc == "COMMENT" {
		for _, p := range [...]string{"DATABASE ", "EXTENSION ", "EVENT TRIGGER ", "FOREIGN ", "SERVER ", "PUBLICATION ", "SUBSCRIPTION "} {
			if len(it.tag) > len(p) && it.tag[:len(p)] == p {
				return false
			}
		}
	}
	return true
}
