// Rehome moves a tenant database from a hosted service to the tenant's own machines, while its users keep working.
package main

import (
	"os"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/cmd/internal/demo"
)

func main() {
	os.Exit(cli.Main(demo.Command))
}
