package cutover

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/rehomedb/rehome/tenant"
)

// CertificateVersion is the version of the certificates that this code signs.
const CertificateVersion = 1

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

// VerifyJSON is Verify for a document as it was stored, members that this version does not know included.
func VerifyJSON(raw []byte, trusted ed25519.PublicKey) error {
	message, members, err := canonical(raw)
	if err != nil {
		return fmt.Errorf("verify the certificate: %w", err)
	}
	text := func(name string) []byte {
		s, _ := members[name].(string)
		b, _ := base64.StdEncoding.DecodeString(s) // a damaged text verifies nothing
		return b
	}
	pub, signature := text("public_key"), text("signature")
	if len(trusted) != ed25519.PublicKeySize || !bytes.Equal(pub, trusted) || !ed25519.Verify(trusted, message, signature) {
		return ErrCertificate
	}
	return nil
}

// canonical is the JSON document without its signature, with sorted members, numbers as written, no spaces and nothing
// escaped that need not be: the same bytes whatever stored the document in between.
func canonical(raw []byte) (message []byte, members map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		return nil, nil, err
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
