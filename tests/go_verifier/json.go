package main

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A JSON value is nil, bool, string, Number, []any or *Object.
type (
	// Number is the token as it was written: no conversion may lose a digit.
	Number string
	// Object has its members in the order of the text.
	Object struct {
		Names  []string
		Values map[string]any
	}
)

// Postgres stores numbers of up to 131072 digits before the point and 16383 after it; a longer one is not expanded.
const (
	maxDepth    = 10_000
	maxExponent = 200_000
)

// parseJSON reads one value (RFC 8259). It refuses a member that stands twice, lone surrogates, and bytes that are no UTF-8.
func parseJSON(text []byte) (value any, err error) {
	defer func() {
		if fault, ok := recover().(syntaxError); ok {
			err = errors.New(string(fault))
		}
	}()
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8")
	}
	p := parser{text: text}
	value = p.value(0)
	if p.space(); p.at < len(text) {
		p.fail("text after the value")
	}
	return value, nil
}

func parseObject(text []byte) (*Object, error) {
	value, err := parseJSON(text)
	if err != nil {
		return nil, err
	}
	object, ok := value.(*Object)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return object, nil
}

type syntaxError string

type parser struct {
	text []byte
	at   int
}

func (p *parser) fail(what string) {
	panic(syntaxError(fmt.Sprintf("not JSON: %s at byte %d", what, p.at)))
}

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\n\r", p.text[p.at]) >= 0 {
		p.at++
	}
}

// next is the first byte after white space, 0 at the end.
func (p *parser) next() byte {
	if p.space(); p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) expect(c byte) {
	if p.next() != c {
		p.fail("expected " + strconv.QuoteRune(rune(c)))
	}
	p.at++
}

var numberToken = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`)

func (p *parser) value(depth int) any {
	if depth > maxDepth {
		p.fail("nested too deeply")
	}
	switch c := p.next(); c {
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	case '"':
		return p.string()
	default:
		rest := p.text[p.at:]
		for word, value := range map[string]any{"null": nil, "true": true, "false": false} {
			if strings.HasPrefix(string(rest[:min(len(rest), 5)]), word) {
				p.at += len(word)
				return value
			}
		}
		token := numberToken.Find(rest)
		if token == nil {
			p.fail("expected a value")
		}
		p.at += len(token)
		return Number(token)
	}
}

func (p *parser) object(depth int) any {
	object := &Object{Values: map[string]any{}}
	p.expect('{')
	for more := p.next() != '}'; more; {
		p.next()
		name := p.string()
		if _, twice := object.Values[name]; twice {
			p.fail("the member " + strconv.Quote(name) + " stands twice")
		}
		p.expect(':')
		object.Names = append(object.Names, name)
		object.Values[name] = p.value(depth + 1)
		if more = p.next() == ','; more {
			p.at++
		}
	}
	p.expect('}')
	return object
}

func (p *parser) array(depth int) any {
	array := []any{}
	p.expect('[')
	for more := p.next() != ']'; more; {
		array = append(array, p.value(depth+1))
		if more = p.next() == ','; more {
			p.at++
		}
	}
	p.expect(']')
	return array
}

func (p *parser) string() string {
	p.expect('"')
	var text strings.Builder
	for {
		if p.at >= len(p.text) {
			p.fail("a string without end")
		}
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			return text.String()
		case c < 0x20:
			p.fail("a raw control character in a string")
		case c != '\\':
			text.WriteByte(c)
		default:
			text.WriteRune(p.escape())
		}
	}
}

func (p *parser) escape() rune {
	if p.at >= len(p.text) {
		p.fail("a string without end")
	}
	c := p.text[p.at]
	p.at++
	if c != 'u' {
		i := strings.IndexByte(`"\/bfnrt`, c)
		if i < 0 {
			p.fail("an unknown escape")
		}
		return rune("\"\\/\b\f\n\r\t"[i])
	}
	unit := p.unit()
	if !utf16.IsSurrogate(unit) {
		return unit
	}
	if p.at+1 < len(p.text) && string(p.text[p.at:p.at+2]) == `\u` {
		p.at += 2
		if r := utf16.DecodeRune(unit, p.unit()); r != utf8.RuneError {
			return r
		}
	}
	p.fail("a lone surrogate")
	return 0
}

func (p *parser) unit() rune {
	if p.at+4 > len(p.text) {
		p.fail("a string without end")
	}
	unit, err := strconv.ParseUint(string(p.text[p.at:p.at+4]), 16, 16)
	if err != nil {
		p.fail("four hex digits expected")
	}
	p.at += 4
	return rune(unit)
}

// jcs is the canonical form of section 4.3: RFC 8785, and exact numbers.
func jcs(value any) (string, error) {
	var out strings.Builder
	err := writeJCS(&out, value)
	return out.String(), err
}

func writeJCS(out *strings.Builder, value any) error {
	switch v := value.(type) {
	case nil:
		out.WriteString("null")
	case bool:
		out.WriteString(strconv.FormatBool(v))
	case string:
		writeString(out, v)
	case Number:
		form, err := canonicalNumber(string(v))
		out.WriteString(form)
		return err
	case []any:
		separator := "["
		for _, item := range v {
			out.WriteString(separator)
			if err := writeJCS(out, item); err != nil {
				return err
			}
			separator = ","
		}
		if len(v) == 0 {
			out.WriteByte('[')
		}
		out.WriteByte(']')
	case *Object:
		names := append([]string(nil), v.Names...)
		sort.Slice(names, func(i, j int) bool { return lessUTF16(names[i], names[j]) })
		out.WriteByte('{')
		for i, name := range names {
			if i > 0 {
				out.WriteByte(',')
			}
			writeString(out, name)
			out.WriteByte(':')
			if err := writeJCS(out, v.Values[name]); err != nil {
				return err
			}
		}
		out.WriteByte('}')
	}
	return nil
}

func lessUTF16(a, b string) bool {
	x, y := utf16.Encode([]rune(a)), utf16.Encode([]rune(b))
	for i := 0; i < len(x) && i < len(y); i++ {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return len(x) < len(y)
}

func writeString(out *strings.Builder, text string) {
	out.WriteByte('"')
	for i := 0; i < len(text); i++ {
		c := text[i]
		if at := strings.IndexByte("\"\\\b\f\n\r\t", c); at >= 0 {
			out.WriteByte('\\')
			out.WriteByte(`"\bfnrt`[at])
		} else if c < 0x20 {
			fmt.Fprintf(out, `\u%04x`, c)
		} else {
			out.WriteByte(c)
		}
	}
	out.WriteByte('"')
}

// decimal is ±0.<digits> · 10^point; the digits neither begin nor end with a zero, and there are none for zero.
type decimal struct {
	digits string
	point  int
}

func readDecimal(token string) (decimal, error) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(token, "-")), "e")
	integer, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(integer+fraction, "0")
	point := len(integer) - (len(integer+fraction) - len(digits))
	digits = strings.TrimRight(digits, "0")
	if digits == "" {
		return decimal{}, nil
	}
	if exponent != "" {
		shift, ok := new(big.Int).SetString(exponent, 10)
		if !ok || shift.CmpAbs(big.NewInt(maxExponent)) > 0 {
			return decimal{}, fmt.Errorf("the number %.40s is beyond what can be stored", token)
		}
		point += int(shift.Int64())
	}
	return decimal{digits, point}, nil
}

func canonicalNumber(token string) (string, error) {
	x, err := readDecimal(token)
	if err != nil {
		return "", err
	}
	if x.digits == "" {
		return "0", nil
	}
	sign := ""
	if token[0] == '-' {
		sign = "-"
	}
	double, err := strconv.ParseFloat(token, 64) // an error is a range error, and then it is infinite
	if err == nil {
		shortest, _ := readDecimal(strconv.FormatFloat(double, 'e', -1, 64))
		if x == shortest && (x.point <= -6 || x.point > 21) {
			form := x.digits[:1]
			if len(x.digits) > 1 {
				form += "." + x.digits[1:]
			}
			return fmt.Sprintf("%s%se%+d", sign, form, x.point-1), nil
		}
	}
	return sign + plain(x), nil
}

func plain(x decimal) string {
	switch {
	case x.point <= 0:
		return "0." + strings.Repeat("0", -x.point) + x.digits
	case x.point >= len(x.digits):
		return x.digits + strings.Repeat("0", x.point-len(x.digits))
	default:
		return x.digits[:x.point] + "." + x.digits[x.point:]
	}
}
