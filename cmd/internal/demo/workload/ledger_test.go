package workload

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLedgerCountsEachWriteOnce(t *testing.T) {
	t.Parallel()
	l := NewLedger(Baseline{})
	for _, id := range []string{"a", "b", "c"} {
		l.Sent(Op{ID: id, Kind: KindTransfer, Transfer: &Transfer{}})
	}
	l.Acknowledged("a", GapHTTP, SideSource)
	l.Acknowledged("a", GapHTTP, SideShards) // a second answer to the same write
	l.Acknowledged("stranger", GapHTTP, SideShards)
	l.Refused("a")
	l.Refused("b")
	want := Counts{Sent: 3, Acknowledged: 1, Refused: 1, Unknown: 1, BySide: map[string]int64{SideSource: 1}, ByKind: map[Kind]int64{KindTransfer: 1}}
	if diff := cmp.Diff(want, l.Counts()); diff != "" {
		t.Error(diff)
	}
}

func TestLedgerMeasuresGaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(Baseline{})
		ack := func(after time.Duration, group string) {
			time.Sleep(after) //nolint:forbidigo // the clock is synctest's
			id := time.Now().String()
			l.Sent(Op{ID: id})
			l.Acknowledged(id, group, SideSource)
		}
		ack(time.Hour, GapHTTP) // before the first write there is no gap
		ack(300*time.Millisecond, GapDirect)
		ack(400*time.Millisecond, GapHTTP)
		ack(100*time.Millisecond, GapDirect)
		for group, want := range map[string]float64{GapAll: 400, GapHTTP: 700, GapDirect: 500} {
			if got := l.LongestGap(group).Millis(); got != want {
				t.Errorf("%s: %g ms, want %g", group, got, want)
			}
		}
		l.ResetGaps()
		ack(50*time.Millisecond, GapHTTP)
		if got := l.LongestGap(GapAll).Millis(); got != 50 {
			t.Errorf("after a reset: %g ms", got)
		}
	})
}

func TestExpectedDocuments(t *testing.T) {
	t.Parallel()
	at := func(action DocumentAction, title, body string, o outcome) entry {
		return entry{op: Op{Realm: "r", Kind: KindDocument, Document: &DocumentEdit{Document: "d", Action: action, Title: title}}, bodySum: body, outcome: o}
	}
	state := func(title, body string) documentState { return documentState{true, title, body} }
	for _, tt := range []struct {
		name    string
		entries []entry
		want    []documentState
	}{
		{"put", []entry{at(PutDocument, "a", "1", acknowledged)}, []documentState{state("a", "1")}},
		{"renamed", []entry{at(PutDocument, "a", "1", acknowledged), at(RenameDocument, "b", "", acknowledged)}, []documentState{state("b", "1")}},
		{"renamed without being there", []entry{at(RenameDocument, "b", "", acknowledged)}, []documentState{{}}},
		{"deleted", []entry{at(PutDocument, "a", "1", acknowledged), at(DeleteDocument, "", "", acknowledged)}, []documentState{{}}},
		{"perhaps deleted", []entry{at(PutDocument, "a", "1", acknowledged), at(DeleteDocument, "", "", unknown)}, []documentState{{}, state("a", "1")}},
		{"certain again", []entry{at(PutDocument, "a", "1", unknown), at(PutDocument, "b", "2", acknowledged)}, []documentState{state("b", "2"), state("b", "2")}},
	} {
		got := expectedDocuments(tt.entries)[document{"r", "d"}]
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(documentState{})); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
