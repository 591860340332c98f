package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxTableBars keeps the picture on one screen.
	maxTableBars = 6
	// barTicks is the resolution of a bar: totals are estimates and change, parts of thousand do not.
	barTicks = 1000
	barWidth = 36
)

// liveProgress draws bars: the whole copy, the tables that are copied just now, and a line that says the rest.
type liveProgress struct {
	a      *App
	bars   *mpb.Progress
	cancel context.CancelFunc
	whole  *mpb.Bar
	tables map[string]*tableBar
	next   int // priority of the next table's bar

	mu   sync.Mutex // guards last, which the drawing reads
	last tenant.Progress
}

type tableBar struct {
	bar *mpb.Bar
	mu  sync.Mutex
	at  tenant.TableProgress
}

func newLiveProgress(ctx context.Context, a *App) *liveProgress {
	ctx, cancel := context.WithCancel(ctx)
	v := &liveProgress{a: a, tables: map[string]*tableBar{}, cancel: cancel, next: 1}
	v.bars = mpb.NewWithContext(ctx, mpb.WithOutput(a.Stdout), mpb.WithWidth(a.Width), mpb.WithRefreshRate(pollEvery/2), mpb.WithAutoRefresh())
	line := mpb.BarFillerFunc(func(w io.Writer, _ decor.Statistics) error {
		p := v.latest()
		text := phaseText(p)
		if p.Blocked != "" {
			text += " · blocked by: " + p.Blocked
		}
		if care := careLine(p); care != "" {
			text += " · " + care
		}
		if p.Remedy != "" {
			text += " · " + p.Remedy
		}
		text = output.Clean(text)
		if r := []rune(text); len(r) >= a.Width {
			text = string(r[:a.Width-1])
		}
		_, err := io.WriteString(w, text)
		return err
	})
	// The line's bar has no total, so it stays until the end.
	v.bars.MustAdd(0, line, mpb.BarPriority(1<<30), mpb.BarFillerTrim())
	return v
}

func (v *liveProgress) latest() tenant.Progress {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

func (v *liveProgress) show(p tenant.Progress) {
	v.mu.Lock()
	v.last = p
	v.mu.Unlock()
	copying := p.Phase == tenant.Copying
	if copying && v.whole == nil {
		v.whole = v.bars.New(barTicks, v.style(), mpb.BarPriority(0), mpb.BarWidth(barWidth), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name("copy", decor.WC{W: 28, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
				p := v.latest()
				if p.Phase != tenant.Copying {
					return "" // the bar is about to go
				}
				return fmt.Sprintf(" %3.0f%%  %s of %s", min(p.Percent, 100), output.Bytes(float64(p.BytesDone)), output.Bytes(float64(max(p.BytesTotal, p.BytesDone))))
			})))
	}
	if v.whole != nil {
		if !copying {
			v.whole.Abort(true)
			v.whole = nil
		} else {
			// Never quite full: the bar goes when the phase does.
			v.whole.SetCurrent(min(int64(p.Percent*barTicks/100), barTicks-1))
		}
	}
	v.showTables(p, copying)
}

// showTables keeps a bar for each table at work, the largest ones first.
func (v *liveProgress) showTables(p tenant.Progress, copying bool) {
	var busy []tenant.TableProgress
	for _, t := range p.Tables {
		if copying && (t.State == "copying" || t.State == "indexing") {
			busy = append(busy, t)
		}
	}
	slices.SortStableFunc(busy, func(a, b tenant.TableProgress) int { return int(min(max(b.BytesTotal-a.BytesTotal, -1), 1)) })
	busy = busy[:min(len(busy), maxTableBars)]
	for name, tb := range v.tables {
		if !slices.ContainsFunc(busy, func(t tenant.TableProgress) bool { return t.Table == name }) {
			tb.bar.Abort(true)
			delete(v.tables, name)
		}
	}
	for _, t := range busy {
		tb := v.tables[t.Table]
		if tb == nil {
			tb = &tableBar{}
			tb.bar = v.bars.New(barTicks, v.style(), mpb.BarPriority(v.next), mpb.BarWidth(barWidth), mpb.BarRemoveOnComplete(),
				mpb.PrependDecorators(decor.Name(short(output.Clean(t.Table), 27), decor.WC{W: 28, C: decor.DindentRight})),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
					tb.mu.Lock()
					defer tb.mu.Unlock()
					if tb.at.State == "indexing" {
						return "  indexing"
					}
					return fmt.Sprintf("  %s of %s rows", output.Count(tb.at.RowsDone), output.Count(max(tb.at.RowsTotal, tb.at.RowsDone)))
				})))
			v.next++
			v.tables[t.Table] = tb
		}
		tb.mu.Lock()
		tb.at = t
		tb.mu.Unlock()
		if total := max(t.RowsTotal, t.RowsDone); total > 0 {
			tb.bar.SetCurrent(min(int64(float64(t.RowsDone)/float64(total)*barTicks), barTicks-1))
		}
	}
}

func (v *liveProgress) style() mpb.BarStyleComposer {
	return mpb.BarStyle().Lbound("").Filler("█").Tip("█").Padding("░").Rbound("")
}

func (v *liveProgress) close() {
	v.cancel()
	v.bars.Wait()
	v.a.Print.Textf("%s", phaseText(v.latest()))
}

func short(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return "…" + string(r[len(r)-n+1:])
}
