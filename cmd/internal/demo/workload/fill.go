package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Rows per unit of scale; together about 60,000.
const (
	realmsAtOne      = 60 // and realmsPerScale for each further unit
	realmsPerScale   = 20
	membersPerScale  = 4000
	transferPerScale = 17000
	documentPerScale = 5000
	eventsPerScale   = 22000
	metricsPerScale  = 6000
	tokensPerScale   = 1500
)

const (
	accountsPerMember = 1
	openingCents      = 10_000_00
	// One document of bigEvery is stored out of line (TOAST), one of hugeEvery is larger than a megabyte.
	bigEvery, hugeEvery = 25, 2500
	bigBytes, hugeBytes = 24 << 10, 1 << 20
)

// Filled is what Fill wrote.
type Filled struct {
	Realms int              `json:"realms"`
	Rows   int64            `json:"rows"`
	Tables map[string]int64 `json:"tables"`
}

// filler carries what the tables refer to.
type filler struct {
	rng     *rand.Rand
	conn    *pgx.Conn
	start   time.Time
	realms  []string
	weights []float64 // of each realm; they sum up to 1
	members []int     // per realm
	tables  map[string]int64
}

// Fill writes about 60,000 rows per unit of scale into an empty schema, in one transaction. Realms are of very different
// size: the n-th largest has 1/n of the largest's rows (Zipf). The same seed writes the same rows.
func Fill(ctx context.Context, dsn tenant.DSN, scale int, seed uint64) (Filled, error) {
	if scale < 1 {
		return Filled{}, tenant.Errorf(tenant.KindInvalid, "bad-scale", "use a whole number of 1 or more", "scale %d is too small", scale)
	}
	conn, err := connect(ctx, dsn)
	if err != nil {
		return Filled{}, err
	}
	defer conn.Close(ctx)
	f := &filler{
		rng:  rand.New(rand.NewPCG(seed, 0x5eed)), //nolint:gosec // test data must be reproducible, not secret
		conn: conn, start: time.Date(2024, 3, 1, 8, 0, 0, 0, time.UTC), tables: map[string]int64{},
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return Filled{}, fmt.Errorf("fill: %w", err)
	}
	defer tx.Rollback(ctx)
	if err := skipForeignKeys(ctx, tx); err != nil {
		return Filled{}, fmt.Errorf("fill: %w", err)
	}
	f.chooseRealms(realmsAtOne + (scale-1)*realmsPerScale)
	for _, step := range []func(context.Context, int) error{
		f.reference, f.fillRealms, f.fillMembers, f.fillLedger, f.fillDocuments, f.fillEvents, f.fillMetrics, f.fillTokens,
	} {
		if err := step(ctx, scale); err != nil {
			return Filled{}, fmt.Errorf("fill: %w", err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return Filled{}, fmt.Errorf("fill: %w", err)
	}
	if _, err := conn.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
		return Filled{}, fmt.Errorf("fill: %w", err)
	}
	out := Filled{Realms: len(f.realms), Tables: f.tables}
	for _, n := range f.tables {
		out.Rows += n
	}
	return out, nil
}

// skipForeignKeys saves half of the time where it is permitted; the rows fit each other by the way they are made.
func skipForeignKeys(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `
		SELECT set_config('session_replication_role', 'replica', true) FROM pg_roles WHERE rolname = current_user AND rolsuper`)
	if err != nil {
		return fmt.Errorf("leave out foreign keys: %w", err)
	}
	return nil
}

func (f *filler) chooseRealms(n int) {
	f.weights = make([]float64, n)
	sum := 0.0
	for i := range n {
		f.realms = append(f.realms, fmt.Sprintf("rlm-%04d", i+1))
		f.weights[i] = 1 / float64(i+1)
		sum += f.weights[i]
	}
	for i := range f.weights {
		f.weights[i] /= sum
	}
}

// share is how many of total rows the i-th realm gets.
func (f *filler) share(i, total, least int) int {
	return max(least, int(f.weights[i]*float64(total)+0.5))
}

// table copies one table: each is called with its copier and writes its rows.
func (f *filler) table(ctx context.Context, into, name string, rows func(c *copier) error) error {
	c := newCopier(ctx, f.conn, into)
	if err := rows(c); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	f.tables[name] = c.rows
	return nil
}

// perRealm writes a share of total rows for every realm, in an order that mixes realms as time does.
func (f *filler) perRealm(total, least int, row func(realm, n int) error) error {
	type slot struct{ realm, n int }
	var slots []slot
	for i := range f.realms {
		for n := range f.share(i, total, least) {
			slots = append(slots, slot{i, n})
		}
	}
	f.rng.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	for _, s := range slots {
		if err := row(s.realm, s.n); err != nil {
			return err
		}
	}
	return nil
}

func (f *filler) reference(ctx context.Context, _ int) error {
	err := f.table(ctx, "currencies (code, name, rate, as_of)", "public.currencies", func(c *copier) error {
		for i, code := range []string{"EUR", "USD", "GBP", "JPY", "CHF", "SEK", "INR", "BRL"} {
			if err := c.row(code, "currency "+code, fmt.Sprintf("%d.%010d", i+1, f.rng.IntN(1e9)), f.start); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.table(ctx, "plans (id, tier, price, currency, features, limits)", "public.plans", func(c *copier) error {
		for i, tier := range []string{"free", "team", "business"} {
			if err := c.row(i+1, tier, cents(i*1900), "EUR", arrayLiteral(words()[:i+1]), fmt.Sprintf(`{"members": %d, "storage": null}`, (i+1)*100)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *filler) fillRealms(ctx context.Context, _ int) error {
	return f.table(ctx, "realms (realm_id, name, plan_id, settings, active, created_at)", "public.realms", func(c *copier) error {
		for i, id := range f.realms {
			settings := fmt.Sprintf(`{"theme": "dark", "quota": 1e%d, "flags": [true, null, "ü"]}`, f.rng.IntN(9))
			if err := c.row(id, "Realm "+pick(f.rng, words())+" "+id, 1+i%3, settings, "[2024-01-01,)", f.start); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *filler) fillMembers(ctx context.Context, scale int) error {
	f.members = make([]int, len(f.realms))
	into := "members (realm_id, email, name, roles, address, profile, avatar, network, joined_on, seen_at)"
	return f.table(ctx, into, "public.members", func(c *copier) error {
		for i, realm := range f.realms {
			f.members[i] = f.share(i, membersPerScale*scale, 2)
			for n := range f.members[i] {
				var avatar, network, seen any
				if n%3 == 0 {
					avatar = randomBytes(f.rng, 64+f.rng.IntN(200))
				}
				if n%2 == 0 {
					network = fmt.Sprintf("10.%d.%d.0/24", f.rng.IntN(256), f.rng.IntN(256))
					seen = f.start.Add(time.Duration(f.rng.Int64N(int64(9000 * time.Hour))))
				}
				profile, err := json.Marshal(map[string]any{"bio": pick(f.rng, words()), "score": f.rng.Float64(), "n": n})
				if err != nil {
					return err
				}
				err = c.row(realm, fmt.Sprintf("Person.%d@%s.example", n+1, realm), pick(f.rng, words())+" "+pick(f.rng, words()),
					arrayLiteral([]string{"member", pick(f.rng, words())}), fmt.Sprintf(`("Main St %d","Zürich, old town",%05d)`, n, f.rng.IntN(1e5)),
					string(profile), avatar, network, f.start.AddDate(0, 0, f.rng.IntN(300)).Format(time.DateOnly), seen)
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// fillLedger makes the transfers first, in memory, so that the balances agree with them.
func (f *filler) fillLedger(ctx context.Context, scale int) error {
	balances := make([][]cents, len(f.realms))
	for i := range balances {
		balances[i] = slices.Repeat([]cents{openingCents}, f.members[i]*accountsPerMember)
	}
	type transfer struct {
		realm, from, to int
		amount          cents
	}
	var transfers []transfer
	err := f.perRealm(transferPerScale*scale, 2, func(realm, _ int) error {
		accounts := len(balances[realm])
		t := transfer{realm: realm, from: f.rng.IntN(accounts), amount: cents(1 + f.rng.IntN(50_00))}
		t.to = (t.from + 1 + f.rng.IntN(accounts-1)) % accounts
		if balances[realm][t.from] < t.amount {
			t.from, t.to = t.to, t.from
		}
		if balances[realm][t.from] >= t.amount {
			balances[realm][t.from] -= t.amount
			balances[realm][t.to] += t.amount
			transfers = append(transfers, t)
		}
		return nil
	})
	if err != nil {
		return err
	}

	firstMember, err := f.firstMembers(ctx)
	if err != nil {
		return err
	}
	kinds := []string{"cash", "savings", "credit line"}
	currencies := []string{"EUR", "USD", "JPY"}
	err = f.table(ctx, "ledger.accounts (realm_id, id, owner_id, kind, currency, opening, balance)", "ledger.accounts", func(c *copier) error {
		for i, realm := range f.realms {
			for n, balance := range balances[i] {
				owner := firstMember[realm] + n/accountsPerMember
				if err := c.row(realm, n+1, owner, kinds[n%3], currencies[i%3], cents(openingCents), balance); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.table(ctx, "ledger.transfers (realm_id, id, from_account, to_account, amount, note, tags, made_at)", "ledger.transfers", func(c *copier) error {
		for i, t := range transfers {
			var note, tags any
			if i%4 != 0 {
				note, tags = pick(f.rng, words()), arrayLiteral([]string{pick(f.rng, words())})
			}
			if err := c.row(f.realms[t.realm], newUUID(f.rng), t.from+1, t.to+1, t.amount, note, tags, f.start.Add(time.Duration(i)*time.Minute)); err != nil {
				return err
			}
		}
		return nil
	})
}

// firstMembers are the members' identities, which Postgres chose: consecutive in each realm.
func (f *filler) firstMembers(ctx context.Context) (map[string]int, error) {
	rows, err := f.conn.Query(ctx, "SELECT realm_id, min(id) FROM members GROUP BY realm_id")
	if err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	first := map[string]int{}
	var realm string
	var id int
	_, err = pgx.ForEachRow(rows, []any{&realm, &id}, func() error {
		first[realm] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	return first, nil
}

func (f *filler) fillDocuments(ctx context.Context, scale int) error {
	into := "documents (realm_id, id, title, body, attributes, labels, attachment, edited_at)"
	return f.table(ctx, into, "public.documents", func(c *copier) error {
		count := 0
		return f.perRealm(documentPerScale*scale, 1, func(realm, n int) error {
			count++
			length := 20 + f.rng.IntN(400)
			switch {
			case count%hugeEvery == 0:
				length = hugeBytes
			case count%bigEvery == 0:
				length = bigBytes
			}
			var attachment any
			if n%5 == 0 {
				attachment = randomBytes(f.rng, 100+f.rng.IntN(3000))
			}
			attributes := fmt.Sprintf(`{"stars": %d, "path": ["a", %d], "pi": 3.14159265358979323846}`, f.rng.IntN(6), n)
			return c.row(f.realms[realm], newUUID(f.rng), prose(f.rng, 12), prose(f.rng, length), attributes,
				arrayLiteral([]string{pick(f.rng, words()), pick(f.rng, words())}), attachment, f.start.Add(time.Duration(count)*time.Minute))
		})
	})
}

func (f *filler) fillEvents(ctx context.Context, scale int) error {
	return f.table(ctx, "events (realm_id, id, kind, payload, at)", "public.events", func(c *copier) error {
		count := 0
		return f.perRealm(eventsPerScale*scale, 2, func(realm, n int) error {
			count++
			return c.row(f.realms[realm], newUUID(f.rng), "created", fmt.Sprintf(`{"n": %d, "from": "fill"}`, n), f.start.Add(time.Duration(count)*time.Second))
		})
	})
}

func (f *filler) fillMetrics(ctx context.Context, scale int) error {
	return f.table(ctx, "metrics (realm_id, name, at, value, samples)", "public.metrics", func(c *copier) error {
		specials := []string{"NaN", "Infinity", "-Infinity", "-0", "1e-300"}
		return f.perRealm(metricsPerScale*scale, 1, func(realm, n int) error {
			value := fmt.Sprint(f.rng.NormFloat64())
			if n%50 == 0 {
				value = pick(f.rng, specials)
			}
			// Two years: both partitions have rows.
			at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * 37 * time.Hour % (700 * 24 * time.Hour)).Add(time.Duration(n) * time.Microsecond)
			return c.row(f.realms[realm], "cpu", at, value, fmt.Sprintf("{%d,NULL,%d.5}", f.rng.IntN(9), f.rng.IntN(9)))
		})
	})
}

func (f *filler) fillTokens(ctx context.Context, scale int) error {
	return f.table(ctx, "api_tokens (id, realm_id, digest, scopes, expires_at)", "public.api_tokens", func(c *copier) error {
		return f.perRealm(tokensPerScale*scale, 1, func(realm, n int) error {
			expires := "infinity"
			if n%2 == 0 {
				expires = "2031-01-01 00:00:00+00"
			}
			return c.row(newUUID(f.rng), f.realms[realm], randomBytes(f.rng, 32), arrayLiteral([]string{"read", "write:" + pick(f.rng, words())}), expires)
		})
	})
}
