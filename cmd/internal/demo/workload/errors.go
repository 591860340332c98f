package workload

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// FenceCode is the SQLSTATE with which a fenced database refuses a write. It is part of the contract with clients, so it
// is written down here as a client would.
const FenceCode = "RH001"

// Sentinels; compare with errors.Is.
var (
	// ErrMoved says that the database accepts no writes here; the hint says where it does.
	ErrMoved = &tenant.Error{Kind: tenant.KindUnavailable, Code: "moved", Message: "the database accepts no writes here"}
	// ErrRefused says that the write can never succeed as it is: no such account, or not enough money in it.
	ErrRefused = &tenant.Error{Kind: tenant.KindRefused, Code: "refused", Message: "the write breaks a rule of the application"}
)

// moved turns a fence's error into ErrMoved with the fence's hint; others stay what they are.
func moved(err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == FenceCode {
		return &tenant.Error{Kind: ErrMoved.Kind, Code: ErrMoved.Code, Message: pe.Message, Hint: pe.Hint, Err: err}
	}
	return err
}

func hasCode(err error, codes ...string) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pe.Code)
}
