package verify

import "testing"

func TestSameDefinition(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{ // what IN over varchar becomes when its dump is restored
			`CHECK (((status)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))`,
			`CHECK (((status)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))`, true,
		},
		{`CHECK ((((x >= 1) AND (x <= 2)) AND (y > 0)))`, `CHECK (((x >= 1) AND (x <= 2) AND (y > 0)))`, true}, // BETWEEN
		{`CHECK ((("system_user" IS NOT NULL) OR (a = 1)))`, `CHECK (((system_user IS NOT NULL) OR (a = 1)))`, true},
		{`'x'::timestamp(3) without time zone`, `('x'::timestamp(3) without time zone)`, true},
		{`(a)::numeric(10,2)`, `a`, true},
		{`(a)::double precision + 1`, `a + 1`, true},
		{`((a)::"odd Type".t[])[1]`, `(a)[1]`, true},
		{`CHECK (((a OR b) AND c))`, `CHECK ((a OR (b AND c)))`, false},
		{`CHECK ((x > 1))`, `CHECK ((x >= 1))`, false},
		{`CHECK ((x = 'a::text'::text))`, `CHECK ((x = 'a'::text))`, false},
		{`CHECK ((x = 'it''s'::text))`, `CHECK ((x = 'its'::text))`, false},
		{`(x ~ E'\\'')'`, `(x ~ E'\\')'`, false},
		{`"A"`, `a`, false},
		{`"and"`, `and`, true},
		{`PRIMARY KEY (a, b)`, `PRIMARY KEY (b, a)`, false},
		{`FOREIGN KEY (a) REFERENCES public.t(id) ON DELETE CASCADE`, `FOREIGN KEY (a) REFERENCES public.t(id)`, false},
		{`numeric(10,2)`, `numeric(10,3)`, false},
		{`character varying(10)`, `character varying(11)`, false},
		{`USING btree (a DESC)`, `USING btree (a)`, false},
		{`a[1]`, `a[2]`, false},
		{`0.5`, `5`, false},
	} {
		if got := sameDefinition(tt.a, tt.b); got != tt.same {
			t.Errorf("%s\n%s\nsame is %v\n%s\n%s", tt.a, tt.b, got, normalDefinition(tt.a), normalDefinition(tt.b))
		}
	}
}

// FuzzDefinition wants the parser to end, without a panic, whatever it reads.
func FuzzDefinition(f *testing.F) {
	for _, s := range []string{`((a)::timestamp(3) with time zone[] AND ("b" OR E'\''))`, `::`, `a::numeric(`, `x::t.`, `"`, `'`, `E'\`, `::a[`, `)](`} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) { _ = normalDefinition(s) })
}
