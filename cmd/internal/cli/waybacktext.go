package cli

import (
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

// wayBackText adds to a phase's few words how the way back fares.
func wayBackText(w *tenant.WayBack) string {
	if w == nil {
		return ""
	}
	switch w.State {
	case tenant.WayBackNone:
		return "; there is no way back"
	case tenant.WayBackRunning:
		return "; the way back is " + wayBackLag(w) + " behind"
	case tenant.WayBackBroken:
		return "; the way back is broken"
	case tenant.WayBackPreparing:
	}
	return "; the way back is being made"
}

func wayBackLag(w *tenant.WayBack) string {
	s := output.Millis(w.LagMillis)
	if w.LagBytes > 0 {
		s += ", " + output.Bytes(float64(w.LagBytes))
	}
	return s
}

// printWayBack shows the replication from the shards back to the source.
func (a *App) printWayBack(w *tenant.WayBack) {
	if w == nil || w.State == tenant.WayBackNone {
		return
	}
	if w.State == tenant.WayBackBroken {
		a.Print.Textf("%s %s", a.Print.Paint(output.Red, "the way back is broken:"), w.Reason)
	} else if w.Reason != "" {
		a.Print.Textf("%s %s", a.Print.Paint(output.Yellow, "the way back:"), w.Reason)
	}
	if w.Remedy != "" {
		a.Print.Textf("remedy: %s", w.Remedy)
	}
	if len(w.Shards) > 0 {
		rows := make([][]string, len(w.Shards))
		for i, s := range w.Shards {
			rows[i] = []string{s.Shard, s.LSN.String(), s.Durable.String()}
		}
		a.Print.Table([]string{"way back from", "applied to", "durable to"}, rows)
	}
	a.Print.Textf("way back: lag %s, slots hold up to %s of WAL at a shard", wayBackLag(w), output.Bytes(float64(w.SlotWAL)))
}
