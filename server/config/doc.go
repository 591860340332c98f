// Package config reads the settings of `rehome server` from flags, the environment and a TOML file.
//
// One name serves in all three places: the setting database_url of a file is REHOME_DATABASE_URL in the environment and
// --database-url on the command line. A flag is stronger than the environment, the environment stronger than the file,
// the file stronger than the default. Platforms that dictate names are met half-way: DATABASE_URL and PORT are read when
// the names of one's own are absent.
//
// Load never prints and never keeps what it read outside the Config it returns. Config prints without its secrets.
package config
