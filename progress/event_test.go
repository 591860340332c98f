package progress

import (
	"testing"
)

func TestSubject(t *testing.T) {
	t.Parallel()
	got := Subject("in.st", "acme corp", "replication", "a*b>c", "progress")
	if want := "rehome.v1.in_st.acme_corp.replication.a_b_c.progress"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := Subject("i", "", "shard", "", "Ünicode"); got != "rehome.v1.i._.shard._._nicode" {
		t.Errorf("got %s", got)
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"", "a.b", true},
		{"a.b", "a.b", true},
		{"a.*", "a.b", true},
		{"a.*", "a.b.c", false},
		{"a.>", "a.b.c", true},
		{"a.>", "a", false},
		{">", "a", true},
		{"a.b.c", "a.b", false},
		{"*.b", "a.c", false},
	} {
		if got := Match(c.pattern, c.subject); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.subject, got)
		}
	}
}

func TestMarshalDataTakesWhatJSONBRefuses(t *testing.T) {
	t.Parallel()
	got, err := marshalData(map[string]string{"a": "x\x00y", "b": `\u0000`})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"a":"x\ufffdy","b":"\\u0000"}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
