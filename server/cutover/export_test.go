package cutover

import (
	"context"

	"github.com/rehomedb/rehome/tenant"
)

// CheckCatalogues is checkCatalogues, for tests.
func CheckCatalogues(ctx context.Context, job Job) ([]tenant.Finding, error) {
	f := &findings{}
	err := checkCatalogues(ctx, job, f)
	return f.list, err
}
