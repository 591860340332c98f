package verify

import (
	"context"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

func compareAll(context.Context, Input) ([]tenant.TableVerification, error) { return nil, nil }

func summarise(in Input, started time.Time, tables []tenant.TableVerification) tenant.Verification {
	return tenant.Verification{LSN: in.LSN, StartedAt: started, Tables: tables}
}
