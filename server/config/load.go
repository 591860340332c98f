package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/toml/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/rehomedb/rehome/tenant"
)

const envPrefix = "REHOME_"

// setting is one line of the contract's table.
type setting struct {
	name   string // in files; upper-case with REHOME_ in the environment, with dashes as a flag
	usage  string
	secret bool
}

func settings() []setting {
	return []setting{
		{"database_url", "control database (postgres://…)", true},
		{"secret", "32+ random bytes that stored secrets' keys derive from; better set in the environment", true},
		{"url", "public base URL (default " + DefaultURL + ")", false},
		{"listen", "address of HTTP API, gateway, probes and metrics (default " + DefaultListen + ")", false},
		{"pg_listen", "address of the Postgres gateway (default " + DefaultPGListen + ")", false},
		{"nats_url", "outside NATS server (default: embedded)", true},
		{"nats_store", "folder of the embedded NATS server (default: temporary)", false},
		{"email_url", "smtp://, smtps://, https:// (webhook), file:///dir or log: (default " + DefaultEmailURL + ")", true},
		{"usage_stats", "enabled or disabled (default enabled)", false},
		{"webhook_networks", "where webhooks may go: any, or public to refuse private networks (default any)", false},
		{"pprof", "address of profiles of the running server at /debug/pprof/, such as 127.0.0.1:6060 (default: none)", false},
		{"pprof_networks", "where --pprof may listen: loopback, or any, which shows profiles to whoever reaches the address (default loopback)", false},
		{"server_name", "name of this server among those of the installation (default: host name)", false},
		{"drain_timeout", "how long a stop waits for requests in flight (default " + DefaultDrainTimeout.String() + ")", false},
		{"delete_grace", "how long a deleted database can be undeleted (default " + DefaultDeleteGrace.String() + ")", false},
		{"tombstone", "how long the redirect of a deleted database lives on (default " + DefaultTombstone.String() + ")", false},
		{"redirect_permanent_after", "age at which a redirect answers 308 instead of 307, or off (default " + DefaultPermanentAfter.String() + ")", false},
		{"close_window", "how long closing a moved database's WebSockets takes at most (default " + DefaultCloseWindow.String() + ")", false},
		{"hold_wait", "how long a request waits while its database is held (default " + DefaultHoldWait.String() + ")", false},
		{"trusted_proxies", "addresses or networks of load balancers whose X-Forwarded-For is believed, separated by commas (default: none)", false},
		{"max_connections", fmt.Sprintf("bound of the pool to the control database (default %d)", DefaultMaxConnections), false},
	}
}

func (s setting) flag() string { return strings.ReplaceAll(s.name, "_", "-") }
func (s setting) env() string  { return envPrefix + strings.ToUpper(s.name) }

func find(name string) (setting, bool) {
	all := settings()
	i := slices.IndexFunc(all, func(s setting) bool { return s.name == name })
	if i < 0 {
		return setting{}, false
	}
	return all[i], true
}

// AddFlags adds a flag for every setting, with an empty default: what a flag leaves out, the environment or file may say.
func AddFlags(fs *pflag.FlagSet) {
	for _, s := range settings() {
		fs.String(s.flag(), "", s.usage+" ["+s.env()+"]")
	}
	fs.String("config", "", "TOML file with the same names ["+envPrefix+"CONFIG]")
}

// Sources is where Load looks. The zero value is the environment alone.
type Sources struct {
	Flags   *pflag.FlagSet  // with AddFlags' flags, parsed; may be nil
	Environ func() []string // default os.Environ
}

// Load reads the settings, fills the defaults and validates. Its errors are *tenant.Error of KindInvalid and never quote
// a secret.
func Load(src Sources) (Config, error) {
	c, err := Read(src)
	if err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// Read is Load without the validation, for commands that need some of the settings and for --print-config.
func Read(src Sources) (Config, error) {
	if src.Environ == nil {
		src.Environ = os.Environ
	}
	k := koanf.New(".")
	path := lookup(src.Environ(), envPrefix+"CONFIG")
	if src.Flags != nil && src.Flags.Changed("config") {
		path, _ = src.Flags.GetString("config")
	}
	if path != "" {
		if err := loadFile(k, path); err != nil {
			return Config{}, err
		}
	}
	if err := k.Load(confmap.Provider(fallbacks(src.Environ(), k), "."), nil); err != nil {
		return Config{}, fmt.Errorf("read the environment: %w", err)
	}
	known := func(key, value string) (string, any) {
		name := strings.ToLower(strings.TrimPrefix(key, envPrefix))
		if _, ok := find(name); !ok || value == "" {
			return "", nil
		}
		return name, value
	}
	if err := k.Load(env.Provider(".", env.Opt{Prefix: envPrefix, TransformFunc: known, EnvironFunc: src.Environ}), nil); err != nil {
		return Config{}, fmt.Errorf("read the environment: %w", err)
	}
	if src.Flags != nil {
		pick := func(f *pflag.Flag) (string, any) {
			name := strings.ReplaceAll(f.Name, "-", "_")
			if _, ok := find(name); !ok || !f.Changed {
				return "", nil
			}
			return name, f.Value.String()
		}
		if err := k.Load(posflag.ProviderWithFlag(src.Flags, ".", k, pick), nil); err != nil {
			return Config{}, fmt.Errorf("read the flags: %w", err)
		}
	}
	return decode(k)
}

// decode avoids koanf's reflection for the two types that are not text, so that the error can name the setting.
func decode(k *koanf.Koanf) (Config, error) {
	c := Config{
		DatabaseURL: tenant.DSN(k.String("database_url")), Secret: tenant.Secret(k.String("secret")), URL: k.String("url"),
		Listen: k.String("listen"), PGListen: k.String("pg_listen"), NATSURL: k.String("nats_url"), NATSStore: k.String("nats_store"),
		EmailURL: tenant.Secret(k.String("email_url")), UsageStats: k.String("usage_stats"), WebhookNetworks: k.String("webhook_networks"), ServerName: k.String("server_name"),
		TrustedProxies: k.String("trusted_proxies"), Pprof: k.String("pprof"), PprofNetworks: k.String("pprof_networks"),
	}
	for name, field := range map[string]*time.Duration{
		"drain_timeout": &c.DrainTimeout, "delete_grace": &c.DeleteGrace, "tombstone": &c.Tombstone,
		"redirect_permanent_after": &c.RedirectPermanentAfter, "close_window": &c.CloseWindow, "hold_wait": &c.HoldWait,
	} {
		text := k.String(name)
		if name == "redirect_permanent_after" && text == off {
			*field = -1
			continue
		}
		if text == "" {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			return Config{}, bad("bad-"+strings.ReplaceAll(name, "_", "-"), "write a duration such as 20s or 720h", "the setting %s is no duration", name)
		}
		*field = d
	}
	if text := k.String("max_connections"); text != "" {
		var err error
		if c.MaxConnections, err = strconv.Atoi(text); err != nil { // all of it: 20s is no number
			return Config{}, bad("bad-max-connections", "write a number", "the setting max_connections is no number")
		}
	}
	return c.WithDefaults(), nil
}

func loadFile(k *koanf.Koanf, path string) error {
	if err := k.Load(file.Provider(path), toml.Parser()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return bad("no-config-file", "name an existing TOML file with --config", "there is no file %s", path)
		}
		// The parser quotes the line at fault, which may hold a secret.
		return bad("bad-config-file", "write name = \"value\" lines, as `rehome server --print-config` shows", "%s is not a TOML file that can be read", path)
	}
	for _, key := range k.Keys() {
		if _, ok := find(key); !ok {
			return bad("unknown-setting", "see `rehome server --print-config` for the names", "%s: there is no setting %q", path, key)
		}
	}
	return nil
}

// fallbacks are the names that hosting platforms dictate. They are stronger than the file, as the environment is.
func fallbacks(environ []string, k *koanf.Koanf) map[string]any {
	out := map[string]any{}
	if v := lookup(environ, "DATABASE_URL"); v != "" && k.String("database_url") == "" {
		out["database_url"] = v
	}
	if v := lookup(environ, "PORT"); v != "" && k.String("listen") == "" {
		out["listen"] = ":" + v
	}
	return out
}

func lookup(environ []string, name string) string {
	value := ""
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

// Print writes the settings in force as a TOML file that Load reads, secrets left out of it.
func (c Config) Print(w io.Writer) error {
	values := map[string]string{
		"database_url": c.DatabaseURL.String(), "secret": show(c.Secret.Reveal()), "url": c.URL, "listen": c.Listen, "pg_listen": c.PGListen,
		"nats_url": redactURL(c.NATSURL), "nats_store": c.NATSStore, "email_url": redactURL(c.EmailURL.Reveal()), "usage_stats": c.UsageStats, "webhook_networks": c.WebhookNetworks,
		"server_name": c.ServerName, "drain_timeout": c.DrainTimeout.String(), "max_connections": fmt.Sprint(c.MaxConnections),
		"delete_grace": c.DeleteGrace.String(), "tombstone": c.Tombstone.String(),
		"redirect_permanent_after": orOff(c.RedirectPermanentAfter), "close_window": c.CloseWindow.String(), "hold_wait": c.HoldWait.String(),
		"trusted_proxies": c.TrustedProxies, "pprof": c.Pprof, "pprof_networks": c.PprofNetworks,
	}
	if c.DatabaseURL == "" {
		values["database_url"] = ""
	}
	for _, s := range settings() {
		if _, err := fmt.Fprintf(w, "%s = %q\n", s.name, values[s.name]); err != nil {
			return fmt.Errorf("print the settings: %w", err)
		}
	}
	return nil
}

// off is how a setting says that something never happens by itself.
const off = "off"

func orOff(d time.Duration) string {
	if d < 0 {
		return off
	}
	return d.String()
}

func show(secret string) string {
	if secret == "" {
		return ""
	}
	return tenant.Secret(secret).String()
}
