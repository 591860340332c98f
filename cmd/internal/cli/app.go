package cli

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/rehomedb/rehome/cmd/internal/client"
	"github.com/rehomedb/rehome/cmd/internal/keyfile"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// App is what the commands of one run share.
type App struct {
	Env
	Print *output.Printer

	url     string // --url
	format  string // -o
	quiet   bool
	noColor bool
	ran     bool // the command line was understood; later errors are not of usage
	lines   *lineReader
	// override says how a person goes on in spite of a finding, where the command has a way.
	override func(tenant.Finding) string
}

// target is an installation, and the database there when one was named.
type target struct {
	*client.Client
	database string
}

// Connect opens the installation that a command without a database talks to: --url, REHOME_URL, rehome.json.
func (a *App) Connect() (*client.Client, error) {
	base, err := a.baseURL()
	if err != nil {
		return nil, err
	}
	return a.dial(base)
}

// ConnectDatabase opens the installation of a database, named by URL, or by name alone at the usual installation.
// An empty name is rehome.json's dbUrl.
func (a *App) ConnectDatabase(nameOrURL string) (target, error) {
	if nameOrURL == "" {
		cfg, err := keyfile.ReadConfig(a.Dir)
		if err != nil {
			return target{}, err
		}
		if nameOrURL = cfg.DBURL; nameOrURL == "" {
			return target{}, tenant.Errorf(tenant.KindInvalid, "no-database", "name it with --db https://host/NAME, or put dbUrl into rehome.json", "no database is named")
		}
	}
	if !strings.Contains(nameOrURL, "://") {
		if err := tenant.CheckDatabaseName(nameOrURL); err != nil {
			return target{}, err
		}
		c, err := a.Connect()
		return target{Client: c, database: nameOrURL}, err
	}
	u, err := tenant.ParseDatabaseURL(nameOrURL)
	if err != nil {
		return target{}, safeURLError(err, nameOrURL)
	}
	c, err := a.dial(u.Base)
	return target{Client: c, database: u.Name}, err
}

// safeURLError keeps a connection string or credentials, given where a database's URL belongs, out of the error.
func safeURLError(err error, text string) error {
	u, perr := url.Parse(text)
	if perr == nil && u.User == nil && (u.Scheme == "http" || u.Scheme == "https") {
		return err
	}
	hint := "write it as https://host/NAME"
	if looksLikeDSN(text) {
		hint = "a connection string belongs to --from or to adopt; " + hint
	}
	return tenant.Errorf(tenant.KindInvalid, "bad-database-url", hint, "what was given is not a database's URL")
}

func looksLikeDSN(s string) bool {
	return strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") || strings.Contains(s, "host=") || strings.Contains(s, "dbname=")
}

func (a *App) baseURL() (string, error) {
	if a.url != "" {
		return a.url, nil
	}
	if u := a.Getenv("REHOME_URL"); u != "" {
		return u, nil
	}
	cfg, err := keyfile.ReadConfig(a.Dir)
	if err != nil {
		return "", err
	}
	if cfg.ServiceURL != "" {
		return cfg.ServiceURL, nil
	}
	if u, err := tenant.ParseDatabaseURL(cfg.DBURL); err == nil {
		return u.Base, nil
	}
	if a.Getenv("REHOME_SECRET") != "" {
		return operatorURL(""), nil
	}
	return "", tenant.Errorf(tenant.KindInvalid, "no-installation", "run rehome init in this directory, or name one with --url or REHOME_URL", "no installation is named")
}

// operatorURL is the installation that REHOME_SECRET belongs to: the server's own default where REHOME_URL is not set.
func operatorURL(fromEnv string) string {
	if fromEnv == "" {
		return "http://localhost:8080"
	}
	return fromEnv
}

func (a *App) dial(base string) (*client.Client, error) {
	bearer, err := a.credentials(base)
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{Base: base, Bearer: bearer, HTTP: a.HTTP, UserAgent: "rehome/" + Version(), Note: a.noteAway})
}

// credentials for an installation: its client in rehome.key, else the operator's secret, which goes to REHOME_URL's own
// host and to no other.
func (a *App) credentials(base string) (tenant.Secret, error) {
	key, found, loose, err := keyfile.ReadKey(a.Dir, base)
	if err != nil {
		return "", err
	}
	var bearer tenant.Secret
	if found {
		if loose {
			a.Print.Notef("warning: others may read %s; run: chmod 600 %s", keyfile.KeyName, keyfile.KeyName)
		}
		bearer = tenant.Secret(key.ClientID + ":" + key.ClientSecret.Reveal())
	} else if secret := a.Getenv("REHOME_SECRET"); secret != "" && sameOrigin(base, operatorURL(a.Getenv("REHOME_URL"))) {
		bearer = tenant.Secret(secret)
	}
	if bearer != "" && plainOverNetwork(base) {
		a.Print.Notef("warning: credentials go unencrypted to %s; use https://", keyfile.Normalise(base))
	}
	return bearer, nil
}

func sameOrigin(a, b string) bool {
	ua, err1 := url.Parse(keyfile.Normalise(a))
	ub, err2 := url.Parse(keyfile.Normalise(b))
	return err1 == nil && err2 == nil && ua.Host != "" && ua.Host == ub.Host && ua.Scheme == ub.Scheme
}

// plainOverNetwork reports whether a URL leaves this machine without TLS.
func plainOverNetwork(base string) bool {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}

// usage is an error of the command line.
func usage(code, hint, format string, args ...any) error {
	return &tenant.Error{Kind: tenant.KindInvalid, Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}
