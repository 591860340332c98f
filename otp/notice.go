package otp

import (
	"fmt"
	htmltemplate "html/template"
	"strings"
	texttemplate "text/template"
)

// KindNotice is the kind of messages that tell what happened; nothing is asked.
const KindNotice = "notice"

// Notice is what a person is told: what happened, where, and what to do next.
type Notice struct {
	Subject string
	What    string   // in a sentence or two
	Where   []string // lines
	Next    []string // steps; what begins with "$ " is a command
	Link    string
	Closing string
	Values  map[string]any // for a webhook that words its own mails
}

const textNotice = `{{.What}}
{{if .Where}}
{{range .Where}}    {{.}}
{{end}}{{end}}{{if .Next}}
What to do:
{{range .Next}}    {{.}}
{{end}}{{end}}{{if .Link}}
Link: {{.Link}}
{{end}}
{{.Closing}}

{{.Issuer}}
`

const htmlNotice = `<!doctype html><html><body style="font-family:sans-serif;max-width:44em">
<p>{{.What}}</p>
{{if .Where}}<p style="padding:.8em;background:#f3f3f3">{{range $i, $l := .Where}}{{if $i}}<br>{{end}}{{$l}}{{end}}</p>{{end}}
{{if .Next}}<p>What to do:</p><p>{{range $i, $s := .Steps}}{{if $i}}<br>{{end}}{{if $s.Command}}<code>{{$s.Text}}</code>{{else}}{{$s.Text}}{{end}}{{end}}</p>{{end}}
{{if .Link}}<p><a href="{{.Link}}">{{.Link}}</a></p>{{end}}
<p style="color:#666">{{.Closing}}</p><p>{{.Issuer}}</p></body></html>
`

var (
	noticeText = texttemplate.Must(texttemplate.New("text").Parse(textNotice))
	noticeHTML = htmltemplate.Must(htmltemplate.New("html").Parse(htmlNotice))
)

// noticeStep is one line of what to do.
type noticeStep struct {
	Text    string
	Command bool
}

// NoticeMessage words a notice for one person. What others named (databases, tables, reasons) is made printable line by
// line, so that none of it can look like a line of ours.
func NoticeMessage(to, issuer string, n Notice) (Message, error) {
	letter := struct {
		Notice
		Issuer string
		Steps  []noticeStep
	}{Notice: n, Issuer: issuer}
	letter.What, letter.Link, letter.Closing = printable(n.What), printable(n.Link), printable(n.Closing)
	letter.Where, letter.Next = printableAll(n.Where), printableAll(n.Next)
	for _, s := range letter.Next {
		_, command := strings.CutPrefix(s, "$ ")
		letter.Steps = append(letter.Steps, noticeStep{Text: s, Command: command})
	}
	var text, html strings.Builder
	if err := noticeText.Execute(&text, letter); err != nil {
		return Message{}, fmt.Errorf("write the mail's text: %w", err)
	}
	if err := noticeHTML.Execute(&html, letter); err != nil {
		return Message{}, fmt.Errorf("write the mail's HTML: %w", err)
	}
	return Message{To: to, Subject: oneLine(printable(n.Subject)), Text: text.String(), HTML: html.String(), Kind: KindNotice, Data: n.Values}, nil
}

func printableAll(in []string) []string {
	var out []string
	for _, l := range in {
		if l = printable(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}
