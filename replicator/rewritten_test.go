package replicator_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// TestTruncatedDuringTheCopy empties and fills a table again and again while others are copied. It arrives all the same,
// and the others are not copied anew for it.
func TestTruncatedDuringTheCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1}, `
		CREATE TABLE large (realm_id text NOT NULL, id int NOT NULL, pad text, PRIMARY KEY (realm_id, id));
		INSERT INTO large SELECT 'r' || (g % 20), g, repeat('x', 200) FROM generate_series(1, 2000) g;
		CREATE TABLE queue (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id));
		INSERT INTO queue SELECT 'r' || (g % 20), g FROM generate_series(1, 10) g;`)
	r.jour.slow = 500 // the larger table is done; the other comes half a second after the snapshot
	writer := open(t, r.source)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		every := 250 * time.Millisecond
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(every):
				exec(t, writer, `BEGIN; TRUNCATE queue; INSERT INTO queue SELECT 'r' || (g % 20), g FROM generate_series(1, 10) g; COMMIT`)
			}
			if n%10 == 0 { // a machine so busy that it copies ten rows more slowly than this would never come to an end
				every += every / 2
			}
		}
	}()
	e, end := r.start()
	defer end()
	r.waitPhase(tenant.InSync)
	close(stop)
	<-done
	r.verifyClean(e)
	r.jour.mu.Lock()
	defer r.jour.mu.Unlock()
	if n := len(slices.DeleteFunc(slices.Clone(r.jour.copies), func(s string) bool { return s != "public.large" })); n != 1 {
		t.Errorf("the table that was left alone was copied %d times", n)
	}
	if !slices.ContainsFunc(r.jour.notes, func(s string) bool { return strings.Contains(s, "copying what was rewritten meanwhile") }) {
		t.Errorf("nothing was rewritten, so that this shows nothing: %v", r.jour.notes)
	}
	if i := slices.IndexFunc(r.jour.notes, func(s string) bool { return strings.HasPrefix(s, "retry") }); i >= 0 {
		t.Errorf("the whole copy was begun again: %s", r.jour.notes[i])
	}
}
