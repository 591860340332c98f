package otp

import (
	"fmt"
	htmltemplate "html/template"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode"
)

// letter is what all our mails are made of. The code stands before the plan, so that no text of a plan can pass for it.
type letter struct {
	Issuer    string
	Greeting  string // what this is about, in a sentence
	Code      string
	Link      string
	Expires   string
	Plan      []string // lines
	By, From  string
	Closing   string
	Action    string
	Database  string
	Challenge string
}

const textLetter = `{{.Greeting}}
{{if .Code}}
Code: {{.Code}}
{{end}}{{if .Link}}
Link: {{.Link}}
{{end}}{{if .Expires}}
Valid until {{.Expires}}, for exactly this and for one use:
{{end}}{{if .Plan}}
{{range .Plan}}    {{.}}
{{end}}{{end}}{{if .By}}
Asked for by {{.By}}{{if .From}} from {{.From}}{{end}}.
{{end}}
{{.Closing}}

{{.Issuer}}
`

const htmlLetter = `<!doctype html><html><body style="font-family:sans-serif;max-width:40em">
<p>{{.Greeting}}</p>
{{if .Code}}<p style="font-size:1.8em;letter-spacing:.1em"><b>{{.Code}}</b></p>{{end}}
{{if .Link}}<p><a href="{{.Link}}">Confirm</a> (opens a page with a button; nothing happens before you press it)</p>{{end}}
{{if .Expires}}<p>Valid until {{.Expires}}, for exactly this and for one use:</p>{{end}}
{{if .Plan}}<p style="padding:.8em;background:#f3f3f3">{{range $i, $l := .Plan}}{{if $i}}<br>{{end}}{{$l}}{{end}}</p>{{end}}
{{if .By}}<p>Asked for by {{.By}}{{if .From}} from {{.From}}{{end}}.</p>{{end}}
<p>{{.Closing}}</p><p>{{.Issuer}}</p></body></html>
`

var (
	textTemplate = texttemplate.Must(texttemplate.New("text").Parse(textLetter))
	htmlTemplate = htmltemplate.Must(htmltemplate.New("html").Parse(htmlLetter))
)

const notYou = "If you did not expect this, do nothing: without the code nothing happens. Give it to nobody who asks you for it. Then tell whoever runs this installation."

func (l letter) message(kind, to, subject string, data map[string]any) (Message, error) {
	var text, html strings.Builder
	if err := textTemplate.Execute(&text, l); err != nil {
		return Message{}, fmt.Errorf("write the mail's text: %w", err)
	}
	if err := htmlTemplate.Execute(&html, l); err != nil {
		return Message{}, fmt.Errorf("write the mail's HTML: %w", err)
	}
	return Message{To: to, Subject: subject, Text: text.String(), HTML: html.String(), Kind: kind, Data: data}, nil
}

// TestMessage is what a new channel is tried with.
func TestMessage(to, installation string) (Message, error) {
	return letter{
		Issuer: "Rehome", Greeting: "This is a test: codes of the installation " + printable(installation) + " will reach you this way.",
		Closing: "There is nothing to do.",
	}.message(KindTest, to, "Rehome: test of the e-mail channel", nil)
}

func codeMessage(issuer string, r Request, id, code string, expires time.Time) (Message, error) {
	action, database := printable(r.Action), printable(r.Database)
	return letter{
		Issuer: issuer, Greeting: "Your approval is asked for: " + action + " of database " + database + ".", Code: code, Expires: expires.UTC().Format(time.RFC1123),
		Plan: lines(r.PlanText), By: printable(r.RequestedBy), From: printable(r.Address), Closing: notYou,
	}.message(KindCode, r.Recipient, issuer+": code for "+action+" of "+database, map[string]any{
		dataChallenge: id, "code": code, "action": r.Action, "database": r.Database, "plan": r.PlanText,
		"expires_at": expires.UTC(), "requested_by": r.RequestedBy, "address": r.Address,
	})
}

func enrolMessage(issuer, email, code, by, address string, expires time.Time) (Message, error) {
	return letter{
		Issuer: issuer, Greeting: "An authenticator app is about to be enrolled for your address. Its codes could then approve what you decide, without a mail.", Code: code,
		Expires: expires.UTC().Format(time.RFC1123), By: printable(by), From: printable(address), Closing: notYou,
	}.message(KindTOTPEnrol, email, issuer+": code to enrol an authenticator app", map[string]any{
		"code": code, "expires_at": expires.UTC(), "requested_by": by, "address": address,
	})
}

func enrolledMessage(issuer, email, by, address string) (Message, error) {
	return letter{
		Issuer: issuer, Greeting: "An authenticator app was enrolled for your address. Its codes can from now on approve what you decide.",
		By: printable(by), From: printable(address), Closing: "If this was not you, have it removed (rehome totp remove) by whoever runs this installation.",
	}.message(KindTOTPEnrolled, email, issuer+": an authenticator app was enrolled", nil)
}

func deletionMessage(issuer string, r ConfirmationRequest, link, code string, expires time.Time) (Message, error) {
	database := printable(r.Database)
	return letter{
		Issuer: issuer, Greeting: "Database " + database + " is about to be deleted. Confirm by the link or by the code.", Code: code, Link: link,
		Expires: expires.UTC().Format(time.RFC1123), Plan: lines(r.Text), By: printable(r.By), From: printable(r.Address), Closing: notYou,
	}.message(KindDeletion, r.Recipient, issuer+": confirm the deletion of "+database, map[string]any{
		"code": code, "link": link, "database": r.Database, "plan": r.Text, "expires_at": expires.UTC(), "requested_by": r.By, "address": r.Address,
	})
}

// lines makes the lines of a plan printable, so that nothing in a name can look like a line of ours.
func lines(s string) []string {
	var out []string
	for l := range strings.Lines(s) {
		if l = printable(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s))
}

// Mask shows enough of an address to recognise it: "a***@example.com".
func Mask(email string) string {
	name, host, ok := strings.Cut(email, "@")
	if !ok || name == "" {
		return "***"
	}
	first := []rune(name)[0]
	return string(first) + "***@" + host
}
