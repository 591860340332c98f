package torture

import (
	"fmt"

	"github.com/rehomedb/rehome/tenant"
)

// ddl changes the schema, one statement a transaction, each followed by rows of the new shape.
type ddl struct {
	c       *client
	columns []string
	made    int
}

func (d *ddl) next() op {
	c := d.c
	r, id := c.realm(), c.id()
	d.made++
	row := do(`INSERT INTO shape (realm_id, id, v) VALUES ($1, $2, $3)`, r, id, d.made)
	switch n := c.rnd.IntN(10); {
	case n < 3 || (n < 5 && len(d.columns) == 0):
		name := fmt.Sprintf("added %d", d.made)
		d.columns = append(d.columns, name)
		q := tenant.QuoteIdent(name)
		return script("ddl-add-column", r, do(fmt.Sprintf(`ALTER TABLE shape ADD COLUMN IF NOT EXISTS %s int DEFAULT %d`, q, d.made)), row,
			do(`UPDATE shape SET `+q+` = 1 WHERE realm_id = $1`, r))
	case n < 5:
		name := d.columns[0]
		d.columns = d.columns[1:]
		return script("ddl-drop-column", r, do(`ALTER TABLE shape DROP COLUMN IF EXISTS `+tenant.QuoteIdent(name)), row)
	case n < 7:
		return script("ddl-create-index", r, do(fmt.Sprintf(`CREATE INDEX IF NOT EXISTS shape_v_%d ON shape (v, id)`, d.made)), row)
	case n < 8:
		return script("ddl-add-value", r, do(fmt.Sprintf(`ALTER TYPE mood ADD VALUE IF NOT EXISTS 'mood %d'`, d.made)), row)
	default:
		q := tenant.QuoteIdent(fmt.Sprintf("extra_%d", d.made))
		return script("ddl-create-table", r, do(`CREATE TABLE IF NOT EXISTS `+q+` (realm_id text NOT NULL, id bigint NOT NULL, v text, PRIMARY KEY (realm_id, id))`),
			do(`INSERT INTO `+q+` SELECT $1, $2::bigint + i, md5(i::text) FROM generate_series(1, 20) i`, r, id), row)
	}
}
