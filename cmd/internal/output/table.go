package output

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Table prints rows under headers, to Out. A header that begins with ">" is of a column of numbers: to the right.
// It does nothing with -o json.
func (p *Printer) Table(headers []string, rows [][]string) {
	if p.JSON {
		return
	}
	_, _ = p.Out.Write([]byte(p.Render(headers, rows)))
}

// Render lays a table out as text.
func (p *Printer) Render(headers []string, rows [][]string) string {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.Options{}
	style.Box.PaddingLeft = ""
	style.Box.PaddingRight = "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	head := make(table.Row, len(headers))
	configs := make([]table.ColumnConfig, len(headers))
	for i, h := range headers {
		name, numbers := strings.CutPrefix(h, ">")
		head[i] = p.Paint(Faint, strings.ToUpper(name))
		configs[i] = table.ColumnConfig{Number: i + 1}
		if numbers {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
	}
	t.SetColumnConfigs(configs)
	t.AppendHeader(head)
	for _, r := range rows {
		row := make(table.Row, len(r))
		for i, c := range r {
			row[i] = Clean(strings.ReplaceAll(c, "\n", " "))
		}
		t.AppendRow(row)
	}
	var b strings.Builder
	for line := range strings.Lines(t.Render()) {
		b.WriteString(strings.TrimRight(line, " \n"))
		b.WriteByte('\n')
	}
	return b.String()
}
