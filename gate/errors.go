package gate

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// FenceCode is the private SQLSTATE with which a fence refuses a write; the hint carries the new URL.
const FenceCode = "RH001"

// Sentinels; compare with errors.Is.
var (
	// ErrNoGate says that nothing of the gate is installed in the database.
	ErrNoGate = &tenant.Error{Kind: tenant.KindNotFound, Code: "no-gate", Message: "there is no gate in this database", Hint: "a replication installs it when it starts"}
	// ErrGateMoved says that the gate is not where the attempt expected it: another attempt, or a RESOLVE, was first.
	ErrGateMoved = &tenant.Error{Kind: tenant.KindConflict, Code: "gate-moved", Message: "the gate at the source has moved on", Hint: "another attempt or its resolution came first; look at the replication and try again"}
	// ErrNotFenced says that the tables could not be locked before the deadline.
	ErrNotFenced = &tenant.Error{Kind: tenant.KindTimeout, Code: "fence-timed-out", Message: "the tables could not be locked before the deadline", Hint: "end the transactions that are named, then try again"}
	// ErrTablesChanged says that a table appeared behind the fence, whose rows were not replicated.
	ErrTablesChanged = &tenant.Error{Kind: tenant.KindConflict, Code: "tables-changed", Message: "tables were created or dropped at the source while it was being fenced", Hint: "wait until the schema change is done, then try again"}
	// ErrNotCommitted says that the fence's transaction was rolled back instead of committed.
	ErrNotCommitted = &tenant.Error{Kind: tenant.KindConflict, Code: "not-committed", Message: "the fence's transaction was rolled back by the server"}
	// ErrShardClosed says that a shard is fenced, so that its gate cannot go.
	ErrShardClosed = &tenant.Error{Kind: tenant.KindConflict, Code: "shard-closed", Message: "the shard does not accept writes yet", Hint: "its gate goes after the cutover, with: rehome complete"}
	// ErrForeignSchema says that schema rehome belongs to somebody else.
	ErrForeignSchema = &tenant.Error{Kind: tenant.KindRefused, Code: "schema-taken", Message: "schema rehome, or something in it, belongs to another role", Hint: "drop the schema, or connect as its owner"}
)

// IsFenced reports whether a write was refused by a fence.
func IsFenced(err error) bool { return hasCode(err, FenceCode) }

// hasCode reports whether err is Postgres' error of one of the SQLSTATEs.
func hasCode(err error, codes ...string) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pe.Code)
}
