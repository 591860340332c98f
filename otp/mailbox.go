package otp

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// Headers of our mails, for those who read them by program.
const (
	headerKind      = "X-Rehome-Kind"
	headerChallenge = "X-Rehome-Challenge"
)

// Mail is one message of a file channel's directory, as the demo and tests read it.
type Mail struct {
	Path      string
	To        string
	Subject   string
	Kind      string // KindCode…
	Challenge string // KindCode: the challenge's id
	Text      string
	Code      string // as the mail shows it; "" if it has none
	Link      string // KindDeletion: the confirmation link
}

var (
	codeLine = regexp.MustCompile(`(?m)^Code: (\S+)\s*$`)
	linkLine = regexp.MustCompile(`(?m)^Link: (\S+)\s*$`)
)

// ReadMailbox reads the mails of a file channel's directory, oldest first. A directory that is not there yet is empty.
func ReadMailbox(dir string) ([]Mail, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	if err != nil {
		return nil, fmt.Errorf("list the mailbox: %w", err)
	}
	slices.Sort(paths) // names begin with the time
	mails := make([]Mail, 0, len(paths))
	for _, p := range paths {
		m, err := readMail(p)
		if err != nil {
			return nil, fmt.Errorf("read mail %s: %w", filepath.Base(p), err)
		}
		mails = append(mails, m)
	}
	return mails, nil
}

func readMail(path string) (Mail, error) {
	f, err := os.Open(path)
	if err != nil {
		return Mail{}, err
	}
	defer func() { _ = f.Close() }()
	m, err := parseMail(f)
	m.Path = path
	return m, err
}

func parseMail(r io.Reader) (Mail, error) {
	msg, err := mail.ReadMessage(r)
	if err != nil {
		return Mail{}, err
	}
	m := Mail{Kind: msg.Header.Get(headerKind), Challenge: msg.Header.Get(headerChallenge)}
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
		return Mail{}, err
	}
	to, err := msg.Header.AddressList("To")
	if err != nil {
		return Mail{}, err
	}
	m.To = to[0].Address
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return Mail{}, err
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Mail{}, err
		}
		kind, _, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
		if err != nil || kind != "text/plain" {
			continue
		}
		text, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			return Mail{}, err
		}
		m.Text = string(text)
	}
	if f := codeLine.FindStringSubmatch(m.Text); f != nil {
		m.Code = f[1]
	}
	if f := linkLine.FindStringSubmatch(m.Text); f != nil {
		m.Link = f[1]
	}
	return m, nil
}
