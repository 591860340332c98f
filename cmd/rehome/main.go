// Rehome moves a tenant database from a hosted service to the tenant's own machines, while its users keep working.
package main

import (
	"os"

	"github.com/rehomedb/rehome/cmd/internal/cli"
)

func main() {
	os.Exit(cli.Main()) // commands of other packages, as demo.Command, are given to Main
}
