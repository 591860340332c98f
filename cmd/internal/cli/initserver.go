package cli

import (
	"context"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

func initInstallation(_ context.Context, _ config.Config, _ string) (api.ClientCreated, error) {
	return api.ClientCreated{}, tenant.Errorf(tenant.KindInternal, "not-built", "", "init is not wired yet")
}
