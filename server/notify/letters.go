package notify

import (
	"fmt"
	"time"

	"github.com/rehomedb/rehome/otp"
)

// word says what happened to somebody who was asleep: what, where, and what to do now.
func (n *Notifier) word(x news, w where) otp.Notice {
	f := x.facts
	rep := func(command string) string {
		s := "$ rehome " + command
		if w.Replication != "" {
			s += " " + w.Replication
		}
		return s
	}
	look := rep("replication-progress")
	o := otp.Notice{Link: n.cfg.BaseURL}
	if w.Target != "" {
		o.Link = w.Target
	}
	switch x.topic {
	case InSync:
		o.Subject = w.Database + " is in sync"
		o.What = fmt.Sprintf("Database %s is copied, and every change arrives at the new side. The old side still takes the writes.", w.Database)
		o.Next = []string{"Compare both sides, then see what a cutover would say:", rep("verify"), rep("cutover") + " --dry-run", "Nothing is urgent: it stays in step until you cut over or cancel."}
	case VerificationFail:
		o.Subject = "verification of " + w.Database + " found differences"
		o.What = fmt.Sprintf("A comparison of both sides of %s found that they are not equal. A cutover is refused until one is clean.", w.Database)
		if f.Error != "" {
			o.What += " " + f.Error
		}
		o.Next = []string{"See which rows and columns:", rep("verify") + " --last", "Copy the rows that differ again, through the stream:", rep("verify") + " --repair", "The clients are not affected; the old side takes the writes."}
	case CutoverDone:
		o.Subject = w.Database + " was cut over: the new side takes the writes"
		o.What = fmt.Sprintf("Database %s now lives on the new side. The old side refuses writes.", w.Database)
		if w.Pause != nil && *w.Pause > 0 {
			o.What += fmt.Sprintf(" Writes paused for %.0f ms.", *w.Pause)
		}
		o.Next = []string{
			"Watch the way back and the clients that still come to the old address:", look, "If something is wrong, the old side can take the writes again, with what was written since:", rep("rollback"),
			"When nobody wants to go back:", rep("complete"),
		}
	case RolledBack:
		o.Subject = w.Database + " was rolled back: the old side takes the writes again"
		o.What = fmt.Sprintf("Database %s is served by the old side again, with what was written at the new one. The new side is kept in step as before the cutover.", w.Database)
		if w.Pause != nil && *w.Pause > 0 {
			o.What += fmt.Sprintf(" Writes paused for %.0f ms.", *w.Pause)
		}
		o.Next = []string{"Clients that were redirected must come back: take a redirect away with", "$ rehome redirect --off --from OLD-URL", "Find out what was wrong; a cutover can be tried again:", look}
	case SlotInDanger:
		o.Subject = "URGENT: the replication of " + w.Database + " may lose its place at the source"
		o.What = fmt.Sprintf("The source may soon throw away changes that the new side of %s still needs.", w.Database)
		if f.Seconds != nil {
			o.What = fmt.Sprintf("In about %s the source throws away changes that the new side of %s still needs. The replication would then have to begin again; the data at the source is safe.", span(*f.Seconds), w.Database)
		}
		if f.Code == slotWALHigh {
			o.Subject = "the replication of " + w.Database + " holds back more of its source's disk than was allowed"
			o.What = fmt.Sprintf("The source keeps changes on its disk until the new side of %s has them; that is more now than was allowed (throttle --max-slot-wal).", w.Database)
			o.Next = []string{"Make sure that the source's disk has room, and see why the new side is behind:", look, "To free the disk at once, at the price of beginning anew:", rep("cancel-replication")}
			break
		}
		o.Next = []string{"At the source, allow more (a reload is enough):", "$ psql SOURCE -c \"ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'\" -c \"SELECT pg_reload_conf()\"", "and make sure that its disk has that room. Then see why the new side is behind:", look}
	case WayBackBroken:
		o.Subject = "no way back for " + w.Database + " at present"
		o.What = fmt.Sprintf("What is written to %s at the new side no longer arrives at the old one, so a rollback is refused. The clients are not affected.", w.Database)
		o.Next = []string{"See what it says and what helps:", look, "If nobody wants to go back, end it:", rep("complete")}
	case Paused:
		o.Subject = "the replication of " + w.Database + " has stopped and needs you"
		o.What = fmt.Sprintf("The replication of %s is paused. The side that takes the writes goes on doing so; the other side falls behind, and the source keeps the changes for it on its disk.", w.Database)
		o.Next = []string{"See what it says:", look, "When it is mended:", rep("resume-replication")}
	case Alarm:
		o.Subject = "alarm: " + w.Database + ": " + f.Code
		o.What = fmt.Sprintf("Something about %s needs a look.", w.Database)
		o.Next = []string{"See how it stands:", look, "$ rehome doctor"}
	case DeleteConfirmed:
		o.Subject = w.Database + " was deleted"
		o.What = fmt.Sprintf("The deletion of database %s was confirmed: nobody reaches it any more.", w.Database)
		if at, err := time.Parse(time.RFC3339Nano, f.PurgeAfter); err == nil {
			o.What += fmt.Sprintf(" Its data is kept until %s and destroyed then.", at.UTC().Format("2006-01-02 15:04 UTC"))
		}
		o.Next = []string{"If this was a mistake, take it back before that:", "$ rehome undelete " + n.cfg.BaseURL + "/" + w.Database}
		o.Link = n.cfg.BaseURL + "/" + w.Database
	}
	o.Subject = issuer + ": " + o.Subject
	for _, line := range []struct{ name, value string }{
		{"When", x.event.Time.UTC().Format("2006-01-02 15:04:05 UTC")},
		{"Database", w.Database},
		{"Replication", w.Replication},
		{"Old side", w.Source},
		{"New side", w.Target},
		{"Why", f.Reason},
		{"What", f.Detail},
		{"Remedy", f.Remedy},
		{"Installation", n.cfg.BaseURL},
	} {
		if line.value != "" {
			o.Where = append(o.Where, line.name+": "+line.value)
		}
	}
	o.Closing = "You get this as the owner of the database or as who approved its move. Less of it: rehome notifications ADDRESS --mute " + string(x.topic) + " --url " + n.cfg.BaseURL
	o.Values = map[string]any{"event": x.topic, "event_id": x.event.ID, "database": w.Database, "replication": w.Replication, "reason": f.Reason, "detail": f.Detail, "time": x.event.Time.UTC()}
	return o
}

// span is a time that is left, for people.
func span(seconds float64) string {
	switch d := time.Duration(seconds * float64(time.Second)); {
	case d <= 0:
		return "a moment (at the source's next checkpoint)"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
}
