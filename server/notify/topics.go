package notify

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/tenant"
)

// Topic is a kind of news that one can ask for.
type Topic string

// Topics.
const (
	InSync            Topic = "in-sync"
	VerificationFail  Topic = "verification-failed"
	CutoverDone       Topic = "cutover-done"
	CutoverTakenBack  Topic = "cutover-taken-back"
	RolledBack        Topic = "rolled-back"
	RollbackTakenBack Topic = "rollback-taken-back"
	SlotInDanger      Topic = "slot-in-danger"
	WayBackBroken     Topic = "way-back-broken"
	Paused            Topic = "replication-paused"
	Alarm             Topic = "alarm" // any other
	Completed         Topic = "completed"
	Cancelled         Topic = "cancelled"
	DeleteConfirmed   Topic = "delete-confirmed"
	Test              Topic = "test" // asked for, never by an event
)

// Topics are those that can be asked for.
func Topics() []Topic {
	return []Topic{
		InSync, VerificationFail, CutoverDone, CutoverTakenBack, RolledBack, RollbackTakenBack, SlotInDanger, WayBackBroken,
		Paused, Alarm, Completed, Cancelled, DeleteConfirmed,
	}
}

// mailed are the topics that people are told of. The others are what somebody did just now and saw the outcome of.
var mailed = []Topic{InSync, VerificationFail, CutoverDone, RolledBack, SlotInDanger, WayBackBroken, Paused, Alarm, DeleteConfirmed}

// CheckTopics refuses unknown names. Extra names may be allowed besides.
func CheckTopics(names []string, extra ...string) error {
	var all []string
	for _, t := range Topics() {
		all = append(all, string(t))
	}
	all = append(all, extra...)
	for _, n := range names {
		if !slices.Contains(all, n) {
			return tenant.Errorf(tenant.KindInvalid, "unknown-event", "there are: "+strings.Join(all, ", "), "there is no event %q", n)
		}
	}
	return nil
}

// news is an event that somebody wants to hear of.
type news struct {
	id          int64 // events.id
	topic       Topic
	event       progress.Event
	database    string
	replication string
	// same tells news of the same matter apart from others of the topic: the code of an alarm.
	same    string
	urgency float64 // more is worse; of slot-in-danger
	facts   facts
}

// facts are what the texts need of an event's data. Fields that an event does not have stay empty.
type facts struct {
	From   tenant.Phase `json:"from"`
	To     tenant.Phase `json:"to"`
	Reason string       `json:"reason"`
	Remedy string       `json:"remedy"`
	Asked  bool         `json:"asked"` // a person wanted it

	Attempt string `json:"attempt"` // that ended with the phase

	Clean        *bool  `json:"clean"`
	Differs      *bool  `json:"differs"`
	Unfinished   int    `json:"unfinished_tables"`
	Verification string `json:"verification"`
	Rows         int64  `json:"rows"`
	Error        string `json:"error"`

	Code    string   `json:"code"`
	Detail  string   `json:"detail"`
	Seconds *float64 `json:"seconds"`

	Outcome   string   `json:"outcome"`
	Direction string   `json:"direction"`
	Culprits  []string `json:"culprits"`

	PurgeAfter string `json:"purge_after"`
}

// Types of events, as progress.Log writes them.
const (
	typePhase    = "dev.rehome.replication.phase"
	typeVerified = "dev.rehome.replication.verified"
	typeAlarm    = "dev.rehome.replication.alarm"
	typeDeleted  = "dev.rehome.database.deleted"
)

// newsOf tells whether an event is news, and of what. It is pure; what depends on what was told before is told's.
func newsOf(stored progress.Stored) (news, bool) {
	e := stored.Event
	n := news{id: stored.ID, event: e}
	// rehome.v1.<installation>.<database>.<kind>.<id>.<event>; names of databases hold nothing that subjects change.
	if t := strings.Split(e.Subject, "."); len(t) == 7 {
		n.database = strings.TrimPrefix(t[3], "_")
		if t[4] == "replication" {
			n.replication = t[5]
		}
	}
	switch e.Type {
	case typePhase, typeVerified, typeAlarm, typeDeleted:
	default:
		return n, false
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &n.facts) != nil {
		return n, false // of another version's shape
	}
	switch e.Type {
	case typePhase:
		n.topic = ofPhase(n.facts.From, n.facts.To)
		n.same = n.facts.Reason
	case typeVerified:
		n.topic = ofVerification(n.facts)
	case typeAlarm:
		n.topic, n.same = ofAlarm(n.facts.Code), n.facts.Code
		if n.facts.Seconds != nil {
			n.urgency = -*n.facts.Seconds
		}
	case typeDeleted:
		n.topic = DeleteConfirmed
	}
	return n, n.topic != ""
}

// ofPhase names the transitions that matter outside.
func ofPhase(from, to tenant.Phase) Topic {
	switch to {
	case tenant.InSync:
		switch from {
		case tenant.CatchingUp:
			return InSync
		case tenant.CuttingOver:
			return CutoverTakenBack
		}
	case tenant.CutOver:
		switch from {
		case tenant.RollingBack:
			return RollbackTakenBack
		case tenant.Paused: // it goes on where it was
			return ""
		}
		return CutoverDone
	case tenant.RolledBack:
		if from == tenant.RollingBack {
			return RolledBack
		}
		if from == tenant.CuttingOver {
			return CutoverTakenBack
		}
	case tenant.Paused:
		return Paused
	case tenant.Completed:
		return Completed
	case tenant.Cancelled:
		return Cancelled
	}
	return ""
}

// ofVerification: one that was cut short proves nothing, and is no failure unless it found a difference.
func ofVerification(f facts) Topic {
	switch {
	case f.Clean == nil || *f.Clean:
		return ""
	case f.Differs != nil && !*f.Differs:
		return ""
	}
	return VerificationFail
}

// slotWALHigh: the slot holds back more than an operator allowed. It is not lost by that.
const slotWALHigh = "slot-wal-high"

func ofAlarm(code string) Topic {
	switch {
	case code == "slot-in-danger", code == slotWALHigh, code == "slot-lost":
		return SlotInDanger
	case strings.HasPrefix(code, "way-back"):
		return WayBackBroken
	case code == "verification-not-clean":
		return "" // the event of that verification says it
	}
	return Alarm
}
