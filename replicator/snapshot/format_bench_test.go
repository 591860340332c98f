package snapshot

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// formatTypes are what BenchmarkFormats measures: a type and an expression over g that makes its values.
var formatTypes = []struct{ name, typ, value string }{
	{"null", "int4", "NULL::int4"},
	{"int2", "int2", "(g % 30000)::int2"},
	{"int4 small", "int4", "g % 100"},
	{"int4", "int4", "g * 7919 + 100000000"},
	{"int8", "int8", "g * 79190000000"},
	{"numeric", "numeric", "(g * 1.37)::numeric(12,2)"},
	{"numeric long", "numeric", "g * 1234567890123456.789012345678901"},
	{"float4", "float4", "(g * 1.37)::float4"},
	{"float8", "float8", "g * 1.3712345678"},
	{"bool", "bool", "g % 2 = 0"},
	{"text 5", "text", "'abcde'"},
	{"text 32", "text", "md5(g::text)"},
	{"text 500", "text", "repeat(md5(g::text), 16)"},
	{"text 4000", "text", "repeat(md5(g::text), 125)"},
	{"char 84", "char(84)", "''"},
	{"escaped 500", "text", "repeat(E'a\\\\b\\n', 125)"},
	{"bytea 16", "bytea", "decode(md5(g::text), 'hex')"},
	{"bytea 500", "bytea", "decode(repeat(md5(g::text), 31), 'hex')"},
	{"bytea 4000", "bytea", "decode(repeat(md5(g::text), 250), 'hex')"},
	{"jsonb 50", "jsonb", "jsonb_build_object('n', g, 't', md5(g::text))"},
	{"jsonb 500", "jsonb", "jsonb_build_object('n', g, 't', repeat(md5(g::text), 14), 'a', jsonb_build_array('a', g, 'b'))"},
	{"jsonb keys", "jsonb", "(SELECT jsonb_object_agg('key' || i, i) FROM generate_series(1, 30) i)"},
	{"json 500", "json", "json_build_object('n', g, 't', repeat(md5(g::text), 14), 'a', json_build_array('a', g, 'b'))"},
	{"uuid", "uuid", "md5(g::text)::uuid"},
	{"timestamptz", "timestamptz", "'2026-01-01'::timestamptz + g * interval '1.371234 second'"},
	{"timestamp", "timestamp", "'2026-01-01'::timestamp + g * interval '1.371234 second'"},
	{"date", "date", "'2026-01-01'::date + g % 1000"},
	{"time", "time", "'00:00'::time + g * interval '1.371234 second'"},
	{"interval", "interval", "g * interval '1.371234 second'"},
	{"inet", "inet", "'10.0.0.0'::inet + g"},
	{"int4[10]", "int4[]", "ARRAY[g,g+1,g+2,g+3,g+4,g+5,g+6,g+7,g+8,g+9]"},
	{"text[5]", "text[]", "ARRAY[md5(g::text),'a','b','c','d']"},
	{"enum", "mood", "'glad'::mood"},
}

// BenchmarkFormats measures what a value costs the servers in either format: CPU nanoseconds of the backends that write
// and read it (/proc/pid/schedstat), over tables of ten such columns. It is why CopyLeaf takes binary wherever it may: on 15
// only text of 5 characters, bool, enums and int4 below 100 were cheaper as text, by 4 to 26%, and floats and long bytea
// dearer two to three times. With REHOME_BENCH_ROWS it takes more rows than the few that keep it quick.
func BenchmarkFormats(b *testing.B) {
	rows, err := strconv.Atoi(os.Getenv("REHOME_BENCH_ROWS"))
	if err != nil {
		rows = 200
	}
	const columns = 10
	many := rows
	for _, ft := range formatTypes {
		rows := many
		for _, wide := range []string{" 500", " keys", " 4000"} {
			if strings.HasSuffix(ft.name, wide) {
				rows = max(many/20, 20)
			}
		}
		b.Run(ft.name, func(b *testing.B) {
			types, values := make([]string, columns), make([]string, columns)
			for i := range columns {
				types[i], values[i] = fmt.Sprintf("c%d %s", i, ft.typ), ft.value
			}
			p := newBench(b, 1, `CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE UNLOGGED TABLE t (`+strings.Join(types, ", ")+`)`)
			run(b, p.admin, fmt.Sprintf(`INSERT INTO t SELECT %s FROM generate_series(1, %d) g`, strings.Join(values, ", "), rows))
			run(b, p.admin, `VACUUM t`)
			source, target := p.source.PgConn(), p.targets[0].PgConn()
			for range b.N {
				for _, f := range []string{"text", "binary"} {
					out, in := 0., 0.
					const rounds = 3
					for range rounds {
						var data bytes.Buffer
						out += cpuOf(b, source, func() {
							if _, err := copyOut(b.Context(), source, "COPY t TO STDOUT (FORMAT "+f+")", &data); err != nil {
								b.Fatal(err)
							}
						})
						run(b, p.targets[0], `BEGIN; TRUNCATE t`)
						in += cpuOf(b, target, func() {
							if _, err := copyIn(b.Context(), target, "COPY t FROM STDIN (FORMAT "+f+", FREEZE)", pipeOf(&data)); err != nil {
								b.Fatal(err)
							}
						})
						run(b, p.targets[0], `COMMIT`)
					}
					per := float64(rows * columns * rounds)
					b.ReportMetric(out/per, f+"-out-ns/value")
					b.ReportMetric(in/per, f+"-in-ns/value")
					b.ReportMetric((in+out)/per, f+"-ns/value")
				}
			}
		})
	}
}

// pipeOf is a pipe that data come from.
func pipeOf(data io.Reader) *pipe {
	p := &pipe{full: make(chan []byte, 1), free: make(chan []byte, 1<<20), failed: make(chan struct{})}
	go func() {
		for {
			b := make([]byte, messageHeader+BufferSize)
			n, err := io.ReadFull(data, b[messageHeader:])
			if n > 0 {
				p.full <- b[:messageHeader+n]
			}
			if err != nil {
				p.end()
				return
			}
		}
	}()
	return p
}

// cpuOf is how many nanoseconds a session's backend worked while fn ran; 0 where there is no /proc.
func cpuOf(b *testing.B, c *pgconn.PgConn, fn func()) float64 {
	b.Helper()
	read := func() float64 {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", c.PID()))
		if err != nil {
			return 0
		}
		first, _, _ := strings.Cut(string(raw), " ")
		n, _ := strconv.ParseFloat(first, 64)
		return n
	}
	from := read()
	fn()
	return read() - from
}
