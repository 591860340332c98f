package gate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// OpenSource takes the fence at the source out of the way, inside the transaction that moves the gate back to it: the event
// triggers first, which would refuse the rest, then the triggers of every table, by disabling them (DROP TRIGGER would wait
// for readers). Whatever the session's locks allow, it takes SHARE ROW EXCLUSIVE on the tables. It may be repeated. The
// gate's row is the caller's; sequences are, too.
func OpenSource(ctx context.Context, tx Querier) error {
	if _, err := tx.Exec(ctx, openDDLSQL(), pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("open the source: drop the event triggers: %w", err)
	}
	tables, err := Tables(ctx, tx)
	if err != nil {
		return fmt.Errorf("open the source: %w", err)
	}
	if sql := openSQL(owned(tables)); sql != "" {
		if _, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("open the source: %w", err)
		}
	}
	return nil
}

// Breaches is what is missing of a source's fence while its gate says that the data has moved.
type Breaches struct {
	Tables []Table // ours to fence, and without a fence that stands
	DDL    bool    // the event triggers are missing or disabled, although our role may make them
}

// Any reports whether anything is missing.
func (b Breaches) Any() bool { return len(b.Tables) > 0 || b.DDL }

// FindBreaches looks at a source whose gate says that the data has moved. Nothing is a breach while the gate says
// otherwise. The owner of tables can get around their triggers where there are no event triggers, and a superuser always.
// right is for whoever looks often; it may be nil.
func FindBreaches(ctx context.Context, conn *pgx.Conn, right *DDLRight) (Breaches, error) {
	var out Breaches
	s, err := ReadGate(ctx, conn)
	if err != nil || s.Side == SideSource {
		return out, err
	}
	tables, err := Tables(ctx, conn)
	if err != nil {
		return out, err
	}
	for _, t := range owned(tables) {
		if !t.Closed() {
			out.Tables = append(out.Tables, t)
		}
	}
	stands, err := ddlFenceStands(ctx, conn)
	if err != nil || stands {
		return out, err
	}
	out.DDL, err = right.permits(ctx, conn)
	return out, err
}

// Refence closes breaches again: what was written through them meanwhile stays where it is and must be looked for. It
// changes nothing unless the gate still says that the data has moved. right is as in FindBreaches.
func Refence(ctx context.Context, conn *pgx.Conn, right *DDLRight) error {
	permitted, err := right.permits(ctx, conn)
	if err != nil {
		return fmt.Errorf("fence the source again: %w", err)
	}
	err = withRetry(ctx, conn, func() error {
		return inTx(ctx, conn, func(tx pgx.Tx) error {
			if err := setLocal(ctx, tx, "lock_timeout", followLockTimeout); err != nil {
				return err
			}
			// The gate's row last of all locks elsewhere; here it is only shared, and whoever moves it has the tables already.
			tables, err := Tables(ctx, tx)
			if err != nil {
				return err
			}
			var side Side
			if err := tx.QueryRow(ctx, `SELECT side FROM rehome.gate FOR SHARE`).Scan(&side); err != nil {
				return fmt.Errorf("lock the gate: %w", err)
			}
			if side == SideSource {
				return nil
			}
			// Event triggers last: they would refuse the triggers.
			sql := openDDLIf(permitted) + closeSQL(disagreeing(owned(tables), SideClosed))
			if permitted {
				sql += closeDDLSQL()
			}
			if sql == "" {
				return nil
			}
			_, err = tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("fence the source again: %w", err)
	}
	return nil
}

func openDDLIf(permitted bool) string {
	if permitted {
		return openDDLSQL()
	}
	return ""
}
