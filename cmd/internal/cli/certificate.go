package cli

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// maxCertificate bounds what is read as a certificate: one with a thousand sequences on a hundred shards has 8 MB.
const maxCertificate = 32 << 20

func newCertificateCommand(a *App) *cobra.Command {
	parent := &cobra.Command{Use: "certificate", Short: "The proof of a cutover", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	o := whichOptions{ended: true}
	show := &cobra.Command{
		Use: "show [ID]", Short: "Show the signed certificate; -o json is what delete-db --certificate takes", Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			return runCertificate(cmd.Context(), a, o)
		},
	}
	o.flags(show.Flags())
	var key string
	verify := &cobra.Command{
		Use: "verify [FILE]", Short: "Verify a certificate against an installation's key, without asking anybody else", Args: rangeArgs(0, "FILE"),
		Long: "Verify a certificate: that the installation whose key you trust signed exactly this. The certificate is read from FILE, or from stdin.\n" +
			"With --key nobody is asked: it is the public key that `rehome certificate key` prints at the new side (base64), a file with it, or its\n" +
			"fingerprint (SHA256:…). Without --key the key is fetched from the installation that --url, REHOME_URL or rehome.json names.\n" +
			"Exit code 3 when something does not match.",
		Example: "  rehome certificate verify acme-certificate.json --key SHA256:9Xc…\n  rehome certificate show -o json | rehome certificate verify",
		RunE: func(cmd *cobra.Command, args []string) error {
			file := "-"
			if len(args) > 0 {
				file = args[0]
			}
			return runVerifyCertificate(cmd.Context(), a, file, key)
		},
	}
	verify.Flags().StringVar(&key, "key", "", "the key that is trusted: base64, a file, or its fingerprint (default: fetched from the installation)")
	keyCmd := &cobra.Command{
		Use: "key", Short: "Show the public key that the installation signs certificates with", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCertificateKey(cmd.Context(), a) },
	}
	parent.AddCommand(show, verify, keyCmd)
	return parent
}

func runCertificate(ctx context.Context, a *App, o whichOptions) error {
	t, r, err := o.find(ctx, a)
	if err != nil {
		return err
	}
	c, err := t.Certificate(ctx, r.ID)
	if err != nil {
		return err
	}
	return a.Print.Answer(c, func() { a.certificateText(c) })
}

func (a *App) certificateText(c tenant.Certificate) {
	signer := c.PublicKey
	if key, err := base64.StdEncoding.DecodeString(c.PublicKey); err == nil {
		signer = cutover.Fingerprint(key)
	}
	wayBack := map[string]string{cutover.WayBackOpen: "open when the target opened: every write went back to the source", cutover.WayBackNone: "none"}[c.WayBack]
	if wayBack == "" {
		wayBack = "not told"
	}
	a.Print.Table([]string{"certificate", ""}, [][]string{
		{"database", c.Database},
		{"from", c.Source},
		{"to", c.Target},
		{"replication", c.Replication},
		{"attempt", fmt.Sprintf("%s (gate epoch %d, placement epoch %d)", c.Attempt, c.GateEpoch, c.Placement)},
		{"source", "system identifier " + c.SystemID},
		{"marker", c.MarkerLSN.String()},
		{"verification", c.Verification + " at " + c.VerifiedLSN.String()},
		{"digest", c.Digest},
		{"sequences", fmt.Sprintf("%d values set", len(c.Sequences))},
		{"pause", output.Millis(c.PauseMillis)},
		{"way back", wayBack},
		{"approved by", c.ApprovedBy},
		{"decided", output.When(c.DecidedAt)},
		{"installation", c.Installation},
		{"signed by", signer},
	})
	for _, s := range c.Shards {
		a.Print.Textf("shard %s had applied everything up to %s", s.Shard, s.LSN)
	}
}

// certificateKey is the answer of certificate key.
type certificateKey struct {
	Installation string `json:"installation"`
	URL          string `json:"url"`
	PublicKey    string `json:"public_key"` // ed25519, base64
	Fingerprint  string `json:"fingerprint"`
}

func runCertificateKey(ctx context.Context, a *App) error {
	k, _, err := fetchKey(ctx, a)
	if err != nil {
		return err
	}
	return a.Print.Answer(k, func() {
		a.Print.Table([]string{"key", ""}, [][]string{{"installation", k.Installation}, {"at", k.URL}, {"public key", k.PublicKey}, {"fingerprint", k.Fingerprint}})
	})
}

// fetchKey asks the installation for its key.
func fetchKey(ctx context.Context, a *App) (certificateKey, ed25519.PublicKey, error) {
	c, err := a.Connect()
	if err != nil {
		return certificateKey{}, nil, err
	}
	inst, err := c.Installation(ctx)
	if err != nil {
		return certificateKey{}, nil, err
	}
	key, err := base64.StdEncoding.DecodeString(inst.PublicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return certificateKey{}, nil, tenant.Errorf(tenant.KindInternal, "bad-key", "compare the versions of client and server", "the installation does not tell its public key")
	}
	return certificateKey{Installation: inst.ID, URL: inst.BaseURL, PublicKey: inst.PublicKey, Fingerprint: cutover.Fingerprint(key)}, key, nil
}

// verified is the answer of certificate verify.
type verified struct {
	Valid       bool               `json:"valid"`
	Fingerprint string             `json:"fingerprint"` // of the key that signed
	Certificate tenant.Certificate `json:"certificate"`
}

func runVerifyCertificate(ctx context.Context, a *App, file, trusted string) error {
	raw, err := a.certificateFile(file)
	if err != nil {
		return err
	}
	var c tenant.Certificate
	if err := json.Unmarshal(raw, &c); err != nil {
		return &tenant.Error{Kind: tenant.KindRefused, Code: cutover.ErrCertificate.Code, Message: "the certificate is not valid: it cannot be read", Hint: cutover.ErrCertificate.Hint, Err: err}
	}
	key, err := a.trustedKey(ctx, trusted, c)
	if err != nil {
		return err
	}
	if err := cutover.VerifyJSON(raw, key); err != nil {
		return err
	}
	if c.Version != cutover.CertificateVersion {
		a.Print.Notef("the certificate is of version %d: this program knows version %d, and may not show all of it", c.Version, cutover.CertificateVersion)
	}
	return a.Print.Answer(verified{Valid: true, Fingerprint: cutover.Fingerprint(key), Certificate: c}, func() {
		a.Print.Textf("%s signed by installation %s, key %s, and not changed since", a.Print.Paint(output.Green, "ok:"), c.Installation, cutover.Fingerprint(key))
		a.certificateText(c)
	})
}

// certificateFile reads a certificate; "-" is stdin.
func (a *App) certificateFile(file string) ([]byte, error) {
	in := a.Stdin
	if file != "-" {
		if !filepath.IsAbs(file) {
			file = filepath.Join(a.Dir, file)
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, &tenant.Error{Kind: tenant.KindInvalid, Code: "no-certificate-file", Message: "the certificate cannot be read", Hint: "rehome certificate show -o json > FILE makes one", Err: err}
		}
		defer func() { _ = f.Close() }() // it was read only
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxCertificate))
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	return raw, nil
}

// trustedKey is the key that a person trusts. A fingerprint is enough, since the certificate carries the key itself.
func (a *App) trustedKey(ctx context.Context, text string, c tenant.Certificate) (ed25519.PublicKey, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		k, key, err := fetchKey(ctx, a)
		if err != nil {
			e := *tenant.AsError(err)
			e.Hint = "name the key that you trust with --key (rehome certificate key shows it at the new side), or its installation with --url"
			return nil, &e
		}
		a.Print.Notef("the key is the one of installation %s at %s: %s", k.Installation, k.URL, k.Fingerprint)
		return key, nil
	}
	if strings.HasPrefix(text, "SHA256:") {
		key, err := base64.StdEncoding.DecodeString(c.PublicKey)
		if err != nil || len(key) != ed25519.PublicKeySize || cutover.Fingerprint(key) != text {
			e := *cutover.ErrCertificate
			e.Message += ": the key in it is not the one with the fingerprint " + text
			return nil, &e
		}
		return key, nil
	}
	if key, err := base64.StdEncoding.DecodeString(text); err == nil && len(key) == ed25519.PublicKeySize {
		return key, nil
	}
	path := text
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.Dir, path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usage("bad-key", "write what rehome certificate key prints: the key in base64, or its fingerprint; or name a file with it", "--key is neither a public key nor a file")
	}
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	var doc certificateKey // what certificate key -o json prints
	if json.Unmarshal(b, &doc) == nil && doc.PublicKey != "" {
		b = []byte(doc.PublicKey)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, usage("bad-key", "write what rehome certificate key prints", "the file holds no public key")
	}
	return key, nil
}
