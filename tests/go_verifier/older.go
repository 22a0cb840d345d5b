package main

import (
	"encoding/hex"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// olderHash is the unkeyed hash of an unsealed row (section 4.6); not ok if the row has none, or it cannot be computed.
func olderHash(row *Object) (text string, ok bool) {
	v := row.Values
	algorithm := v["hash_algorithm"]
	if v["event_hash"] == nil || v["redacted"] != nil || (algorithm != "sha256-unkeyed" && orNil(algorithm) != nil) {
		return "", false
	}
	time, _ := v["event_timestamp"].(string)
	if len(time) < 20 {
		return "", false
	}
	fraction := strings.TrimRight(strings.Trim(time[19:], ".Z"), "0")
	if time = time[:19]; fraction != "" {
		time += "." + fraction
	}
	var out olderText
	out.member("event_id", v["event_id"])
	out.member("event_timestamp", time+"Z")
	out.member("event_date", nil)
	out.member("event_type", v["event_type"])
	out.member("version", v["event_version"])
	for _, name := range []string{"event_category", "event_action", "event_outcome", "correlation_id", "parent_event_id"} {
		out.member(name, v[name])
	}
	date := v["parent_event_date"]
	if date != nil {
		date = fmt.Sprint(date) + "T00:00:00Z"
	}
	out.member("parent_event_date", date)
	for _, name := range strings.Fields(`resource_type resource_id namespace cluster_id severity duration_ms error_code
		error_message actor_id actor_type actor_ip`) {
		if value := orNil(v[name]); value != nil && value != Number("0") {
			out.member(name, value)
		}
	}
	out.member("retention_days", v["retention_days"])
	out.member("is_sensitive", v["is_sensitive"])
	for _, name := range []string{"event_hash", "previous_event_hash"} {
		out.member(name, "")
	}
	out.member("legal_hold", false)
	out.member("legal_hold_reason", "")
	out.member("legal_hold_placed_by", "")
	out.member("legal_hold_placed_at", nil)
	out.member("event_data", v["event_data"])
	previous, _ := v["previous_event_hash"].(string)
	return hex.EncodeToString(hash([]byte(previous + "{" + out.String() + "}"))), !out.failed
}

type olderText struct {
	strings.Builder
	failed bool
}

func (o *olderText) member(name string, value any) {
	if o.Len() > 0 {
		o.WriteByte(',')
	}
	o.value(name)
	o.WriteByte(':')
	o.value(value)
}

func (o *olderText) value(value any) {
	switch v := value.(type) {
	case nil:
		o.WriteString("null")
	case bool:
		o.WriteString(strconv.FormatBool(v))
	case string:
		var text strings.Builder
		writeString(&text, v)
		for _, c := range text.String() {
			if strings.ContainsRune("<>&\u2028\u2029", c) {
				fmt.Fprintf(o, `\u%04x`, c)
			} else {
				o.WriteRune(c)
			}
		}
	case Number:
		double, err := strconv.ParseFloat(string(v), 64)
		o.failed = o.failed || err != nil
		verb := byte('f')
		if size := math.Abs(double); size != 0 && (size < 1e-6 || size >= 1e21) {
			verb = 'e'
		}
		text := strconv.FormatFloat(double, verb, -1, 64)
		if n := len(text); verb == 'e' && n >= 4 && text[n-4:n-1] == "e-0" {
			text = text[:n-2] + text[n-1:]
		}
		o.WriteString(text)
	case []any:
		o.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				o.WriteByte(',')
			}
			o.value(item)
		}
		o.WriteByte(']')
	case *Object:
		names := append([]string(nil), v.Names...)
		sort.Strings(names)
		o.WriteByte('{')
		for i, name := range names {
			if i > 0 {
				o.WriteByte(',')
			}
			o.value(name)
			o.WriteByte(':')
			o.value(v.Values[name])
		}
		o.WriteByte('}')
	}
}
