package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"slices"
	"strings"
)

// Section 9.1: the members of a record in their order, and those that are JSON in CSV.
var (
	columns = strings.Fields(`event_id event_version event_timestamp event_date recorded_at event_type event_category
		event_action event_outcome correlation_id actor_type actor_id actor_ip resource_type resource_id resource_name
		parent_event_id parent_event_date namespace cluster_id severity duration_ms error_code error_message is_sensitive
		trace_id span_id retention_days legal_hold legal_hold_reason legal_hold_placed_by legal_hold_placed_at hash_algorithm
		log log_index chain_index previous_event_hash event_hash payload_salt payload_commitment event_metadata event_data
		redacted sealed`)
	jsonColumns = strings.Fields(`event_data event_metadata duration_ms retention_days log_index chain_index is_sensitive
		legal_hold redacted sealed`)
)

const (
	statementType = "application/vnd.in-toto+json"
	predicateType = "https://kubernaut.ai/datastorage/audit-export/v1"
)

// Export is a file, or its parts in their order, while it is read (section 9.3).
type Export struct {
	keys   []Key
	report func(format string, values ...any)

	format string // ndjson or csv
	header []string

	part     Part
	before   *Object // predicate of the last manifest
	digest   string  // of the part before
	parts    int
	logs     []*readLog // in the order in which their first records came
	last     *Object    // what `through` has to be, with the member log
	unsealed string
	chains   map[string]link
	notes    []*Checkpoint
	total    counts
}

// readLog is what has been read of one log; first and last are of the part.
type readLog struct {
	name        string
	position    int64    // of the last record
	leaves      [][]byte // of the positions from 0 on, as long as there is no gap
	first, last any
}

type link struct {
	index int64
	hash  any
}

type counts struct{ events, sealed, unsealed, erased, otherHash int64 }

// Part is what has been read since the last manifest.
type Part struct {
	digest     gohash.Hash
	counts     counts
	unsealed   map[string]bool // the logs that its unsealed records name
	isRedacted bool
}

func newPart() Part { return Part{digest: sha256.New(), unsealed: map[string]bool{}} }

func newExport(keys []Key, report func(string, ...any)) *Export {
	return &Export{keys: keys, report: report, part: newPart(), chains: map[string]link{}}
}

// read verifies one file; the next one continues where it ends.
func (e *Export) read(name string, input io.Reader) {
	reader := bufio.NewReaderSize(input, 1<<20)
	report, number := e.report, 0
	e.report = func(format string, values ...any) {
		report("%s: record %d: %s", name, number, fmt.Sprintf(format, values...))
	}
	defer func() { e.report = report }()
	for {
		number++
		raw, fields, err := e.next(reader)
		if err == io.EOF {
			return
		}
		if err == nil {
			err = e.record(raw, fields)
		}
		if err != nil {
			e.report("%v", err)
			if fields == nil && raw == nil {
				return // where the next record begins is unknown
			}
		}
	}
}

// next is one record with its end of line, of CSV also its fields.
func (e *Export) next(reader *bufio.Reader) (raw []byte, fields []string, err error) {
	if e.format == "" {
		e.format = "csv"
		if start, _ := reader.Peek(1); string(start) == "{" {
			e.format = "ndjson"
		}
	}
	if e.format == "csv" {
		return readCSV(reader)
	}
	raw, err = reader.ReadBytes('\n')
	if err == io.EOF && len(raw) > 0 {
		return nil, nil, errors.New("the record does not end with a newline")
	}
	return raw, nil, err
}

// readCSV reads one record of RFC 4180; its lines end with CR LF, and quoted fields may contain any character.
func readCSV(reader *bufio.Reader) (raw []byte, fields []string, err error) {
	var field []byte
	quoted, closed := false, false
	for {
		c, err := reader.ReadByte()
		if err == io.EOF && len(raw) == 0 {
			return nil, nil, io.EOF
		}
		if err != nil {
			return nil, nil, errors.New("the record does not end with a newline")
		}
		raw = append(raw, c)
		atStart := len(field) == 0 && !closed
		switch {
		case quoted && c == '"':
			quoted, closed = false, true
		case quoted:
			field = append(field, c)
		case closed && c == '"': // two quotes are one
			field = append(field, c)
			quoted, closed = true, false
		case c == '"' && atStart:
			quoted = true
		case c == ',':
			fields, field, closed = append(fields, string(field)), nil, false
		case c == '\r':
			if following, _ := reader.ReadByte(); following != '\n' {
				return nil, nil, errors.New("not CSV: CR without LF")
			}
			return append(raw, '\n'), append(fields, string(field)), nil
		case c == '"' || c == '\n' || closed:
			return nil, nil, errors.New("not CSV: a quote or a line's end where none may be")
		default:
			field = append(field, c)
		}
	}
}

func (e *Export) record(raw []byte, fields []string) error {
	if e.format == "csv" {
		switch {
		case fields[0] == "#manifest":
			if len(fields) < 2 || strings.Join(fields[2:], "") != "" || len(fields) != len(e.header) {
				return errors.New("a manifest has two fields, the others are empty")
			}
			return e.manifest([]byte(fields[1]))
		case e.header == nil:
			e.header = fields
			e.part.digest.Write(raw)
			if !slices.Equal(fields, columns) && !slices.Equal(fields, columns[:len(columns)-1]) {
				return errors.New("the header is not that of an export")
			}
			return nil
		}
	} else if bytes.HasPrefix(raw, []byte(`{"payloadType":`)) {
		return e.manifest(raw)
	}
	e.part.digest.Write(raw)
	e.part.counts.events++
	row, err := e.row(raw, fields)
	if err != nil {
		return err
	}
	if e.parts > 0 && e.before != nil && e.before.Values["next"] == nil {
		return errors.New("something follows the last part")
	}
	if row.Values["log_index"] != nil {
		return e.sealed(row)
	}
	log, _ := row.Values["log"].(string)
	e.part.unsealed[log] = true
	return e.other(row)
}

func (e *Export) row(raw []byte, fields []string) (*Object, error) {
	if e.format == "ndjson" {
		row, err := parseObject(raw)
		if err == nil && !slices.Equal(row.Names, columns) && !slices.Equal(row.Names, columns[:len(columns)-1]) {
			err = errors.New("the record has other members than section 9.1 names, or in another order")
		}
		return row, err
	}
	if len(fields) != len(e.header) {
		return nil, fmt.Errorf("the record has %d fields, the header %d", len(fields), len(e.header))
	}
	row := &Object{Names: e.header, Values: map[string]any{}}
	for i, name := range e.header {
		if fields[i] == "" {
			row.Values[name] = nil
			continue
		}
		text := strings.TrimPrefix(fields[i], "'")
		row.Values[name] = text
		if slices.Contains(jsonColumns, name) {
			value, err := parseJSON([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			row.Values[name] = value
		}
	}
	return row, nil
}

func (e *Export) sealed(row *Object) error {
	e.part.counts.sealed++
	position, err := integer(row.Values["log_index"])
	if err != nil {
		return fmt.Errorf("log_index: %w", err)
	}
	log := e.logOf(row)
	e.last = through(row.Values["log_index"], nil, nil, row.Values["log"])
	if log.first == nil {
		log.first = row.Values["log_index"]
	}
	log.last = row.Values["log_index"]
	if position <= log.position || e.unsealed != "" || log != e.logs[len(e.logs)-1] {
		e.report("position %d is not in the order of the log", position)
	}
	log.position = position
	stored, ok := row.Values["event_hash"].(string)
	leaf, err := unhex(stored)
	if !ok || err != nil || len(leaf) != 32 {
		return errors.New("event_hash is no hash")
	}
	if position == int64(len(log.leaves)) {
		log.leaves = append(log.leaves, leaf)
	}
	if row.Values["payload_commitment"] != nil {
		e.part.counts.erased++
	}
	if row.Values["sealed"] == false {
		e.report("the log did not have the event at position %d: it was inserted or changed", position)
	}
	redacted, err := names(row.Values["redacted"])
	if err != nil {
		return err
	}
	e.part.isRedacted = e.part.isRedacted || len(redacted) > 0
	changed := func(name string) bool { return slices.Contains(redacted, name) }
	if !slices.ContainsFunc(redacted, isRecordMember) {
		computed, err := eventHash(row)
		if err != nil {
			return err
		}
		if !bytes.Equal(computed, leaf) {
			e.report("the event at position %d does not have its hash: it was changed", position)
		}
	}
	if date, _ := row.Values["event_date"].(string); !changed("event_timestamp") && !onDate(row.Values["event_timestamp"], date) {
		e.report("event_date is not the date of event_timestamp")
	}
	return e.link(row, stored, changed("correlation_id"))
}

// logOf is what has been read of the record's log.
func (e *Export) logOf(row *Object) *readLog {
	name, _ := row.Values["log"].(string)
	if log := e.logNamed(name); log != nil {
		return log
	}
	e.logs = append(e.logs, &readLog{name: name, position: -1})
	return e.logs[len(e.logs)-1]
}

// logNamed is nil if the file had no sealed record of the log.
func (e *Export) logNamed(name string) *readLog {
	for _, log := range e.logs {
		if log.name == name {
			return log
		}
	}
	return nil
}

// link compares an event with the one before it in its chain, as far as the file has it.
func (e *Export) link(row *Object, stored string, isMasked bool) error {
	index, err := integer(row.Values["chain_index"])
	if err != nil {
		return fmt.Errorf("chain_index: %w", err)
	}
	previous := orNil(row.Values["previous_event_hash"])
	if (index == 0) != (previous == nil) {
		e.report("only the first event of a chain has no link")
	}
	if isMasked {
		return nil // correlations that look alike are no chain
	}
	correlation, _ := row.Values["correlation_id"].(string)
	before, follows := e.chains[correlation]
	if follows && index <= before.index {
		e.report("chain position %d of %q does not follow %d", index, correlation, before.index)
	}
	if follows && index == before.index+1 && previous != before.hash {
		e.report("the link of %q at %d is not the hash of the event before", correlation, index)
	}
	e.chains[correlation] = link{index, stored}
	return nil
}

func (e *Export) other(row *Object) error {
	e.part.counts.unsealed++
	e.last = through(nil, row.Values["event_id"], row.Values["event_date"], nil)
	id, _ := row.Values["event_id"].(string)
	date, _ := row.Values["event_date"].(string)
	if key := id + " " + date; key <= e.unsealed {
		e.report("the unsealed event %s is not in order", id)
	} else {
		e.unsealed = key
	}
	if row.Values["chain_index"] != nil || row.Values["sealed"] == true {
		return errors.New("an unsealed event has no chain position, and is not marked as sealed")
	}
	if hash, ok := olderHash(row); ok && hash != row.Values["event_hash"] {
		e.part.counts.otherHash++
	}
	return nil
}

// manifest is section 9.3, steps 4 and 5.
func (e *Export) manifest(envelope []byte) error {
	part := e.part
	e.part = newPart()
	digest := hex.EncodeToString(part.digest.Sum(nil))
	statement, _, err := openEnvelope(envelope, e.keys, predicateType, false)
	if err != nil {
		return fmt.Errorf("the manifest: %w", err)
	}
	p, _ := statement.Values["predicate"].(*Object)
	log := p.Values["log"]
	wrong := func(what string) { e.report("the manifest's %s is not that of the part", what) }
	same := func(name string, value any) {
		if given, present := p.Values[name]; !present || form(given) != form(value) {
			wrong(name)
		}
	}
	subject := fmt.Sprintf(`[{"digest":{"sha256":"%s"},"name":"export-%v-part-%v.%s"}]`,
		digest, p.Values["export_id"], p.Values["part"], e.format)
	if form(statement.Values["subject"]) != subject {
		wrong("digest or name")
	}
	same("format", e.format)
	same("events", count(part.counts.events))
	same("sealed", count(part.counts.sealed))
	same("unsealed", count(part.counts.unsealed))
	if p.Values["redacted"] != true {
		same("erased", count(part.counts.erased))
		e.total.erased += part.counts.erased
	}
	if p.Values["redacted"] != true && part.isRedacted {
		wrong("redacted")
	}
	logs, err := logsOf(p)
	if err != nil {
		return fmt.Errorf("the manifest: %w", err)
	}
	switch {
	case e.last == nil:
		same("through", nil)
	case len(logs) == 1:
		same("through", only(e.last, []string{"event_date", "event_id", "position"}))
	default:
		same("through", e.last)
	}
	e.ofLogs(logs, wrong)
	for name := range part.unsealed {
		if name != log {
			wrong("log")
		}
	}
	e.parts++
	e.total.events += part.counts.events
	e.total.sealed += part.counts.sealed
	e.total.unsealed += part.counts.unsealed
	e.total.otherHash += part.counts.otherHash
	e.follows(p)
	for i, one := range logs {
		isClosed := i < len(logs)-1
		if one.Values["checkpoint"] != nil && (!isClosed || e.hasKeyOf(one.Values["log"])) {
			note, _ := one.Values["checkpoint"].(string)
			e.signed(one, func() (*Checkpoint, error) { return openCheckpoint(note, e.keys) })
		}
		if isClosed && one.Values["seam"] != nil {
			e.signed(one, func() (*Checkpoint, error) { return closedTree(one, logs[i+1], e.keys) })
		}
	}
	e.before, e.digest = p, digest
	return nil
}

// logsOf are the entries of the closed logs, and the predicate for its own log: each has log, log_size, positions and checkpoint.
func logsOf(p *Object) ([]*Object, error) {
	if !p.has("earlier_logs") {
		return []*Object{p}, nil
	}
	earlier, ok := p.Values["earlier_logs"].([]any)
	if !ok || len(earlier) == 0 {
		return nil, errors.New("earlier_logs is no list of logs")
	}
	var logs []*Object
	for _, value := range earlier {
		one, ok := value.(*Object)
		if !ok {
			return nil, errors.New("an earlier log is no object")
		}
		logs = append(logs, one)
	}
	return append(logs, p), nil
}

// ofLogs compares what was read of each log with what the manifest says of it.
func (e *Export) ofLogs(logs []*Object, wrong func(string)) {
	next := 0 // of the logs that were read
	for _, one := range logs {
		log := &readLog{position: -1}
		if name, ok := one.Values["log"].(string); ok && next < len(e.logs) && e.logs[next].name == name {
			log = e.logs[next]
			next++
		}
		for name, value := range map[string]any{"first_position": log.first, "last_position": log.last} {
			if given, present := one.Values[name]; !present || form(given) != form(value) {
				wrong(name)
			}
		}
		if size, err := integer(one.Values["log_size"]); err != nil || log.position >= size {
			wrong("log_size")
		}
		log.first, log.last = nil, nil
	}
	if next < len(e.logs) {
		wrong("log") // of no log that it names, or not in the order of these
	}
}

func (e *Export) hasKeyOf(log any) bool {
	return slices.ContainsFunc(e.keys, func(key Key) bool { return key.Name == log && key.Algorithm == logKey })
}

// signed stores a tree of a log, to compare it with what was read once all was.
func (e *Export) signed(log *Object, open func() (*Checkpoint, error)) {
	checkpoint, err := open()
	if err != nil {
		e.report("%v", err)
	} else if checkpoint.Origin != log.Values["log"] {
		e.report("the checkpoint is of another log, %q", checkpoint.Origin)
	} else {
		e.notes = append(e.notes, checkpoint)
	}
}

// closedTree is the tree of a closed log as the first event of the next one has it (section 5.8).
func closedTree(log, following *Object, keys []Key) (*Checkpoint, error) {
	tree, payload, next, err := throughSeam(log.Values["seam"], keys)
	if err != nil {
		return nil, fmt.Errorf("the seam: %w", err)
	}
	if next != following.Values["log"] || form(payload.Values["size"]) != form(log.Values["log_size"]) {
		return nil, errors.New("the seam is not of the next log, or says another size of the closed one")
	}
	return tree, nil
}

func (e *Export) follows(p *Object) {
	before, previous := e.before, any(e.digest)
	if before == nil {
		if e.parts > 1 {
			return // the manifest before was refused already
		}
		before, previous = &Object{Values: map[string]any{"through": nil, "next": "", "part": Number("0")}}, nil
		for _, name := range []string{"export_id", "format", "redacted", "filter", "log", "log_size"} {
			before.Values[name] = p.Values[name]
		}
	}
	if number, err := integer(before.Values["part"]); err != nil || form(p.Values["part"]) != fmt.Sprint(number+1) {
		e.report("part %v does not follow part %v", form(p.Values["part"]), number)
	}
	if before.Values["next"] == nil {
		e.report("a part follows the last one")
	}
	if form(p.Values["previous"]) != form(previous) || form(p.Values["after"]) != form(before.Values["through"]) {
		e.report("the part does not begin where the one before ends")
	}
	for _, name := range []string{"export_id", "format", "redacted", "filter", "log", "log_size"} {
		if form(p.Values[name]) != form(before.Values[name]) {
			e.report("the parts differ in %s", name)
		}
	}
	if e.before != nil && namesAndSizes(p) != namesAndSizes(before) {
		e.report("the parts differ in earlier_logs")
	}
}

func namesAndSizes(p *Object) (text string) {
	logs, _ := logsOf(p)
	for _, one := range logs {
		text += form(one.Values["log"]) + " " + form(one.Values["log_size"]) + "\n"
	}
	return text
}

// end is what can be said once everything was read.
func (e *Export) end() string {
	if e.part.counts.events > 0 || e.before == nil || e.before.Values["next"] != nil {
		e.report("the file is incomplete: it does not end with the manifest of the last part")
	}
	covered := map[string]int64{}
	for _, checkpoint := range e.notes {
		log := e.logNamed(checkpoint.Origin)
		if log == nil || checkpoint.Size > int64(len(log.leaves)) || checkpoint.Size == covered[log.name] {
			continue
		}
		if !bytes.Equal(rootOf(log.leaves[:checkpoint.Size]), checkpoint.Root) {
			e.report("the events below position %d are not those of the checkpoint", checkpoint.Size)
		}
		covered[log.name] = max(covered[log.name], checkpoint.Size)
	}
	if e.before == nil {
		return ""
	}
	complete := "that nothing was left out is the exporter's word"
	var parts []string
	for _, log := range e.logs {
		if size := covered[log.name]; size > 0 {
			parts = append(parts, fmt.Sprintf("%s complete below position %d", log.name, size))
		}
	}
	if len(parts) > 0 {
		complete = strings.Join(parts, ", ")
	}
	t := e.total
	return fmt.Sprintf("export %v of %v in %d parts: %d events, %d sealed, %d unsealed (%d of them with another hash), %d erased; %s",
		e.before.Values["export_id"], e.before.Values["log"], e.parts, t.events, t.sealed, t.unsealed, t.otherHash, t.erased, complete)
}

// openEnvelope is the statement of a DSSE envelope, and the key of the log that it names that has signed it; isNamed: under its keyid.
func openEnvelope(text []byte, keys []Key, predicateType string, isNamed bool) (statement *Object, signer string, err error) {
	envelope, err := parseObject(text)
	if err != nil {
		return nil, "", err
	}
	encoded, _ := envelope.Values["payload"].(string)
	payload, err := unbase64(encoded)
	if err != nil || !slices.Equal(sorted(envelope.Names), []string{"payload", "payloadType", "signatures"}) || envelope.Values["payloadType"] != statementType {
		return nil, "", errors.New("not a DSSE envelope with an in-toto statement")
	}
	statement, err = parseObject(payload)
	if err != nil {
		return nil, "", fmt.Errorf("the statement: %w", err)
	}
	predicate, ok := statement.Values["predicate"].(*Object)
	if !ok || statement.Values["_type"] != "https://in-toto.io/Statement/v1" || statement.Values["predicateType"] != predicateType {
		return nil, "", errors.New("the statement is of something else")
	}
	log, _ := predicate.Values["log"].(string)
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(statementType), statementType, len(payload), payload)
	signatures, _ := envelope.Values["signatures"].([]any)
	for _, one := range signatures {
		signature, _ := one.(*Object)
		if signature == nil || !slices.Equal(sorted(signature.Names), []string{"keyid", "sig"}) {
			return nil, "", errors.New("a signature is malformed")
		}
		encoded, _ := signature.Values["sig"].(string)
		raw, err := unbase64(encoded)
		for _, key := range keys {
			if key.Algorithm != logKey || key.Name != log {
				continue
			}
			isOwn := signature.Values["keyid"] == key.String()
			if isRight := err == nil && ed25519.Verify(key.Public, signed, raw); isRight && (isOwn || !isNamed) {
				signer = key.String()
			} else if !isRight && isOwn {
				return nil, "", fmt.Errorf("the signature of %s is wrong", key)
			}
		}
	}
	if signer == "" {
		return nil, "", fmt.Errorf("no given key of %q has signed it", log)
	}
	return statement, signer, nil
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

func integer(value any) (int64, error) {
	number, ok := value.(Number)
	if !ok {
		return 0, errors.New("not a number")
	}
	return parseDecimal(string(number))
}

// form is the canonical text of a value; two values are equal if their forms are.
func form(value any) string {
	text, err := jcs(value)
	if err != nil {
		return err.Error()
	}
	return text
}

func count(n int64) Number { return Number(fmt.Sprint(n)) }

// through is an event in the order of exports; the member log is only in files of several logs.
func through(position, id, date, log any) *Object {
	return &Object{
		Names:  []string{"event_date", "event_id", "log", "position"},
		Values: map[string]any{"position": position, "event_id": id, "event_date": date, "log": log},
	}
}

func names(value any) ([]string, error) {
	if value == nil {
		return nil, nil
	}
	items, ok := value.([]any)
	var all []string
	for _, item := range items {
		name, isText := item.(string)
		ok = ok && isText
		all = append(all, name)
	}
	if !ok {
		return nil, errors.New("redacted is neither null nor a list of names")
	}
	return all, nil
}

func isRecordMember(name string) bool {
	return slices.Contains(recordMembers, name) || slices.Contains(recordTimes, name) || name == "previous_event_hash"
}

func onDate(time any, date string) bool {
	text, _ := time.(string)
	return len(date) == 10 && strings.HasPrefix(text, date+"T")
}
