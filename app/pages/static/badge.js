"use strict";
/* The badge of an event: what the page shows is compared with the record, and the record with a signed checkpoint, in this browser. The
   steps are those of docs/design.md, section 8.1; the verifier is the one of docs/verifier.html. Texts are only ever set as text. */
{
  const D = DataStorageVerifier;
  const STATES = { holds: ["\u2713", "holds"], fails: ["\u2715", "does not hold"], open: ["\u2013", "not checked"] };
  const VERDICTS = {
    holds: ["\u2713", "Proved in this browser"],
    fails: ["\u2715", "This does not hold"],
    open: ["\u2013", "Not proved"],
  };
  const ED25519 = 1, TRIES = 20, PAUSE_MS = 500, INDENTED_BYTES_MAX = 200000;

  /** An element with attributes and children; strings become text. */
  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // What the page shows.

  /** The same JSON over several lines, as app/pages/text.py writes it: numbers and strings stay as they are. */
  function indented(json) {
    const lines = [""];
    let depth = 0, before = "";
    for (const [token] of json.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/gsu)) {
      if ("[{".includes(before || " ") && !"]}".includes(token)) lines.push("  ".repeat(++depth));
      else if ("]}".includes(token) && !"[{".includes(before || " ")) lines.push("  ".repeat(--depth));
      else if (before === ",") lines.push("  ".repeat(depth));
      lines[lines.length - 1] += token === ":" ? ": " : token;
      before = token;
    }
    return lines.join("\n");
  }
  /** A text with an escape for each character that a page may have made visible by one, so that both spellings are equal. */
  const plain = (text) => text.replace(/[^\n\t\x20-\x7e]/gu, (character) => {
    const code = character.codePointAt(0);
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
  function expected(value) {
    if (typeof value === "string") return value;
    const written = D.jcs(value), isNested = value instanceof Map || Array.isArray(value);
    return isNested && D.encode(written).length <= INDENTED_BYTES_MAX ? indented(written) : written;
  }
  const shownIn = (one) => (one.localName === "time" ? one.dateTime : one.textContent);

  const isSeen = (one) => one.checkVisibility?.({ visibilityProperty: true, opacityProperty: true }) ?? true;

  /** The names of members that this page shows otherwise than `members` have them, or not at all. */
  function misshown(members) {
    const wrong = [];
    for (const [name, value] of members) {
      const places = [...document.querySelectorAll(`[data-member="${CSS.escape(name)}"]`)];
      const isRight = value === null ? places.length === 0 :
        places.length > 0 && places.every((one) => isSeen(one) && plain(shownIn(one)) === plain(expected(value)));
      if (!isRight) wrong.push(name);
    }
    return wrong;
  }

  // The steps. Each returns [state, sentence, values to show].

  function shownStep(record, committed) {
    const names = new Set([...record.keys(), ...(committed?.keys() ?? [])]);
    const strangers = [...document.querySelectorAll("[data-member]")].map((one) => one.dataset.member).filter((name) => !names.has(name));
    const wrong = [...misshown(record), ...(committed ? misshown(committed) : []), ...strangers];
    const places = document.querySelectorAll("[data-member]").length;
    if (wrong.length) return ["fails", `This page shows ${wrong.join(", ")} otherwise than the record has it.`, []];
    return ["holds", `What stands here as ${places} members of the event is what the record has, or commits to, and none of its members is left out.`, []];
  }
  function payloadStep(row, committed) {
    if (committed === null) return ["open", "The payload was erased; its commitment is left.", []];
    const digest = D.hex(D.sha256(D.encode(D.jcs(committed.get("event_data")))));
    if (D.jcs(committed) !== row.committed) return ["fails", "What is committed is not in its canonical form.", []];
    return ["holds", "The payload in its canonical form, and its digest.", [["SHA-256 of event_data", digest], ["salt", row.salt ?? "none"]]];
  }
  function commitmentStep(row, record, committed) {
    const named = record.get("commitment");
    if (committed === null) return ["open", "Salt and content were erased, so the commitment cannot be opened.", [["the record's", named]]];
    if (row.salt === null) return ["fails", "The row has no salt: it was changed after it was written.", []];
    const computed = D.commitment(row.salt, row.committed);
    const values = [["SHA-256 of salt and content", computed], ["the record's", named]];
    return computed === named ? ["holds", "The record commits to who did it, to what, and the payload.", values] :
      ["fails", "The record commits to another content.", values];
  }
  function recordStep(row, record, proof) {
    const leaf = D.hex(D.leafHash(D.encode(row.record)));
    const values = [["leaf computed here", leaf], ["hash in the row", row.hash], ["leaf in the log", row.leaf ?? "none"], ["canonical record", row.record]];
    if (D.jcs(record) !== row.record) return ["fails", "The record is not in its canonical form.", values];
    if (proof !== null && D.decode(proof.record) !== row.record) {
      const proved = D.parseObject(D.decode(proof.record));
      const other = [...proved.keys()].filter((name) => D.jcs(proved.get(name)) !== D.jcs(record.get(name) ?? null));
      return ["fails", `The proof is of another record: ${other.join(", ") || "its form"} differs.`, [...values, ["record in the proof", D.decode(proof.record)]]];
    }
    if (row.hash !== leaf) return ["fails", "The event that this page shows does not have the hash that its row was given: the row was changed.", values];
    if (row.leaf !== leaf) return ["fails", "The log has another leaf at this position: row and hash were changed.", values];
    return ["holds", "The record hashes to the leaf that the log has.", values];
  }
  function pathStep(answer, proof) {
    if (proof === null) return answer.isRefused ? ["fails", `The service cannot prove this event. It says: ${answer.why}`, []] : ["open", answer.why, []];
    const [, size, root] = proof.note.split("\n");
    const nodes = D.climb(D.leafHash(proof.record), proof.position, Number(size), proof.proof);
    if (nodes === null) return ["fails", "The proof has not the form that position and size ask for.", []];
    const computed = btoa(String.fromCharCode(...nodes.at(-1)));
    const values = [...proof.proof.map((hash, i) => [`hash ${i + 1}`, `${D.hex(hash)} \u2192 ${D.hex(nodes[i + 1])}`]), ["root computed here", computed], ["root in the checkpoint", root]];
    return computed === root ? ["holds", `${proof.proof.length} hashes lead from position ${proof.position} to the root of ${size} events.`, values] :
      ["fails", "The hashes do not lead to the root of the checkpoint.", values];
  }
  function signatureStep(answer, proof, keys) {
    if (proof === null) return ["open", "Without a proof there is no checkpoint to look at.", []];
    if (keys.length === 0) return ["open", "There is no key to check the signature with: paste one below.", [["checkpoint", proof.note]]];
    const values = [["checkpoint", proof.note]];
    try {
      const report = D.verifyProof(answer.source, keys);
      const { signers, witnesses, through, size } = report.checkpoint, lines = proof.note.match(/^\u2014 /gm)?.length ?? 0;
      const words = [through ? `The log was closed after a loss; ${through} continues it, names this tree of ${size} events, and is signed by ${signers.join(" and ")}.` :
        `${signers.join(" and ")} has signed a checkpoint of ${size} events.`];
      if (witnesses.length) words.push(`Cosigned by ${witnesses.join(" and ")}.`);
      if (lines > signers.length + witnesses.length) words.push("Signatures of other kinds (ML-DSA) or by other keys are not checked here; datastorage verify-proof does.");
      return ["holds", words.join(" "), values];
    } catch (error) {
      return ["fails", `${D.reason(error)}.`, values];
    }
  }
  function keyStep(trust) {
    if (trust.changed.length) return ["fails", "The key of this log is not the one that this browser knows.", trust.changed];
    if (trust.pin === null) return ["open", trust.why, []];
    const values = trust.pin.keys.map((key) => ["key", key]);
    const since = trust.pin.since.slice(0, 19).replace("T", " ");
    return trust.pin.isPasted ? ["holds", `You gave this browser the key at ${since} UTC.`, values] :
      ["holds", `This browser saw the key first at ${since} UTC, from this service, and has seen no other since. Compare it once with what the operator published.`, values];
  }

  // The key that this browser trusts: the first one that it saw, or the one that somebody gave it.

  const firstLog = (name) => name.replace(/\/[0-9]+$/, "");
  const pinName = (log) => `datastorage key of ${firstLog(log)}`;
  const logKeys = (source) => D.parseKeys(source).filter((key) => key.algorithm === ED25519).map((key) =>
    `${key.label}+${btoa(String.fromCharCode(key.algorithm, ...key.bytes))}`);
  function readPin(log) {
    try {
      const pin = JSON.parse(localStorage.getItem(pinName(log)));
      return Array.isArray(pin?.keys) && typeof pin.since === "string" ? pin : null;
    } catch { return null; }
  }
  function writePin(log, keys, isPasted) {
    const pin = { keys, since: new Date().toISOString(), isPasted };
    try { localStorage.setItem(pinName(log), JSON.stringify(pin)); } catch { /* this page still knows it */ }
    return pin;
  }
  async function readTrust(log) {
    let offered = [], why = "";
    try {
      const answer = await fetch("/tlog/key", { cache: "no-store" });
      if (answer.ok) offered = logKeys(await answer.text());
      else why = `The service does not show its key (${answer.status}): paste the one that you have.`;
    } catch (error) { why = `The service's key cannot be read: ${error.message}.`; }
    let pin = readPin(log);
    if (pin === null && offered.length) pin = writePin(log, offered, false);
    const lost = pin && offered.length ? pin.keys.filter((key) => !offered.includes(key)) : [];
    const added = pin && !pin.isPasted ? offered.filter((key) => !pin.keys.includes(key)) : [];
    const changed = [...lost.map((key) => ["this browser knows", key]), ...added.map((key) => ["the service shows now", key])];
    return { pin, offered, changed, why };
  }

  // The proof, from the service.

  async function readProof(id) {
    for (let tried = 0; ; tried++) {
      let answer;
      try {
        answer = await fetch(`/api/v1/audit/events/${id}/proof?open=true`, { cache: "no-store" });
      } catch (error) { return { source: null, isRefused: false, why: `The proof cannot be read: ${error.message}.` }; }
      const source = await answer.text();
      if (answer.ok) return { source, isRefused: false, why: "" };
      if (answer.status !== 503 || tried >= TRIES) {
        let why = `The service answered ${answer.status}.`;
        try { why = JSON.parse(source).detail ?? why; } catch { /* not a problem document */ }
        return { source: null, isRefused: answer.status === 409, why };
      }
      await new Promise((resume) => { setTimeout(resume, PAUSE_MS); });
    }
  }

  // The badge.

  const TITLES = ["What this page shows", "Payload and salt", "Commitment", "Record and leaf", "Path to the root", "Signed checkpoint", "Key"];
  function steps(row, answer, trust) {
    const record = D.parseObject(row.record), committed = row.committed === null ? null : D.parseObject(row.committed);
    const proof = answer.source === null ? null : D.readProof(D.parseObject(answer.source).get("proof"));
    const keys = D.parseKeys((trust.pin?.keys ?? []).join("\n"));
    const parts = [
      () => shownStep(record, committed), () => payloadStep(row, committed), () => commitmentStep(row, record, committed),
      () => recordStep(row, record, proof), () => pathStep(answer, proof), () => signatureStep(answer, proof, keys), () => keyStep(trust),
    ];
    return parts.map((part) => {
      try { return part(); } catch (error) { return ["fails", `${D.reason(error)}.`, []]; }
    });
  }
  function verdictOf(found) {
    const states = found.map(([state]) => state), isErased = states[1] === "open" && states[2] === "open";
    if (states.includes("fails")) return "fails";
    return states.every((state, i) => state === "holds" || (isErased && (i === 1 || i === 2))) ? "holds" : "open";
  }
  function sentence(verdict, found, row, answer) {
    const failed = TITLES.filter((_, i) => found[i][0] === "fails");
    if (verdict === "fails") return `${failed.join(", ")}: ${found.find(([state]) => state === "fails")[1]}`;
    if (verdict === "open") return answer.source === null ? answer.why : found.find(([state]) => state === "open")[1];
    return found[1][0] === "open" ? "The record is what the log has; payload and actor were erased by the rules." :
      "What this page shows is what the log has, and a signed checkpoint vouches for the log.";
  }
  const stepItem = ([state, words, values], i) => element("li", { class: `step ${state}`, "data-state": state, "data-step": TITLES[i] },
    element("span", { class: "icon", "aria-hidden": "true" }, STATES[state][0]),
    element("div", {}, element("strong", {}, TITLES[i]), " ", element("span", {}, `${STATES[state][1]}. ${words}`), values.length === 0 ? null :
      element("details", {}, element("summary", {}, "Values"), element("dl", { class: "values" }, ...values.flatMap(([name, value]) =>
        [element("dt", {}, name), element("dd", {}, plain(value))])))));

  const badge = document.getElementById("badge");
  async function show() {
    const { event, record, hash } = badge.dataset;
    const row = { record, hash, committed: badge.dataset.committed ?? null, salt: badge.dataset.salt ?? null, leaf: badge.dataset.leaf ?? null };
    const log = D.parseObject(record).get("log");
    const [answer, trust] = await Promise.all([readProof(event), readTrust(log)]);
    const found = steps(row, answer, trust), verdict = verdictOf(found);
    const at = new Date().toISOString().slice(0, 19).replace("T", " ");
    badge.querySelector("[data-verdict]").replaceWith(element("p", { class: `judged ${verdict}`, "data-verdict": verdict, role: "status" },
      element("span", { class: "icon", "aria-hidden": "true" }, VERDICTS[verdict][0]), element("strong", {}, VERDICTS[verdict][1]),
      ` ${sentence(verdict, found, row, answer)} Computed at ${at} UTC.`));
    badge.querySelector("[data-alarm]").replaceChildren(...(trust.changed.length ? [alarm(log, trust)] : []));
    badge.querySelector("ol").replaceChildren(...found.map(stepItem));
    badge.querySelector("[data-key]").hidden = false;
    badge.dataset.done = verdict;
  }
  function alarm(log, trust) {
    const trusting = element("button", { type: "button", class: "quiet" }, "I have compared it: trust the new key");
    trusting.addEventListener("click", () => { writePin(log, trust.offered, false); show(); });
    return element("div", { class: "alarm", role: "alert" },
      element("strong", {}, "The key of this log has changed. "), "Whoever holds another key can sign another log. Ask the operator, by another way than this " +
        "service, whether the key was renewed, before you rely on anything here. ", trusting);
  }
  function acceptKey(event) {
    event.preventDefault();
    const field = badge.querySelector("[data-key] textarea"), state = badge.querySelector("[data-key] output");
    try {
      const keys = logKeys(field.value);
      if (!keys.length) throw new Error("an Ed25519 key of a log is needed");
      writePin(D.parseObject(badge.dataset.record).get("log"), keys, true);
      state.textContent = "This browser trusts this key from now on.";
      show();
    } catch (error) { state.textContent = `This is no key: ${error.message}.`; }
  }
  if (badge !== null) {
    badge.querySelector("[data-key]").addEventListener("submit", acceptKey);
    show().catch((error) => {
      badge.querySelector("[data-verdict]").textContent = `Not proved: this browser could not compute the proof (${error.message}).`;
      badge.dataset.done = "open";
    });
  }
}
