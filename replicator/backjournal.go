package replicator

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// backJournal is what a reverse engine takes for its journal: nothing pauses the replication. A problem marks the way back
// as broken, and what is news goes to the replication's journal in the words of the way back.
type backJournal struct {
	b *Back
	s *backSide
}

// Observe implements Journal: the engine stays where it is, streaming.
func (j *backJournal) Observe(ctx context.Context, o tenant.Observation) (tenant.State, error) {
	st := tenant.State{Phase: tenant.InSync}
	if o.Kind != tenant.SawProblem {
		return st, nil
	}
	p := problem{reason: "the way back from shard " + j.s.shard.Name + ": " + j.s.words(o.Reason), remedy: backRemedy(j.s.words(o.Remedy))}
	j.s.mu.Lock()
	j.s.problem = p
	j.s.mu.Unlock()
	j.alarm(ctx, p)
	return st, nil
}

// alarm tells of a problem once.
func (j *backJournal) alarm(ctx context.Context, p problem) {
	j.s.mu.Lock()
	news := j.s.told != p.reason
	j.s.told = p.reason
	j.s.mu.Unlock()
	if news {
		j.b.log.Error("alarm", "code", "way-back-broken", "detail", p.reason)
		j.b.cfg.Journal.Note(ctx, "alarm", map[string]any{"code": "way-back-broken", "shard": j.s.shard.Name, "detail": p.reason, "remedy": p.remedy})
	}
}

// backRemedy replaces what only helps a replication: there is no start again for a way back.
func backRemedy(remedy string) string {
	const giveUp = "if it cannot be mended: rehome complete, which gives the way back up"
	remedy = strings.ReplaceAll(remedy, "then: rehome resume-replication", "it is tried again by itself")
	if remedy == "" || strings.Contains(remedy, "start it again") || strings.Contains(remedy, "verify --repair") {
		return giveUp
	}
	return remedy + "; " + giveUp
}

// SaveOrigin implements Journal.
func (j *backJournal) SaveOrigin(context.Context, Origin) error { return nil }

// ChangeSource implements Journal. What is changed at a shard is recorded there, see Prepare.
func (j *backJournal) ChangeSource(context.Context, tenant.SourceChange) error { return nil }

// CopiedTable implements Journal.
func (j *backJournal) CopiedTable(context.Context, string, int, tenant.LSN, int64, int64) error {
	return nil
}

// Note implements Journal.
func (j *backJournal) Note(ctx context.Context, event string, data any) {
	if event != "alarm" && event != "retry" {
		return
	}
	values, ok := data.(map[string]any)
	if !ok {
		return
	}
	out := map[string]any{"way_back_from": j.s.shard.Name}
	for k, v := range values {
		if text, ok := v.(string); ok {
			v = j.s.words(text)
		}
		out[k] = v
	}
	j.b.cfg.Journal.Note(ctx, event, out)
}

// backGates is what a reverse engine takes for the replication's gate: of it, it only writes heartbeats.
type backGates struct{ BackGate }

func (backGates) InstallSource(context.Context, *pgx.Conn) error { return nil }
func (backGates) InstallShard(context.Context, *pgx.Conn) error  { return nil }
func (backGates) FenceShard(context.Context, *pgx.Conn) error    { return nil }
func (backGates) FenceTable(tenant.TableName) []string           { return nil }
