package verify

import (
	"slices"
	"strings"
)

// sameDefinition compares two definitions as Postgres prints them. What a dump and its restoration change in the printed
// form means nothing: IN over varchar comes back with its casts inside the array, a chain of ANDs with fewer parentheses,
// and a name that only one major version reserves with quotes. So casts, needless parentheses and needless quotes do not
// count; a difference in nothing but a cast is therefore not seen.
func sameDefinition(a, b string) bool {
	return a == b || normalDefinition(a) == normalDefinition(b)
}

func normalDefinition(s string) string {
	p := &definitionParser{tokens: definitionTokens(s)}
	var b strings.Builder
	render(&b, p.list(""))
	return b.String()
}

// node is a token, or what stands between parentheses or brackets.
type node struct {
	text string // the token, or the opening one of a group
	kids []node
}

func (n node) group() bool { return n.text == "(" || n.text == "[" }

func render(b *strings.Builder, nodes []node) {
	for _, n := range nodes {
		b.WriteString(n.text)
		b.WriteByte(' ')
		if n.group() {
			render(b, n.kids)
			b.WriteString(closing(n.text) + " ")
		}
	}
}

func closing(open string) string {
	if open == "(" {
		return ")"
	}
	return "]"
}

type definitionParser struct {
	tokens []string
	at     int
}

func (p *definitionParser) peek() string {
	if p.at < len(p.tokens) {
		return p.tokens[p.at]
	}
	return ""
}

// list reads up to the closing token, or to the end, and simplifies what it read.
func (p *definitionParser) list(until string) []node {
	var out []node
	for p.at < len(p.tokens) {
		t := p.tokens[p.at]
		p.at++
		switch t {
		case until:
			return splice(out)
		case "::":
			p.castType()
		case "(", "[":
			n := node{text: t, kids: p.list(closing(t))}
			if t == "(" && len(n.kids) == 1 {
				n = n.kids[0]
			}
			out = append(out, n)
		default:
			out = append(out, node{text: t})
		}
	}
	return splice(out)
}

// castType skips the type after a "::".
func (p *definitionParser) castType() {
	first := p.peek()
	p.at++
	for p.peek() == "." {
		p.at += 2
	}
	words := map[string][]string{
		"double": {"precision"}, "character": {"varying"}, "bit": {"varying"},
		"interval": {"year", "month", "day", "hour", "minute", "second", "to"},
	}[first]
	for slices.Contains(words, p.peek()) {
		p.at++
	}
	if p.peek() == "(" {
		for p.at < len(p.tokens) && p.peek() != ")" { // a type's modifiers have no parentheses of their own
			p.at++
		}
		p.at++
	}
	if (first == "timestamp" || first == "time") && (p.peek() == "with" || p.peek() == "without") {
		p.at += len([]string{"with", "time", "zone"})
	}
	for p.peek() == "[" {
		if p.at+1 >= len(p.tokens) || p.tokens[p.at+1] != "]" {
			return // a subscript
		}
		p.at += 2
	}
}

// splice joins chains of AND, and of OR: (a AND b) AND c is a AND b AND c.
func splice(list []node) []node {
	for _, word := range []string{"AND", "OR"} {
		if !chain(list, word) {
			continue
		}
		var out []node
		for i, n := range list {
			alone := (i == 0 || list[i-1].text == word) && (i == len(list)-1 || list[i+1].text == word)
			if alone && n.text == "(" && chain(n.kids, word) {
				out = append(out, n.kids...)
				continue
			}
			out = append(out, n)
		}
		return out
	}
	return list
}

// chain reports whether a list is terms that are joined by nothing but the word.
func chain(list []node, word string) bool {
	found := false
	for _, n := range list {
		switch n.text {
		case word:
			found = true
		case "AND", "OR":
			return false
		}
	}
	return found
}

const operatorCharacters = "+-*/<>=~!@#%^&|`?"

// definitionTokens cuts a definition into strings, names, numbers, operators and single characters.
func definitionTokens(s string) []string {
	var out []string
	for i := 0; i < len(s); {
		start := i
		switch c := s[i]; {
		case c == ' ' || c == '\n' || c == '\t':
			i++
			continue
		case c == '\'' || c == '"':
			i = quotedEnd(s, i, false)
		case c == 'E' && i+1 < len(s) && s[i+1] == '\'':
			i = quotedEnd(s, i+1, true)
		case wordCharacter(c):
			number := c >= '0' && c <= '9'
			for i < len(s) && (wordCharacter(s[i]) || number && s[i] == '.') {
				i++
			}
		case strings.HasPrefix(s[i:], "::"):
			i += 2
		case strings.IndexByte(operatorCharacters, c) >= 0:
			for i < len(s) && strings.IndexByte(operatorCharacters, s[i]) >= 0 {
				i++
			}
		default:
			i++
		}
		out = append(out, unquoted(s[start:i]))
	}
	return out
}

// quotedEnd finds the end of what is quoted by the character at i, where a doubled quote stands for itself.
func quotedEnd(s string, i int, backslashes bool) int {
	quote := s[i]
	for i++; i < len(s); i++ {
		switch {
		case backslashes && s[i] == '\\':
			i++
		case s[i] != quote:
		case i+1 < len(s) && s[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return len(s)
}

func wordCharacter(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// unquoted takes the quotes off a name that needs them only where a version reserves the word.
func unquoted(token string) string {
	if len(token) < 3 || token[0] != '"' {
		return token
	}
	name := token[1 : len(token)-1]
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return token
		}
	}
	return name
}
