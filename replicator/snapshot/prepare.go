package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Settings make the text of values, and the encoding of both formats, the same on both sides. row_security=off turns a
// policy that would hide rows into an error. They are those of the transaction: whoever calls CopyLeaf with Prepared runs them
// at each target.
const Settings = `SET LOCAL client_encoding = 'UTF8'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC';
SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'; SET LOCAL xmloption = 'content'; SET LOCAL search_path = '';
SET LOCAL row_security = off; SET LOCAL statement_timeout = 0`

// Prepare makes the settings of the source's transaction and checks, under locks that keep rewrites out until it ends, that the
// leaves still are what was described: in one round trip for all of them, since many tables may be small. It gives an error
// for each leaf, nil where all is well: ErrRewritten, after which the session is usable, or the same for all, after which it is not.
func Prepare(ctx context.Context, source *pgconn.PgConn, leaves []catalog.Leaf) []error {
	out := make([]error, len(leaves))
	all := func(err error) []error {
		for i := range out {
			out[i] = fmt.Errorf("source: %w", err)
		}
		return out
	}
	var sql strings.Builder
	sql.WriteString(Settings)
	for _, l := range leaves {
		name := l.Name.Quoted()
		sql.WriteString("; LOCK TABLE ONLY " + name + " IN ACCESS SHARE MODE; SELECT pg_catalog.pg_relation_filenode(" + tenant.QuoteLiteral(name) + "::pg_catalog.regclass)")
	}
	results, err := source.Exec(ctx, sql.String()).ReadAll()
	if err != nil {
		return all(err)
	}
	results = slices.DeleteFunc(results, func(r *pgconn.Result) bool { return len(r.Rows) == 0 })
	if len(results) != len(leaves) {
		return all(errors.New("the filenode was not given"))
	}
	for i, l := range leaves {
		filenode, err := strconv.ParseUint(string(results[i].Rows[0][0]), 10, 32)
		if err != nil {
			return all(fmt.Errorf("read filenode: %w", err))
		}
		if uint32(filenode) != l.Filenode {
			out[i] = fmt.Errorf("%w: %s: filenode %d became %d", ErrRewritten, l.Name, l.Filenode, filenode)
		}
	}
	return out
}
