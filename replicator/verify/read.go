package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// What one side is asked of a part goes there in one message, and what it answers comes in one: with thousands of small tables
// the way there and back, and to plan a query that is the same for all, cost more than what is read.

// prepareChanged prepares changedSince on a session, and askChanged asks it of a table.
const prepareChanged = `PREPARE rehome_changed(text, text, text) AS ` + changedSince

func askChanged(t tenant.TableName) string {
	return fmt.Sprintf("EXECUTE rehome_changed(%s, %s, %s)", tenant.QuoteLiteral(t.Schema), tenant.QuoteLiteral(t.Name), tenant.QuoteLiteral(t.Quoted()))
}

// partRead is what one side has of a part.
type partRead struct {
	sums  []class // by unit
	moved int64   // rows on a shard that does not own them
}

// read reads the part on one side; where is the condition for the side's range of blocks, or empty. It fails with errChanged if
// the table is not what the snapshot has any more.
func (p piece) read(ctx context.Context, one *side, in Input, t *catalog.Table, where string) (out partRead, err error) {
	transcode, keys := transcodes(in.Catalogue.Server.Encoding), p.where(t)
	within := fromTable(t) + " t" + whereText(keys, where)
	var batch []string
	if where != "" {
		batch = append(batch, partSettings)
	}
	if len(p.units) == 1 {
		batch = append(batch, totalsOf(t, newRowHash(t, transcode), within))
	} else {
		batch = append(batch, sweepOf(t, transcode, p.units, where))
	}
	ask := one.name != "" && t.Sharded() && !ownsAll(in.Placement, one.name)
	if ask {
		batch = append(batch, misplacedCount(byRealmOf(t, within), in.Placement, one.name))
	}
	if where != "" {
		batch = append(batch, wholeSettings)
	}
	answers, err := one.ask(ctx, append(batch, askChanged(t.Name)))
	if err != nil {
		return out, err
	}
	want := 2
	if ask {
		want++
	}
	if len(answers) != want || len(answers[want-1]) != 1 {
		return out, fmt.Errorf("%s: %d answers where %d were due", one, len(answers), want)
	}
	if is := answers[want-1][0][0]; is == nil || *is != "f" {
		return out, fmt.Errorf("%s: %w", one, errChanged)
	}
	if out.sums, err = p.sumsOf(answers[0]); err != nil {
		return out, fmt.Errorf("%s: %w", one, err)
	}
	if ask {
		if out.moved, err = wholeNumber(answers[1], 0); err != nil {
			return out, fmt.Errorf("%s: find misplaced rows: %w", one, err)
		}
	}
	return out, nil
}

// sumsOf reads the answer to totalsOf or sweepOf.
func (p piece) sumsOf(rows [][]*string) ([]class, error) {
	out := make([]class, len(p.units))
	for i := range rows {
		at, columns := 0, rows[i:i+1]
		if len(p.units) > 1 {
			number, err := wholeNumber(columns, 0)
			if err != nil {
				return nil, err
			}
			if at = int(number) - p.units[0].number; at < 0 || at >= len(out) {
				return nil, fmt.Errorf("a row of part %d was read with parts %d to %d", number, p.units[0].number, p.units[len(p.units)-1].number)
			}
			columns = [][]*string{columns[0][1:]}
		}
		n, err := wholeNumber(columns, 0)
		if err != nil {
			return nil, err
		}
		if out[at], err = newClass(n, columns[0][1], columns[0][2]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

var errNoNumber = errors.New("the answer is no whole number")

// wholeNumber is a column of the first row.
func wholeNumber(rows [][]*string, column int) (int64, error) {
	if len(rows) == 0 || rows[0][column] == nil {
		return 0, errNoNumber
	}
	n, err := strconv.ParseInt(*rows[0][column], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoNumber, err)
	}
	return n, nil
}

// ask runs statements in one message, and gives the rows of those that have any, as texts.
func (s *side) ask(ctx context.Context, statements []string) ([][][]*string, error) {
	results, err := s.conn.PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	var out [][][]*string
	for _, r := range results {
		if !r.CommandTag.Select() {
			continue
		}
		rows := make([][]*string, len(r.Rows))
		for i, values := range r.Rows {
			for _, v := range values {
				var value *string
				if v != nil {
					value = new(string(v))
				}
				rows[i] = append(rows[i], value)
			}
		}
		out = append(out, rows)
	}
	return out, nil
}
