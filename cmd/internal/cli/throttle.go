package cli

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type throttleOptions struct {
	whichOptions
	maxRate, maxLag, maxSlotWAL, query string
	copyJobs                           int
	off                                bool
}

func newThrottleCommand(a *App) *cobra.Command {
	var o throttleOptions
	cmd := &cobra.Command{
		Use: "throttle [ID|DATABASE]", Short: "Show or change, while it runs, how much a replication may ask of its source",
		Long: "Without flags: what is allowed, and what holds the copy back now. A flag changes its limit at once, also of a copy that is under way; 0 takes it\n" +
			"away. Limits hold back what reads in bulk, the copy and verifications; the stream of changes is never slowed, because the slot's WAL would grow.",
		Example: "  rehome throttle --max-rate 20MB --max-lag 30s\n" +
			"  rehome throttle acme --query \"SELECT count(*) > 80 FROM pg_stat_activity WHERE state = 'active'\"\n" +
			"  rehome throttle --off",
		Args: rangeArgs(0, "ID|DATABASE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args(args)
			u, err := o.update(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return runThrottle(cmd.Context(), a, o, u)
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.StringVar(&o.maxRate, "max-rate", "", "bytes per second that the copy reads from the source: 20MB")
	f.StringVar(&o.maxLag, "max-lag", "", "wait while a standby or another subscriber of the source is further behind: 64MB, 30s, or both: 64MB,30s")
	f.StringVar(&o.maxSlotWAL, "max-slot-wal", "", "wait while another connected slot holds back more WAL; warn when the replication's own does: 10GB")
	f.StringVar(&o.query, "query", "", "wait while this query at the source gives true or a number above 0; names with their schema, 2 s at most")
	f.IntVar(&o.copyJobs, "copy-jobs", 0, "tables copied at the same time; 0: as the replication began")
	f.BoolVar(&o.off, "off", false, "take all limits away and hold nothing back")
	return cmd
}

// update is what the given flags ask for; nil: nothing.
func (o throttleOptions) update(given func(string) bool) (*api.ThrottleUpdate, error) {
	var u api.ThrottleUpdate
	asked := false
	for flag, set := range map[string]func() error{
		"max-rate": func() error { return byteFlag("max-rate", strings.TrimSuffix(o.maxRate, "/s"), &u.MaxRate) },
		"max-lag": func() error {
			var noBytes int64
			var noTime float64
			u.MaxLagBytes, u.MaxLagSeconds = &noBytes, &noTime
			for part := range strings.SplitSeq(o.maxLag, ",") {
				if d, err := time.ParseDuration(strings.TrimSpace(part)); err == nil && d >= 0 {
					s := d.Seconds()
					u.MaxLagSeconds = &s
				} else if err := byteFlag("max-lag", part, &u.MaxLagBytes); err != nil {
					return err
				}
			}
			return nil
		},
		"max-slot-wal": func() error { return byteFlag("max-slot-wal", o.maxSlotWAL, &u.MaxSlotWAL) },
		"query": func() error {
			u.Query = &o.query
			if q := strings.TrimSpace(o.query); q == "0" || q == "off" {
				u.Query = new(string)
			}
			return nil
		},
		"copy-jobs": func() error { u.CopyJobs = &o.copyJobs; return nil },
		"off":       func() error { u.Off = &o.off; return nil },
	} {
		if !given(flag) {
			continue
		}
		asked = true
		if err := set(); err != nil {
			return nil, err
		}
	}
	if !asked {
		return nil, nil //nolint:nilnil // nothing was asked for
	}
	if o.off && (u.MaxRate != nil || u.MaxLagBytes != nil || u.MaxSlotWAL != nil || u.Query != nil || u.CopyJobs != nil) {
		return nil, usage("off-alone", "give either --off or limits", "--off takes all limits away")
	}
	return &u, nil
}

var sizePattern = regexp.MustCompile(`(?i)^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$`)

// byteFlag reads a size: 500, 64MB, 1.5GiB. MB counts in thousands, as all that is shown does.
func byteFlag(flag, s string, to **int64) error {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil {
		return usage("bad-size", "write it as 500kB, 64MB or 10GB", "--%s %q is no size", flag, s)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return usage("bad-size", "write it as 500kB, 64MB or 10GB", "--%s %q is no size", flag, s)
	}
	if m[2] != "" {
		unit := 1000.0
		if m[3] != "" {
			unit = 1024
		}
		n *= math.Pow(unit, float64(strings.Index("kmgt", strings.ToLower(m[2]))+1))
	}
	if n > math.MaxInt64/2 {
		return usage("bad-size", "write it as 500kB, 64MB or 10GB", "--%s %q is too large", flag, s)
	}
	v := int64(n)
	*to = &v
	return nil
}

func runThrottle(ctx context.Context, a *App, o throttleOptions, u *api.ThrottleUpdate) error {
	t, r, err := o.find(ctx, a)
	if err != nil && tenant.AsError(err).Kind == tenant.KindNotFound && o.id != "" && o.db == "" {
		// It may be a database's name.
		o.db, o.id = o.id, ""
		if t2, r2, err2 := o.find(ctx, a); err2 == nil {
			t, r, err = t2, r2, nil
		}
	}
	if err != nil {
		return err
	}
	var th api.ThrottleStatus
	if u != nil {
		th, err = t.SetThrottle(ctx, r.ID, *u)
	} else {
		th, err = t.Throttle(ctx, r.ID)
	}
	if err != nil {
		return err
	}
	return a.Print.Answer(th, func() { a.printThrottle(th, u != nil) })
}

func (a *App) printThrottle(th api.ThrottleStatus, changed bool) {
	var rows [][]string
	row := func(flag, value string) { rows = append(rows, []string{flag, value}) }
	s := th.Set
	if s.MaxRate > 0 {
		row("max-rate", output.Bytes(float64(s.MaxRate))+"/s")
	}
	if s.MaxLagBytes > 0 {
		row("max-lag", output.Bytes(float64(s.MaxLagBytes)))
	}
	if s.MaxLagSeconds > 0 {
		row("max-lag", output.Duration(time.Duration(s.MaxLagSeconds*float64(time.Second))))
	}
	if s.MaxSlotWAL > 0 {
		row("max-slot-wal", output.Bytes(float64(s.MaxSlotWAL)))
	}
	if s.Query != "" {
		row("query", s.Query)
	}
	if s.CopyJobs > 0 {
		row("copy-jobs", strconv.Itoa(s.CopyJobs))
	}
	switch {
	case s.Off:
		a.Print.Textf("replication %s: off, nothing is held back", th.Replication)
	case len(rows) == 0:
		a.Print.Textf("replication %s: no limits are set", th.Replication)
	default:
		a.Print.Textf("replication %s:", th.Replication)
		a.Print.Table([]string{"limit", "set to"}, rows)
	}
	if changed {
		a.Print.Notef("it takes effect within a second; see rehome throttle or rehome replication-progress")
		return
	}
	a.printCare(tenant.Progress{Throttled: th.Throttled, Care: th.Care})
	if th.Throttled == "" {
		a.Print.Textf("nothing holds it back now")
	}
}

// printCare shows how the source fares.
func (a *App) printCare(p tenant.Progress) {
	if p.Throttled != "" {
		since := ""
		if p.Care != nil && p.Care.Since != nil {
			since = " (for " + output.Duration(time.Since(*p.Care.Since).Round(time.Second)) + ")"
		}
		a.Print.Textf("%s %s%s", a.Print.Paint(output.Yellow, "throttled:"), p.Throttled, since)
	}
	c := p.Care
	if c == nil {
		return
	}
	if c.Warning != "" {
		a.Print.Textf("%s %s", a.Print.Paint(output.Red, "warning:"), c.Warning)
	}
	if c.CheckError != "" {
		a.Print.Textf("the source cannot be looked after in full: %s", c.CheckError)
	}
	if c.SlotStatus == "" {
		return
	}
	limit := "without a limit (max_slot_wal_keep_size is -1: its WAL is kept until the disk is full)"
	if c.SlotLimit >= 0 {
		limit = fmt.Sprintf("%s may still be written before it is lost (max_slot_wal_keep_size %s)", output.Bytes(float64(max(c.SlotSafe, 0))), output.Bytes(float64(c.SlotLimit)))
	}
	lost := ""
	if c.SlotLostSeconds >= 0 {
		lost = ", slot lost in " + output.ETA(c.SlotLostSeconds)
	}
	a.Print.Textf("slot %s, %s; the source writes %s/s of WAL%s", c.SlotStatus, limit, output.Bytes(c.WALRate), lost)
}

// careLine is the same in a few words, for a line that goes on.
func careLine(p tenant.Progress) string {
	var s []string
	if p.Throttled != "" {
		s = append(s, "throttled: "+p.Throttled)
	}
	if p.Care != nil && p.Care.Warning != "" {
		s = append(s, "warning: "+p.Care.Warning)
	}
	return strings.Join(s, " · ")
}

// careKind is what a change of which deserves a line of its own; figures are not.
func careKind(p tenant.Progress) []string {
	kind := []string{strconv.FormatBool(p.Throttled != "")}
	if p.Care != nil {
		kind = append(kind, strconv.FormatBool(p.Care.Warning != ""))
	}
	return kind
}
