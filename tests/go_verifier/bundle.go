package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
)

const bundleFormat = "https://kubernaut.ai/datastorage/bundle/v1"

var (
	bundleStart   = []byte(`{"format":"` + bundleFormat + `",`)
	manifestStart = []byte(`"manifest":`)

	contentMembers = strings.Fields(`format page correlation_id redacted logs chain events gaps evidence unproved notifications`)
	entryMembers   = strings.Fields(`log position leaf proof record salt committed redacted not_covered`)
	unhashed       = strings.Fields(`retention_days legal_hold legal_hold_reason legal_hold_placed_by legal_hold_placed_at hash_algorithm`)
	neverMasked    = strings.Fields(`v log log_index chain_index previous_event_hash commitment`)
	notified       = strings.Fields(`remediation_id notification_id recipient channel message_summary status sent_at delivery_status
		error_message escalation_level created_at`)
	// The member of a payload that the correlation of such a self event ends with (section 2).
	ownIDs = map[string]string{
		"datastorage.retention.purged": "operation_id", "datastorage.retention.restored": "operation_id",
		"datastorage.event.erased": "erasure_id", "datastorage.notification.stored": "storing_id",
		"datastorage.log.continued": "continuation_id",
	}
)

// Bundle is a bundle while it is verified (section 9.6). What is not of the form of section 9.5 ends it by a refusal.
type Bundle struct {
	keys     []Key
	report   func(format string, values ...any)
	redacted bool
	logs     map[string]*bundleLog
	entries  map[place]*entry
	erased   int
}

type bundleLog struct {
	order, number int64
	size          int64
	root          []byte
	// By operation: the positions that an event of this file names as purged, restored or erased.
	purged, restored map[any]ranges
	erased           ranges
	signedBy         []string
}

type place struct {
	log      string
	position int64
}

type entry struct {
	place
	leaf       string
	record     *Object
	committed  *Object // nil if erased
	redacted   []string
	isEvidence bool
	payload    *Object // if it is evidence of a known kind
}

type refusal string

func refuse(format string, values ...any) { panic(refusal(fmt.Sprintf(format, values...))) }

func verifyBundle(text []byte, keys []Key, report func(string, ...any)) (what string) {
	defer func() {
		if why, ok := recover().(refusal); ok {
			report("%s", string(why))
		}
	}()
	b := &Bundle{keys: keys, report: report, logs: map[string]*bundleLog{}, entries: map[place]*entry{}}
	return b.verify(text)
}

func (b *Bundle) verify(text []byte) string {
	last := bytes.LastIndexByte(text[:max(len(text)-1, 0)], '\n') + 1
	content, line := text[:last], text[last:]
	if !bytes.HasPrefix(line, manifestStart) || !bytes.HasSuffix(line, []byte("}\n")) || !bytes.HasSuffix(content, []byte(",\n")) {
		refuse("the last line is not the manifest")
	}
	manifest := line[len(manifestStart) : len(line)-2]
	object, err := parseObject(append(slices.Clone(content[:len(content)-2]), '}'))
	if err != nil {
		refuse("the content: %v", err)
	}
	c := exactly(object, "the content", contentMembers).Values
	b.redacted = boolean(c["redacted"], "redacted")
	correlation := textOf(c["correlation_id"], "correlation_id")
	for _, line := range list(c["page"], "page") {
		if found, ok := strings.CutPrefix(textOf(line, "a line of the page"), "DIFFERS FROM THE LOG: "); ok {
			b.report("the service found when it wrote the file: %s", found)
		}
	}
	logs := list(c["logs"], "logs")
	for order, one := range logs {
		b.log(int64(order), exactly(one, "a log", strings.Fields("log_id name size root checkpoint seam timestamps")).Values)
	}
	events, evidence := b.readEntries(c["events"], false), b.readEntries(c["evidence"], true)
	for _, one := range evidence {
		b.believe(one)
	}
	for _, one := range logs {
		b.seam(one.(*Object).Values)
	}
	head := b.chain(c["chain"], correlation, events)
	gaps := list(c["gaps"], "gaps")
	b.gaps(gaps, events, head)
	for _, one := range append(events, evidence...) {
		if one.committed == nil && !b.logs[one.log].erased.has(one.position) {
			b.report("edited: no event records that the one at position %d was erased", one.position)
		}
	}
	unproved, notifications := list(c["unproved"], "unproved"), list(c["notifications"], "notifications")
	b.unproved(unproved)
	b.notifications(notifications, evidence)
	numbers := map[string]int{
		"events": len(events), "erased": b.erased, "gaps": len(gaps), "evidence": len(evidence), "unproved": len(unproved),
		"notifications": len(notifications),
	}
	log := ""
	if len(logs) > 0 {
		log = logs[len(logs)-1].(*Object).Values["name"].(string)
	}
	signer := b.manifest(manifest, content, log, correlation, numbers)
	return fmt.Sprintf("bundle of %s, signed by %s: %d events, %d erased, %d gaps, %d self events, %d notifications, %d rows that nothing proves",
		correlation, signer, len(events), b.erased, len(gaps), len(evidence), len(notifications), len(unproved))
}

func (b *Bundle) manifest(text, content []byte, log, correlation string, numbers map[string]int) string {
	statement, signer, err := openEnvelope(text, b.keys, bundleFormat, true)
	if err != nil {
		refuse("the manifest: %v", err)
	}
	exactly(statement, "the statement", strings.Fields("_type subject predicateType predicate"))
	p := exactly(statement.Values["predicate"], "the manifest",
		strings.Fields("export_id correlation_id redacted exported_at exported_by log events erased gaps evidence unproved notifications")).Values
	textOf(p["exported_at"], "exported_at")
	textOf(p["exported_by"], "exported_by")
	subject := fmt.Sprintf(`[{"digest":{"sha256":"%x"},"name":"bundle-%s.json"}]`, hash(content), textOf(p["export_id"], "export_id"))
	if form(statement.Values["subject"]) != subject {
		b.report("the manifest's digest or name is not that of the content: something was changed")
	}
	if p["log"] != log || p["correlation_id"] != correlation || p["redacted"] != b.redacted {
		b.report("the manifest is of another log or correlation, or differs in redacted")
	}
	for name, n := range numbers {
		if p[name] != count(int64(n)) {
			b.report("the manifest's %s is not that of the content", name)
		}
	}
	return signer
}

// log is step 3, and of step 11 what needs no certificate.
func (b *Bundle) log(order int64, l map[string]any) {
	name := textOf(l["name"], "the log's name")
	one := &bundleLog{
		order: order, number: number(l["log_id"], "log_id"), size: number(l["size"], "the log's size"), root: digest(l["root"]),
		purged: map[any]ranges{}, restored: map[any]ranges{},
	}
	for other, known := range b.logs {
		if other == name || known.number == one.number {
			refuse("two logs have one name or number")
		}
	}
	b.logs[name] = one
	if l["checkpoint"] != nil {
		checkpoint := b.checkpoint(l["checkpoint"], name)
		one.signedBy = checkpoint.SignedBy
		if checkpoint.Size != one.size || !bytes.Equal(checkpoint.Root, one.root) {
			refuse("the checkpoint is not of the log's size and root")
		}
	} else if l["seam"] == nil {
		refuse("nothing vouches for the log %s", name)
	}
	for _, each := range list(l["timestamps"], "timestamps") {
		t := exactly(each, "a timestamp", strings.Fields("checkpoint consistency token")).Values
		checkpoint := b.checkpoint(t["checkpoint"], name)
		if !isConsistent(checkpoint.Size, one.size, checkpoint.Root, one.root, hashes(t["consistency"])) {
			refuse("a timestamp's checkpoint is not of this log")
		}
		if _, err := unbase64(textOf(t["token"], "a token")); err != nil {
			refuse("a token: %v", err)
		}
	}
}

func (b *Bundle) checkpoint(note any, origin string) *Checkpoint {
	checkpoint, err := openCheckpoint(textOf(note, "a checkpoint"), b.keys)
	if err != nil {
		refuse("%v", err)
	}
	if checkpoint.Origin != origin {
		refuse("a checkpoint is of another log, %q", checkpoint.Origin)
	}
	return checkpoint
}

// seam: a log without a checkpoint is vouched for by an event of the next one.
func (b *Bundle) seam(l map[string]any) {
	if l["seam"] == nil {
		return
	}
	one := b.at(l["seam"], "a seam")
	size, root := l["size"], hex.EncodeToString(digest(l["root"]))
	if one == nil || one.record.Values["event_type"] != "datastorage.log.continued" || one.payload == nil ||
		one.payload.Values["closed_log"] != l["name"] || one.payload.Values["tree_size"] != size || one.payload.Values["root_hash"] != root {
		refuse("the event that continues the log %v does not name its size and root", l["name"])
	}
}

// at is the evidence at a place, nil if there is none.
func (b *Bundle) at(value any, what string) *entry {
	p := exactly(value, what, []string{"log", "position"}).Values
	one := b.entries[place{textOf(p["log"], "log"), number(p["position"], "position")}]
	if one == nil || !one.isEvidence {
		return nil
	}
	return one
}

// readEntries is step 4.
func (b *Bundle) readEntries(value any, isEvidence bool) (all []*entry) {
	for _, each := range list(value, "event entries") {
		e := exactly(each, "an event entry", entryMembers).Values
		exactly(e["not_covered"], "not_covered", unhashed)
		one := &entry{place: b.place(e), leaf: textOf(e["leaf"], "leaf"), isEvidence: isEvidence}
		text := textOf(e["record"], "record")
		b.included(one.place, one.leaf, e["proof"])
		one.record = parsed(text, "a record", append(append([]string{
			"v", "commitment", "previous_event_hash"}, recordMembers...), recordTimes...))
		one.redacted = sortedNames(e["redacted"])
		ofRecord := func(name string) bool { return one.record.has(name) }
		ofContent := func(name string) bool { return slices.Contains(committedMembers, name) }
		for _, name := range one.redacted {
			if !ofRecord(name) && !ofContent(name) || slices.Contains(neverMasked, name) || !b.redacted {
				refuse("%q cannot have been masked", name)
			}
		}
		if !slices.ContainsFunc(one.redacted, ofRecord) && hex.EncodeToString(leafHash([]byte(text))) != one.leaf {
			b.report("the event at position %d does not have its hash: it was changed", one.position)
		}
		if one.record.Values["log"] != one.log || one.record.Values["log_index"] != e["position"] {
			refuse("a record is of another place than its entry")
		}
		if e["committed"] != nil {
			content := textOf(e["committed"], "committed")
			one.committed = parsed(content, "a committed object", committedMembers)
			masks := slices.ContainsFunc(one.redacted, ofContent)
			if e["salt"] == nil != masks {
				refuse("an entry is masked or has its salt, and not both")
			}
			if !masks && hex.EncodeToString(hash(salt(e["salt"]), []byte(content))) != one.record.Values["commitment"] {
				b.report("the content of the event at position %d was changed", one.position)
			}
		} else if e["salt"] != nil {
			refuse("a salt without its content")
		} else if !isEvidence {
			b.erased++
		}
		if b.entries[one.place] != nil {
			refuse("position %d stands twice", one.position)
		}
		b.entries[one.place] = one
		all = append(all, one)
	}
	return all
}

func (b *Bundle) place(e map[string]any) place {
	return place{textOf(e["log"], "log"), number(e["position"], "position")}
}

func (b *Bundle) included(at place, leaf string, proof any) {
	raw, err := unhex(leaf)
	log := b.logs[at.log]
	if err != nil || len(raw) != 32 || log == nil {
		refuse("an entry has no hash, or is of no log of this file")
	}
	if root := rootFromProof(raw, at.position, log.size, hashes(proof)); !bytes.Equal(root, log.root) {
		b.report("the proof does not lead from position %d to the log's root", at.position)
	}
}

// believe is step 6: section 5.9, steps 2 to 5.
func (b *Bundle) believe(one *entry) {
	r := one.record.Values
	kind, _ := r["event_type"].(string)
	id := ownIDs[kind]
	if id == "" || one.committed == nil {
		return
	}
	payload, ok := one.committed.Values["event_data"].(*Object)
	if !ok || payload.Values["event_type"] != kind || r["event_category"] != "security" ||
		r["correlation_id"] != fmt.Sprintf("datastorage:%s:%v", strings.Split(kind, ".")[1], payload.Values[id]) {
		return
	}
	one.payload = payload
	positions, ok := payload.Values["positions"].(string)
	if !ok {
		return
	}
	about := int64(0)
	if payload.has("log_id") {
		about = number(payload.Values["log_id"], "log_id")
	}
	own := b.logs[one.log]
	for _, log := range b.logs {
		if log.number != about || log.order > own.order {
			continue
		}
		named := parseRanges(positions)
		if log == own {
			named = named.below(one.position)
		}
		switch kind {
		case "datastorage.retention.purged":
			log.purged[payload.Values[id]] = append(log.purged[payload.Values[id]], named...)
		case "datastorage.retention.restored":
			log.restored[payload.Values[id]] = append(log.restored[payload.Values[id]], named...)
		case "datastorage.event.erased":
			log.erased = append(log.erased, named...)
		case "datastorage.log.continued":
			if one.position == 0 && own.number == about+1 {
				log.purged[lost{}] = append(log.purged[lost{}], named...)
			}
		}
	}
}

// lost stands for the operation of what is missing since a log was continued: nothing restores it.
type lost struct{}

// chain is step 5.
func (b *Bundle) chain(value any, correlation string, events []*entry) (head struct {
	length int64
	hash   any
}) {
	if value != nil {
		c := exactly(value, "chain", []string{"length", "hash"}).Values
		head.length, head.hash = number(c["length"], "length"), textOf(c["hash"], "hash")
	} else if len(events) > 0 {
		refuse("there are events, and no chain")
	}
	var before *entry
	for _, one := range events {
		index, previous := one.index(), one.record.Values["previous_event_hash"]
		if one.record.Values["correlation_id"] != correlation && !slices.Contains(one.redacted, "correlation_id") {
			b.report("the event at position %d is of another correlation", one.position)
		}
		if (index == 0) != (previous == nil) {
			b.report("only the first event of a chain has no link")
		}
		if before != nil {
			if index <= before.index() || !b.isBefore(before.place, one.place) {
				b.report("the event at position %d is not in the order of the chain", one.position)
			}
			if index == before.index()+1 && previous != before.leaf {
				b.report("the link of the event at position %d is not the hash of the one before", one.position)
			}
		}
		before = one
	}
	if before != nil && (before.index() >= head.length || before.index() == head.length-1 && before.leaf != head.hash) {
		b.report("the chain does not end with its last event")
	}
	return head
}

func (e *entry) index() int64 { return number(e.record.Values["chain_index"], "chain_index") }

func (b *Bundle) isBefore(x, y place) bool {
	if x.log != y.log {
		return b.logs[x.log].order < b.logs[y.log].order
	}
	return x.position < y.position
}

// gaps is step 7.
func (b *Bundle) gaps(given []any, events []*entry, head struct {
	length int64
	hash   any
}) {
	type run struct {
		first, end    int64
		lastHash      any
		before, after *entry
	}
	var runs []run
	next := int64(0)
	var before *entry
	for _, one := range events {
		if index := one.index(); index > next {
			runs = append(runs, run{next, index, one.record.Values["previous_event_hash"], before, one})
		}
		before, next = one, one.index()+1
	}
	if next < head.length {
		runs = append(runs, run{next, head.length, head.hash, before, nil})
	}
	if len(runs) != len(given) {
		refuse("the gaps are not those of the chain")
	}
	for i, one := range given {
		g, r := exactly(one, "a gap", strings.Fields("first end last_hash log position proof")).Values, runs[i]
		if g["first"] != count(r.first) || g["end"] != count(r.end) || g["last_hash"] != r.lastHash {
			refuse("the gaps are not those of the chain")
		}
		if g["log"] == nil && g["position"] == nil && g["proof"] == nil {
			b.report("removed: the events %d to %d of the chain are missing, and nothing records a purge", r.first, r.end-1)
			continue
		}
		at := b.place(g)
		b.included(at, textOf(g["last_hash"], "last_hash"), g["proof"])
		isBetween := (r.before == nil || b.isBefore(r.before.place, at)) && (r.after == nil || b.isBefore(at, r.after.place))
		if !isBetween || !b.logs[at.log].isPurged(at.position) || b.missingBetween(r.before, at) < r.end-r.first-1 {
			b.report("removed: no purge explains that the events %d to %d of the chain are missing", r.first, r.end-1)
		}
	}
}

// missingBetween counts the missing positions after an entry, or from the beginning, and before a place, in all logs.
func (b *Bundle) missingBetween(before *entry, end place) (n int64) {
	for name, log := range b.logs {
		from, to := int64(0), log.size
		if before != nil && before.log == name {
			from = before.position + 1
		}
		if name == end.log {
			to = end.position
		}
		if (before == nil || log.order >= b.logs[before.log].order) && log.order <= b.logs[end.log].order {
			n += log.purgedBetween(from, to)
		}
	}
	return n
}

// unproved is step 9.
func (b *Bundle) unproved(rows []any) {
	for _, one := range rows {
		row := parsed(textOf(one, "an unproved row"), "an unproved row", columns)
		if row.Values["sealed"] != false {
			refuse("an unproved row is marked as sealed")
		}
		if row.Values["log_index"] != nil {
			b.report("the log has another event than the row that says it is at position %v, or none", row.Values["log_index"])
		}
	}
}

// notifications is step 10.
func (b *Bundle) notifications(given []any, evidence []*entry) {
	named := map[*entry]int{}
	for _, each := range given {
		n := exactly(each, "a notification", strings.Fields("columns salt committed covered_by")).Values
		shown, ok := n["columns"].(*Object)
		if !ok {
			refuse("a notification has no columns")
		}
		id := shown.Values["notification_id"]
		hasSalt := n["salt"] != nil
		if hasSalt != (n["committed"] != nil) || hasSalt && (b.redacted || n["covered_by"] == nil) {
			refuse("the notification %v has a salt or text that it cannot have", id)
		}
		if n["covered_by"] == nil {
			continue
		}
		one := b.at(n["covered_by"], "covered_by")
		if one == nil || one.payload == nil || one.record.Values["event_type"] != "datastorage.notification.stored" {
			b.report("inserted: no event in the log has the digest of the notification %v", id)
			continue
		}
		named[one]++
		if one.payload.Values["notification_id"] != id {
			b.report("edited: the event names another notification than %v", id)
		}
		if b.redacted {
			continue
		}
		text := textOf(n["committed"], "committed")
		if hex.EncodeToString(hash(salt(n["salt"]), []byte(text))) != one.payload.Values["digest"] {
			b.report("edited: the notification %v does not have its digest", id)
		}
		for name, value := range parsed(text, "a notification", notified).Values {
			if form(value) != form(shown.Values[name]) || !shown.has(name) {
				b.report("edited: the notification %v shows another %s than was logged", id, name)
			}
		}
	}
	for _, one := range evidence {
		if one.payload != nil && one.record.Values["event_type"] == "datastorage.notification.stored" && named[one] != 1 {
			b.report("removed: the notification %v", one.payload.Values["notification_id"])
		}
	}
}

// ranges are positions [from, to).
type ranges [][2]int64

var rangesText = regexp.MustCompile(`^\{(\[\d+,\d+\)(,\[\d+,\d+\))*)?\}$`)

func parseRanges(text string) (all ranges) {
	if !rangesText.MatchString(text) {
		refuse("%.60q are no positions", text)
	}
	for _, one := range regexp.MustCompile(`\d+,\d+`).FindAllString(text, -1) {
		from, to, _ := strings.Cut(one, ",")
		all = append(all, [2]int64{number(Number(from), "a position"), number(Number(to), "a position")})
	}
	return all
}

func (r ranges) has(position int64) bool {
	return slices.ContainsFunc(r, func(one [2]int64) bool { return one[0] <= position && position < one[1] })
}

func (r ranges) below(end int64) (all ranges) {
	for _, one := range r {
		all = append(all, [2]int64{min(one[0], end), min(one[1], end)})
	}
	return all
}

func (l *bundleLog) isPurged(position int64) bool {
	for operation, purged := range l.purged {
		if purged.has(position) && !l.restored[operation].has(position) {
			return true
		}
	}
	return false
}

// purgedBetween counts positions in [from, to): between two neighbouring bounds all of them are purged, or none.
func (l *bundleLog) purgedBetween(from, to int64) (n int64) {
	bounds := []int64{from, to}
	for _, sets := range []map[any]ranges{l.purged, l.restored} {
		for _, set := range sets {
			for _, one := range set {
				bounds = append(bounds, min(max(one[0], from), to), min(max(one[1], from), to))
			}
		}
	}
	sort.Slice(bounds, func(i, j int) bool { return bounds[i] < bounds[j] })
	for i := 1; i < len(bounds); i++ {
		if bounds[i] > bounds[i-1] && l.isPurged(bounds[i-1]) {
			n += bounds[i] - bounds[i-1]
		}
	}
	return n
}

// What follows refuses what is not of the type that is expected.

func (o *Object) has(name string) bool {
	_, present := o.Values[name]
	return present
}

func exactly(value any, what string, names []string) *Object {
	object, ok := value.(*Object)
	if !ok || !slices.Equal(sorted(object.Names), sorted(names)) {
		refuse("%s has other members than section 9.5 names", what)
	}
	return object
}

func parsed(text, what string, names []string) *Object {
	object, err := parseObject([]byte(text))
	if err != nil {
		refuse("%s: %v", what, err)
	}
	return exactly(object, what, names)
}

func textOf(value any, what string) string {
	text, ok := value.(string)
	if !ok {
		refuse("%s is no text", what)
	}
	return text
}

func boolean(value any, what string) bool {
	is, ok := value.(bool)
	if !ok {
		refuse("%s is neither true nor false", what)
	}
	return is
}

func number(value any, what string) int64 {
	n, err := integer(value)
	if err != nil || n >= 1<<53 {
		refuse("%s is no number below 2^53", what)
	}
	return n
}

func list(value any, what string) []any {
	all, ok := value.([]any)
	if !ok {
		refuse("%s are no list", what)
	}
	return all
}

func digest(value any) []byte {
	raw, err := unbase64(textOf(value, "a hash"))
	if err != nil || len(raw) != 32 {
		refuse("a hash is not 32 bytes in base64")
	}
	return raw
}

func hashes(value any) (all [][]byte) {
	for _, one := range list(value, "hashes") {
		all = append(all, digest(one))
	}
	return all
}

func salt(value any) []byte {
	raw, err := unhex(textOf(value, "a salt"))
	if err != nil || len(raw) != 16 {
		refuse("a salt is not 16 bytes in hex")
	}
	return raw
}

func sortedNames(value any) []string {
	all, err := names(value)
	if err != nil || value != nil && len(all) == 0 || !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		refuse("redacted is neither null nor a sorted list of names")
	}
	return all
}
