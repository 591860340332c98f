package cutover

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/rehomedb/rehome/tenant"
)

// CertificateVersion is the version of the certificates that this code signs.
const CertificateVersion = 1

// What a certificate says of the way back.
const (
	WayBackOpen = "open" // every write at the target goes back to the source, until rollback or complete
	WayBackNone = "none" // it was not wanted, or could not be made
)

// ErrCertificate says that a certificate does not prove what it says.
var ErrCertificate = &tenant.Error{Kind: tenant.KindRefused, Code: "bad-certificate", Message: "the certificate is not valid", Hint: "it was changed after it was signed, or another installation signed it"}

// Sign fills in public key and signature: ed25519 over the canonical JSON of the certificate without its signature.
func Sign(c *tenant.Certificate, key ed25519.PrivateKey) error {
	if len(key) != ed25519.PrivateKeySize {
		return fmt.Errorf("sign the certificate: the key has %d bytes, not %d", len(key), ed25519.PrivateKeySize)
	}
	pub, _ := key.Public().(ed25519.PublicKey)
	c.PublicKey, c.Signature = base64.StdEncoding.EncodeToString(pub), ""
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("sign the certificate: %w", err)
	}
	message, _, err := canonical(raw)
	if err != nil {
		return fmt.Errorf("sign the certificate: %w", err)
	}
	c.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(key, message))
	return nil
}

// Verify checks a certificate against the key of the installation that is trusted. ErrCertificate if it does not hold.
func Verify(c tenant.Certificate, trusted ed25519.PublicKey) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("verify the certificate: %w", err)
	}
	return VerifyJSON(raw, trusted)
}

// VerifyJSON is Verify for a document as it was stored, members that this version does not know included. What does not
// match is in the error, which wraps ErrCertificate.
func VerifyJSON(raw []byte, trusted ed25519.PublicKey) error {
	if len(trusted) != ed25519.PublicKeySize {
		return fmt.Errorf("verify the certificate: the trusted key has %d bytes, not %d", len(trusted), ed25519.PublicKeySize)
	}
	message, members, err := canonical(raw)
	if err != nil {
		return mismatch("it is no JSON object as certificates are: %v", err)
	}
	pub, err := member(members, "public_key", ed25519.PublicKeySize)
	if err != nil {
		return err
	}
	signature, err := member(members, "signature", ed25519.SignatureSize)
	if err != nil {
		return err
	}
	switch {
	case !bytes.Equal(pub, trusted):
		return mismatch("it names the key %s as its signer's, and the trusted one is %s", Fingerprint(pub), Fingerprint(trusted))
	case !ed25519.Verify(trusted, message, signature):
		return mismatch("its content and its signature do not match: one of them was changed after it was signed, or it was signed by another key than %s", Fingerprint(trusted))
	}
	return nil
}

// mismatch is ErrCertificate with what does not match.
func mismatch(format string, args ...any) error {
	e := *ErrCertificate
	e.Message += ": " + fmt.Sprintf(format, args...)
	return &e
}

// member reads a member of a fixed number of bytes in base64, which must be written in the one way that there is: else
// a byte of it could be changed unnoticed (RFC 4648, 3.5).
func member(members map[string]any, name string, size int) ([]byte, error) {
	text, ok := members[name].(string)
	if !ok || text == "" {
		return nil, mismatch("it has no %s", name)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != size || base64.StdEncoding.EncodeToString(b) != text {
		return nil, mismatch("its %s is damaged", name)
	}
	return b, nil
}

// Fingerprint names a public key for people to compare: SHA256: and base64, as ssh-keygen does.
func Fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// canonical is the JSON document without its signature, with sorted members, numbers as written, no spaces and nothing
// escaped that need not be: the same bytes whatever stored the document in between. A document that says a thing twice, or
// has something behind it, is refused: readers would not agree on what it says.
func canonical(raw []byte) (message []byte, members map[string]any, err error) {
	if !utf8.Valid(raw) {
		return nil, nil, errors.New("it is not UTF-8")
	}
	if err := unambiguous(raw); err != nil {
		return nil, nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		return nil, nil, err
	}
	if members == nil {
		return nil, nil, errors.New("it is null")
	}
	signature, signed := members["signature"]
	delete(members, "signature")
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(members); err != nil {
		return nil, nil, err
	}
	if signed {
		members["signature"] = signature
	}
	return bytes.TrimRight(b.Bytes(), "\n"), members, nil
}

// unambiguous refuses doubled members, also such that differ in case only, which some readers take for the same, and
// anything behind the document.
func unambiguous(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := walk(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

// maxDepth is deeper than any certificate.
const maxDepth = 16

func walk(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return errors.New("it is nested too deeply")
	}
	seen := map[string]bool{}
	for d.More() {
		if delim == '{' {
			name, err := d.Token()
			if err != nil {
				return err
			}
			text, _ := name.(string) // the decoder lets nothing else be a name
			folded := strings.ToLower(text)
			if seen[folded] {
				return fmt.Errorf("it says %q twice", text)
			}
			seen[folded] = true
		}
		if err := walk(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token() // what closes it
	return err
}
