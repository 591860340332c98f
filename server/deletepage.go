package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/tenant"
)

// pageTemplate is the page behind the link of a confirmation e-mail. It loads nothing from elsewhere and runs no script;
// opening it does nothing, since mail scanners open links.
const pageTemplate = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">
<title>{{.Title}}</title>
<style>{{.Style}}</style></head>
<body><main>
<h1>{{.Title}}</h1>
{{range .Lines}}<p>{{.}}</p>
{{end}}{{if .Button}}<form method="post"><button type="submit">{{.Button}}</button></form>
{{end}}</main></body></html>
`

// pageStyle is allowed by its hash in the page's policy; nothing else is.
const pageStyle = `body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f4f4f2;color:#222}
main{max-width:34rem;margin:12vh auto;padding:2rem;background:#fff;border:1px solid #ddd;border-radius:6px}
h1{font-size:1.3rem;margin:0 0 1rem}p{overflow-wrap:anywhere}
button{font:inherit;margin-top:1rem;padding:.6rem 1.2rem;border:0;border-radius:4px;background:#b3261e;color:#fff;cursor:pointer}`

type page struct {
	Style  template.CSS
	Title  string
	Lines  []string
	Button string
}

func (s *Server) deletePage(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	c, err := s.peekDelete(r)
	if err != nil {
		s.writePage(w, r, err, page{})
		return
	}
	reach := s.databaseURL(name) + " is then out of reach at once; nothing sends its clients anywhere."
	if to, err := s.gateway.RedirectOf(r.Context(), name); err == nil && to.To != "" {
		reach = s.databaseURL(name) + " is then out of reach at once; its clients are still sent to " + to.To + "."
	}
	s.writePage(w, r, nil, page{Title: "Delete the database " + name + "?", Button: "Delete " + name, Lines: []string{
		reach,
		"Its data is destroyed after " + days(s.cfg.DeleteGrace) + "; until then `rehome undelete` brings it back.",
		"Asked for by " + c.By + ".",
	}})
}

// peekDelete finds the deletion that the link confirms. Guessing links counts as guessing keys.
func (s *Server) peekDelete(r *http.Request) (otp.Confirmation, error) {
	address := requestOf(r.Context()).address
	if s.failures.exhausted(address) {
		return otp.Confirmation{}, errTooManyFailures
	}
	c, err := s.confirmations().Peek(r.Context(), r.PathValue("name"), r.PathValue("token"))
	if err != nil && known(err).Kind != tenant.KindInternal {
		s.failures.count(address)
	}
	return c, err
}

func (s *Server) deletePageConfirm(w http.ResponseWriter, r *http.Request) {
	ctx, rq, name := r.Context(), requestOf(r.Context()), r.PathValue("name")
	rq.object = name
	waiting, err := s.peekDelete(r)
	if err == nil {
		rq.principal = &principal{actor: waiting.By, client: "link"}
		err = s.stillDeletable(ctx, waiting)
	}
	if err == nil {
		_, err = s.confirmations().ConfirmByToken(ctx, name, r.PathValue("token"), rq.address)
	}
	lines := []string{"The database is out of reach now."}
	if err == nil {
		st, ferr := s.finishDelete(ctx, name)
		if err = ferr; err == nil {
			if st.PurgeAfter != nil {
				lines = append(lines, "Its data is destroyed after "+st.PurgeAfter.UTC().Format("2 January 2006 15:04 MST")+"; until then `rehome undelete` brings it back.")
			}
			if st.TombstoneUntil != nil {
				lines = append(lines, "Its clients are sent to the new address until "+st.TombstoneUntil.UTC().Format("2 January 2006")+".")
			}
		}
	}
	s.auditRequest(ctx, "confirm-delete", err)
	s.writePage(w, r, err, page{Title: "Database " + name + " is deleted", Lines: lines})
}

// writePage answers with HTML that may load nothing, run nothing and be framed nowhere.
func (s *Server) writePage(w http.ResponseWriter, r *http.Request, err error, p page) {
	status := http.StatusOK
	if err != nil {
		pr := problemOf(whyCancelled(r.Context(), err), requestOf(r.Context()).id)
		s.logProblem(r, pr)
		challengeHeader(w, pr)
		status, p = pr.Status, page{Title: "This did not work", Lines: []string{pr.Detail + ".", pr.Hint}}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	sum := sha256.Sum256([]byte(pageStyle))
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer") // the address holds the token
	p.Style = pageStyle
	var b bytes.Buffer
	t, terr := template.New("page").Parse(pageTemplate)
	if terr == nil {
		terr = t.Execute(&b, p)
	}
	if terr != nil {
		s.log.ErrorContext(r.Context(), "write the page", "error", terr)
		status = http.StatusInternalServerError
	}
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
