package workload

import (
	"context"
	"fmt"
	"slices"
)

// documentState is a document as it can be; the zero value is none.
type documentState struct {
	there          bool
	title, bodySum string
}

func (s documentState) after(e entry) documentState {
	d := e.op.Document
	switch d.Action {
	case PutDocument:
		return documentState{there: true, title: d.Title, bodySum: e.bodySum}
	case RenameDocument:
		if s.there {
			s.title = d.Title
		}
		return s
	}
	return documentState{}
}

// expectedDocuments folds each document's writes in order. A write that was not acknowledged may or may not have
// happened: then there are several states.
func expectedDocuments(entries []entry) map[document][]documentState {
	expected := map[document][]documentState{}
	for _, e := range entries {
		if e.op.Kind != KindDocument {
			continue
		}
		key := document{e.op.Realm, e.op.Document.Document}
		states := expected[key]
		if states == nil {
			states = []documentState{{}}
		}
		next := make([]documentState, 0, 2*len(states))
		for _, s := range states {
			next = append(next, s.after(e))
		}
		if e.outcome != acknowledged {
			next = append(next, states...)
		}
		expected[key] = next
	}
	return expected
}

// documents: each document that a writer wrote is as its last acknowledged write left it.
func (c *checker) documents(ctx context.Context) (finding, error) {
	expected := expectedDocuments(c.entries)
	f := finding{figure: int64(len(expected)), detail: "titles and bodies are as they were written"}
	found := map[document]documentState{}
	var key document
	var s documentState
	var size int
	err := c.each(ctx, `
		SELECT realm_id, id::text, title, encode(sha256(convert_to(body, 'UTF8')), 'hex'), size - octet_length(body)
		FROM public.documents WHERE labels = '{written}'`,
		[]any{&key.realm, &key.id, &s.title, &s.bodySum, &size}, func(shard string) error {
			s.there = true
			if size != 0 {
				f.complain("document %s on shard %s: its generated column is wrong", key.id, shard)
			}
			if _, twice := found[key]; twice {
				f.complain("document %s is there twice", key.id)
			}
			if _, ok := expected[key]; !ok {
				f.complain("document %s was never written", key.id)
			}
			found[key] = s
			return nil
		})
	if err != nil {
		return f, err
	}
	for key, states := range expected {
		if !slices.Contains(states, found[key]) {
			f.complain("document %s of realm %s: %s", key.id, key.realm, difference(found[key], states))
		}
	}
	return f, nil
}

func difference(got documentState, states []documentState) string {
	want := states[0]
	switch {
	case !got.there:
		return "is missing"
	case !want.there:
		return "was deleted and is there"
	case got.bodySum != want.bodySum:
		return "has another body"
	}
	return fmt.Sprintf("has another title: %q, not %q", got.title, want.title)
}
