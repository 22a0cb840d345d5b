package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
)

// Section 4.1: members of the record whose value is that of the column, and the members of the committed object.
var (
	recordMembers = []string{
		"log", "log_index", "chain_index", "event_id", "parent_event_id", "parent_event_date", "event_type", "event_category",
		"event_action", "event_outcome", "event_version", "actor_type", "resource_type", "correlation_id", "namespace",
		"cluster_id", "severity", "error_code", "trace_id", "span_id", "duration_ms", "is_sensitive",
	}
	recordTimes      = []string{"event_timestamp", "recorded_at"}
	committedMembers = []string{
		"actor_id", "actor_ip", "error_message", "event_data", "event_metadata", "resource_id", "resource_name",
	}
)

var (
	exactTime  = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$`)
	secondTime = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$`)
)

// eventHash is computed from a row: its own commitment if it has one, else its salt and committed members.
func eventHash(row *Object) ([]byte, error) {
	record := &Object{Values: map[string]any{}}
	set := func(name string, value any) {
		record.Names = append(record.Names, name)
		record.Values[name] = value
	}
	set("v", Number("1"))
	for _, name := range recordMembers {
		set(name, row.Values[name])
	}
	for _, name := range recordTimes {
		text, _ := row.Values[name].(string)
		if secondTime.MatchString(text) {
			text = text[:19] + ".000000Z"
		} else if !exactTime.MatchString(text) {
			return nil, fmt.Errorf("%s is no time in UTC", name)
		}
		set(name, text)
	}
	set("previous_event_hash", orNil(row.Values["previous_event_hash"]))
	committed, ok := row.Values["payload_commitment"].(string)
	if !ok {
		digest, err := commitment(row.Values["payload_salt"], only(row, committedMembers))
		if err != nil {
			return nil, err
		}
		committed = hex.EncodeToString(digest)
	}
	set("commitment", committed)
	text, err := jcs(record)
	return leafHash([]byte(text)), err
}

// commitment is SHA-256( salt ‖ JCS(committed object) ).
func commitment(salt any, committed *Object) ([]byte, error) {
	text, ok := salt.(string)
	raw, err := unhex(text)
	if !ok || err != nil {
		return nil, errors.New("the salt is no hex")
	}
	canonical, err := jcs(committed)
	return hash(raw, []byte(canonical)), err
}

func unhex(text string) ([]byte, error) {
	raw, err := hex.DecodeString(text)
	if err == nil && !bytes.Equal([]byte(hex.EncodeToString(raw)), []byte(text)) {
		err = errors.New("hex is lower-case")
	}
	return raw, err
}

// orNil is the value, with nil for the empty string: an empty link is null.
func orNil(value any) any {
	if value == "" {
		return nil
	}
	return value
}

func only(row *Object, names []string) *Object {
	object := &Object{Names: names, Values: map[string]any{}}
	for _, name := range names {
		object.Values[name] = row.Values[name]
	}
	return object
}
