"use strict";
/* DataStorage verifier: begin. From here to "end" nothing touches the page; it can stand in others. Formats and steps are those of
   docs/design.md, whose sections are named. It brings its own SHA-2 and Ed25519, since file: is no secure context in every browser,
   and its own JSON, since JSON.parse rounds numbers and takes the last of two members with one name. */
const DataStorageVerifier = (() => {
  class Refused extends Error {}
  const refuse = (why) => { throw new Refused(why); };

  /** Why something does not hold: what was refused, or what this program could not do with it. */
  const reason = (error) => (error instanceof Refused ? error.message : `malformed (${error.message})`);

  // Bytes and text.

  const encode = (text) => new TextEncoder().encode(text);
  function decode(bytes) {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch { return refuse("not UTF-8"); }
  }
  function join(...parts) {
    const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
    let at = 0;
    for (const part of parts) { all.set(part, at); at += part.length; }
    return all;
  }
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  function unhex(text, length) {
    if (typeof text !== "string" || !/^([0-9a-f]{2})*$/.test(text) || text.length !== 2 * length) {
      refuse(`${length} bytes in lower-case hex are expected`);
    }
    return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  }
  function unbase64(text) {
    try {
      const raw = atob(text);
      if (btoa(raw) === text) return Uint8Array.from(raw, (c) => c.charCodeAt(0));
    } catch { /* refused below */ }
    return refuse("not base64 in its one spelling");
  }
  const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

  // SHA-256 and SHA-512 (FIPS 180-4). Their constants are the first bits of roots of the first primes.

  const primes = [];
  for (let n = 2; primes.length < 80; n++) if (primes.every((prime) => n % prime)) primes.push(n);
  const MASK = (1n << 64n) - 1n;
  function root(power, value) {
    let low = 0n;
    for (let bit = 1n << 70n; bit; bit >>= 1n) if ((low + bit) ** power <= value) low += bit;
    return low;
  }
  const H512 = primes.slice(0, 8).map((prime) => root(2n, BigInt(prime) << 128n) & MASK);
  const K512 = primes.map((prime) => root(3n, BigInt(prime) << 192n) & MASK);
  const H256 = H512.map((word) => Number(word >> 32n) | 0);
  const K256 = Int32Array.from(K512.slice(0, 64), (word) => Number(word >> 32n) | 0);
  const W = new Int32Array(64);

  class Sha256 {
    constructor() {
      this.state = Int32Array.from(H256);
      this.block = new Uint8Array(64);
      this.filled = 0;
      this.length = 0;
    }
    update(bytes) {
      this.length += bytes.length;
      let at = 0;
      if (this.filled) {
        at = Math.min(64 - this.filled, bytes.length);
        this.block.set(bytes.subarray(0, at), this.filled);
        this.filled += at;
        if (this.filled < 64) return this;
        this.compress(this.block, 0);
      }
      for (; at + 64 <= bytes.length; at += 64) this.compress(bytes, at);
      this.block.set(bytes.subarray(at));
      this.filled = bytes.length - at;
      return this;
    }
    compress(bytes, at) {
      for (let i = 0; i < 16; i++, at += 4) {
        W[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
      }
      for (let i = 16; i < 64; i++) {
        const x = W[i - 15], y = W[i - 2];
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        W[i] = (W[i - 16] + s0 + W[i - 7] + s1) | 0;
      }
      const s = this.state;
      let a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
      for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K256[i] + W[i]) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
      }
      s[0] += a; s[1] += b; s[2] += c; s[3] += d; s[4] += e; s[5] += f; s[6] += g; s[7] += h;
    }
    digest() {
      const bits = this.length * 8;
      const end = new Uint8Array((this.filled < 56 ? 64 : 128) - this.filled);
      end[0] = 0x80;
      const view = new DataView(end.buffer);
      view.setUint32(end.length - 8, Math.floor(bits / 2 ** 32));
      view.setUint32(end.length - 4, bits % 2 ** 32);
      this.update(end);
      const out = new DataView(new ArrayBuffer(32));
      this.state.forEach((word, i) => out.setInt32(4 * i, word));
      return new Uint8Array(out.buffer);
    }
  }
  const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), new Sha256()).digest();

  function sha512(message) {
    const padded = new Uint8Array(Math.ceil((message.length + 17) / 128) * 128);
    padded.set(message);
    padded[message.length] = 0x80;
    const view = new DataView(padded.buffer);
    view.setBigUint64(padded.length - 8, BigInt(message.length) * 8n);
    const turn = (x, n) => ((x >> n) | (x << (64n - n))) & MASK;
    const state = [...H512];
    for (let at = 0; at < padded.length; at += 128) {
      const w = [];
      for (let i = 0; i < 80; i++) {
        if (i < 16) { w.push(view.getBigUint64(at + 8 * i)); continue; }
        const x = w[i - 15], y = w[i - 2];
        w.push((w[i - 16] + (turn(x, 1n) ^ turn(x, 8n) ^ (x >> 7n)) + w[i - 7] + (turn(y, 19n) ^ turn(y, 61n) ^ (y >> 6n))) & MASK);
      }
      let [a, b, c, d, e, f, g, h] = state;
      for (let i = 0; i < 80; i++) {
        const t1 = h + (turn(e, 14n) ^ turn(e, 18n) ^ turn(e, 41n)) + ((e & f) ^ (~e & MASK & g)) + K512[i] + w[i];
        const t2 = (turn(a, 28n) ^ turn(a, 34n) ^ turn(a, 39n)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g; g = f; f = e; e = (d + t1) & MASK; d = c; c = b; b = a; a = (t1 + t2) & MASK;
      }
      [a, b, c, d, e, f, g, h].forEach((word, i) => { state[i] = (state[i] + word) & MASK; });
    }
    const out = new DataView(new ArrayBuffer(64));
    state.forEach((word, i) => out.setBigUint64(8 * i, word));
    return new Uint8Array(out.buffer);
  }

  // Ed25519 (RFC 8032, section 5.1.7), without the cofactor. Points and S that are not in their one spelling are refused.

  const P = 2n ** 255n - 19n, L = 2n ** 252n + 27742317777372353535851937790883648493n;
  const mod = (x) => ((x % P) + P) % P;
  function power(base, exponent) {
    let result = 1n;
    for (; exponent; exponent >>= 1n, base = (base * base) % P) if (exponent & 1n) result = (result * base) % P;
    return result;
  }
  const invert = (x) => power(x, P - 2n);
  const D = mod(-121665n * invert(121666n)), I = power(2n, (P - 1n) / 4n);
  const little = (bytes) => bytes.reduceRight((number, byte) => (number << 8n) | BigInt(byte), 0n);
  const NEUTRAL = [0n, 1n, 1n, 0n];
  function decodePoint(bytes) {
    const encoded = little(bytes), y = encoded & ((1n << 255n) - 1n), sign = encoded >> 255n;
    if (y >= P) return null;
    const u = mod(y * y - 1n), v = mod(D * y * y + 1n);
    let x = (u * power(v, 3n) * power(u * power(v, 7n) % P, (P - 5n) / 8n)) % P;
    if (mod(v * x * x) !== u) x = (x * I) % P;
    if (mod(v * x * x) !== u || (x === 0n && sign)) return null;
    if ((x & 1n) !== sign) x = P - x;
    return [x, y, 1n, (x * y) % P];
  }
  function add([x1, y1, z1, t1], [x2, y2, z2, t2]) {
    const a = mod((y1 - x1) * (y2 - x2)), b = ((y1 + x1) * (y2 + x2)) % P, c = (2n * t1 * t2 % P) * D % P, d = (2n * z1 * z2) % P;
    const e = b - a, f = d - c, g = d + c, h = b + a;
    return [mod(e * f), mod(g * h), mod(f * g), mod(e * h)];
  }
  const BASE = decodePoint(Uint8Array.of(0x58, ...Array(31).fill(0x66)));
  function ed25519(publicKey, message, signature) {
    if (publicKey.length !== 32 || signature.length !== 64) return false;
    const a = decodePoint(publicKey), s = little(signature.subarray(32));
    if (!a || s >= L) return false;
    const k = little(sha512(join(signature.subarray(0, 32), publicKey, message))) % L;
    const minusA = [mod(-a[0]), a[1], 1n, mod(-a[3])], both = add(BASE, minusA);
    let r = NEUTRAL; // [s]B - [k]A, which has to be R
    for (let bit = 252n; bit >= 0n; bit--) {
      r = add(r, r);
      const which = ((s >> bit) & 1n) + 2n * ((k >> bit) & 1n);
      if (which) r = add(r, which === 1n ? BASE : which === 2n ? minusA : both);
    }
    const z = invert(r[2]), x = (r[0] * z) % P, y = (r[1] * z) % P;
    return little(signature.subarray(0, 32)) === (y | ((x & 1n) << 255n));
  }

  // JSON: null, true, false, strings, Num, arrays, and Map for objects.

  class Num {
    constructor(token) { this.token = token; }
    toString() { return this.token; }
  }
  const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
  function parseJSON(source) {
    let at = 0;
    const fail = (what) => refuse(`not JSON: ${what} at character ${at}`);
    function next() {
      while (" \t\n\r".includes(source[at] || "x")) at++;
      return source[at];
    }
    function expect(c) {
      if (next() !== c) fail(`${c} is expected`);
      at++;
    }
    function string() {
      expect('"');
      let text = "", start = at;
      for (;;) {
        const c = source.charCodeAt(at);
        if (c === 0x22) break;
        if (!(c >= 0x20)) fail("a string is not ended, or has a raw control character");
        if (c !== 0x5c) { at++; continue; }
        text += source.slice(start, at);
        const escape = source[at + 1] || " ", plain = '"\\/bfnrt'.indexOf(escape), unit = source.slice(at + 2, at + 6);
        if (plain >= 0) {
          text += '"\\/\b\f\n\r\t'[plain];
          at += 2;
        } else if (escape === "u" && /^[0-9a-fA-F]{4}$/.test(unit)) {
          text += String.fromCharCode(parseInt(unit, 16));
          at += 6;
        } else fail("an unknown escape");
        start = at;
      }
      text += source.slice(start, at++);
      if (/\p{Surrogate}/u.test(text)) fail("a lone surrogate");
      return text;
    }
    function value(depth) {
      if (depth > 1000) fail("too deep");
      const c = next();
      if (c === '"') return string();
      if (c === "{") {
        const object = new Map();
        at++;
        if (next() !== "}") {
          for (;;) {
            next();
            const name = string();
            if (object.has(name)) fail(`the member ${JSON.stringify(name)} stands twice`);
            expect(":");
            object.set(name, value(depth + 1));
            if (next() !== ",") break;
            at++;
          }
        }
        expect("}");
        return object;
      }
      if (c === "[") {
        const array = [];
        at++;
        if (next() !== "]") {
          for (;;) {
            array.push(value(depth + 1));
            if (next() !== ",") break;
            at++;
          }
        }
        expect("]");
        return array;
      }
      for (const [word, meaning] of [["null", null], ["true", true], ["false", false]]) {
        if (source.startsWith(word, at)) { at += word.length; return meaning; }
      }
      NUMBER.lastIndex = at;
      const token = NUMBER.exec(source)?.[0] ?? fail("a value is expected");
      at += token.length;
      return new Num(token);
    }
    const result = value(0);
    if (next() !== undefined) fail("text after the value");
    return result;
  }
  function parseObject(source) {
    const value = parseJSON(source);
    return value instanceof Map ? value : refuse("not a JSON object");
  }

  // Canonical JSON (section 4.3). What JSON.stringify does with a string is what RFC 8785 asks for.

  function decimal(token) { // 0.<digits> · 10^point
    const [, integer, fraction = "", exponent = "0"] = /^-?([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?$/.exec(token);
    const all = integer + fraction, digits = all.replace(/^0+/, "");
    const point = integer.length - (all.length - digits.length) + Number(exponent);
    return { digits: digits.replace(/0+$/, ""), point };
  }
  function canonicalNumber(token) {
    const { digits, point } = decimal(token);
    if (!digits) return "0";
    const double = Number(token);
    if (Number.isFinite(double) && double) {
      const shortest = decimal(String(double));
      if (shortest.digits === digits && shortest.point === point) return String(double);
    }
    if (Math.abs(point) > 200000) refuse(`the number ${token.slice(0, 40)} is beyond what can be stored`);
    const sign = token[0] === "-" ? "-" : "";
    if (point <= 0) return `${sign}0.${"0".repeat(-point)}${digits}`;
    if (point >= digits.length) return sign + digits + "0".repeat(point - digits.length);
    return `${sign}${digits.slice(0, point)}.${digits.slice(point)}`;
  }
  function jcs(value) {
    if (value instanceof Num) return canonicalNumber(value.token);
    if (Array.isArray(value)) return `[${value.map(jcs).join(",")}]`;
    if (value instanceof Map) {
      return `{${[...value.keys()].sort().map((name) => `${JSON.stringify(name)}:${jcs(value.get(name))}`).join(",")}}`;
    }
    return JSON.stringify(value ?? null);
  }
  const same = (a, b) => jcs(a) === jcs(b);
  function integer(value, what) {
    const token = value instanceof Num ? value.token : value;
    if (typeof token !== "string" || !/^(0|[1-9][0-9]*)$/.test(token) || Number(token) > Number.MAX_SAFE_INTEGER) {
      refuse(`${what} is no position or number of things`);
    }
    return Number(token);
  }

  // Keys, notes, checkpoints (section 5.7).

  function parseKeys(source) {
    return source.split(/\s+/).filter(Boolean).map((vkey) => {
      const [, name, id, encoded] = /^([^\s+]+)\+([0-9a-f]{8})\+(\S+)$/.exec(vkey) ?? refuse("a key has the form name+id+base64");
      const bytes = unbase64(encoded);
      if (hex(sha256(encode(`${name}\n`), bytes).subarray(0, 4)) !== id) refuse(`${name}+${id}: the id is not that of the key`);
      if ([1, 4].includes(bytes[0]) && bytes.length !== 33) refuse(`${name}+${id}: an Ed25519 key has 32 bytes`);
      return { name, id, label: `${name}+${id}`, algorithm: bytes[0], bytes: bytes.subarray(1) };
    });
  }
  const isLogKey = (key, name) => key.algorithm === 1 && key.name === name;
  function openCheckpoint(note, keys) {
    const end = typeof note === "string" ? note.lastIndexOf("\n\n") : -1;
    if (end < 0 || !note.endsWith("\n") || end + 2 >= note.length) refuse("the checkpoint is no signed note");
    const text = note.slice(0, end + 1), [origin, size, rootHash] = text.split("\n");
    const checkpoint = { origin, size: integer(size, "the checkpoint's size"), root: unbase64(rootHash ?? ""), signers: [], witnesses: [] };
    if (!origin || checkpoint.root.length !== 32) refuse("the checkpoint has no origin, or no root");
    const right = new Map(); // whether a key that has lines has signed in one of them
    for (const line of note.slice(end + 2, -1).split("\n")) {
      const [, name, encoded] = /^\u2014 ([^\s+]+) (\S+)$/.exec(line) ?? refuse("a signature line of the checkpoint is malformed");
      const raw = unbase64(encoded), id = hex(raw.subarray(0, 4)), signature = raw.subarray(4);
      for (const key of keys.filter((one) => one.name === name && one.id === id)) {
        if (![1, 4].includes(key.algorithm)) continue; // ML-DSA is not checked here
        const time = key.algorithm === 4 && signature.length === 72 ? new DataView(raw.buffer).getBigUint64(4) : null;
        const signed = encode(time === null ? text : `cosignature/v1\ntime ${time}\n${text}`);
        const isRight = ed25519(key.bytes, signed, time === null ? signature : signature.subarray(8));
        right.set(key.label, right.get(key.label) || isRight);
        if (!isRight) continue;
        if (isLogKey(key, origin)) checkpoint.signers.push(key.label);
        else checkpoint.witnesses.push(time === null ? key.label : `${key.label} at ${new Date(Number(time) * 1000).toISOString()}`);
      }
    }
    for (const [label, isRight] of right) if (!isRight) refuse(`the signature of ${label} on the checkpoint is wrong`);
    if (!checkpoint.signers.length) refuse(`no given key of ${origin} has signed the checkpoint`);
    return checkpoint;
  }

  // The tree (section 5.5; RFC 9162, section 2.1.3.2).

  const leafHash = (record) => sha256(Uint8Array.of(0), record);
  const nodeHash = (left, right) => sha256(Uint8Array.of(1), left, right);
  /** The nodes from a leaf to the root, which is the last; null if the proof has not the form that position and size ask for. */
  function climb(leaf, index, size, proof) {
    if (index >= size) return null;
    let fn = index, sn = size - 1;
    const half = (n) => Math.floor(n / 2), nodes = [leaf];
    for (const hash of proof) {
      if (sn === 0) return null;
      const r = nodes.at(-1);
      if (fn % 2 === 1 || fn === sn) {
        nodes.push(nodeHash(hash, r));
        while (fn % 2 === 0 && fn !== 0) { fn = half(fn); sn = half(sn); }
      } else nodes.push(nodeHash(r, hash));
      fn = half(fn); sn = half(sn);
    }
    return sn === 0 ? nodes : null;
  }
  function leadsTo(rootHash, leaf, index, size, proof) {
    const nodes = climb(leaf, index, size, proof);
    return nodes !== null && equal(nodes.at(-1), rootHash);
  }
  function treeRoot(leaves) {
    if (leaves.length < 2) return leaves[0] ?? sha256();
    const split = 2 ** Math.floor(Math.log2(leaves.length - 1));
    return nodeHash(treeRoot(leaves.slice(0, split)), treeRoot(leaves.slice(split)));
  }

  // Records (sections 4.1 and 4.2).

  const COPIED = ("log log_index chain_index event_id parent_event_id parent_event_date event_type event_category event_action " +
    "event_outcome event_version actor_type resource_type correlation_id namespace cluster_id severity error_code trace_id span_id " +
    "duration_ms is_sensitive").split(" ");
  const COMMITTED = "actor_id actor_ip error_message event_data event_metadata resource_id resource_name".split(" ");
  const HASHED = new Set([...COPIED, "event_timestamp", "recorded_at", "previous_event_hash"]);
  const commitment = (salt, committed) => hex(sha256(unhex(salt, 16), encode(committed)));
  function eventHash(row) {
    const record = new Map([["v", new Num("1")]]);
    for (const name of COPIED) record.set(name, row.get(name) ?? null);
    for (const name of ["event_timestamp", "recorded_at"]) {
      const [, seconds, fraction] = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{6})?Z$/.exec(row.get(name)) ?? refuse(`${name} is no time in UTC`);
      record.set(name, `${seconds}${fraction ?? ".000000"}Z`);
    }
    record.set("previous_event_hash", row.get("previous_event_hash") || null);
    record.set("commitment", row.get("payload_commitment") ??
      commitment(row.get("payload_salt"), jcs(new Map(COMMITTED.map((name) => [name, row.get(name) ?? null])))));
    return hex(leafHash(encode(jcs(record))));
  }

  // What is said of a file. `proved`, `open` and `defects` are sentences; `rows` are events to show.

  class Report {
    constructor(kind) {
      Object.assign(this, { kind, headline: "", proved: [], open: [], defects: [], rows: [], more: 0, details: null });
    }
    defect(text) { this.defects.push(text); }
    get verdict() { return this.defects.length ? "refused" : this.caveat ? "partly" : "holds"; }
  }
  const counted = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const TRUTH = "That what an event says is true: the log proves what was reported, and in which order, not that it happened.";
  const CLOCKS = "The times: event_timestamp is the clock of the sender, recorded_at that of the service.";
  const ROWS_SHOWN = 500;

  // A proof (section 8.1).

  function readProof(source) {
    const [head, note] = [source.slice(0, source.indexOf("\n\n")), source.slice(source.indexOf("\n\n") + 2)];
    const [header, extra = "", index = "", ...hashes] = head.split("\n");
    if (!source.includes("\n\n") || header !== PROOF || !extra.startsWith("extra ") || !index.startsWith("index ")) {
      refuse("this is not the form of a proof: extra, index, hashes, an empty line and a checkpoint are expected");
    }
    const record = unbase64(extra.slice(6)), position = integer(index.slice(6), "index");
    const proof = hashes.map((line) => {
      const hash = unbase64(line);
      return hash.length === 32 ? hash : refuse("a line of the proof is no hash in base64");
    });
    return { record, position, proof, note };
  }
  function openProof(source, keys, seam = null) {
    const { record, position, proof, note } = readProof(source);
    const checkpoint = seam ?? openCheckpoint(note, keys);
    if (seam && note !== `${seam.origin}\n${seam.size}\n${btoa(String.fromCharCode(...seam.root))}\n`) {
      refuse("the checkpoint is not that of the event that continues the log");
    }
    if (!leadsTo(checkpoint.root, leafHash(record), position, checkpoint.size, proof)) {
      refuse(`the proof does not lead from this event at position ${position} to what was signed: event, position or proof was changed`);
    }
    const event = parseObject(decode(record));
    if (event.get("log") !== checkpoint.origin || !same(event.get("log_index"), new Num(String(position)))) {
      refuse("the record is not of this log and position");
    }
    return { event, position, checkpoint };
  }
  /** The event of an opened proof, and its content if that is there. */
  function openOpened(opened, keys) {
    const seam = opened.has("seam") ? throughSeam(opened.get("seam"), keys) : null;
    const proved = openProof(textOf(opened.get("proof") ?? null, "the member proof"), keys, seam);
    const salt = opened.get("salt") ?? null, committed = opened.get("committed") ?? null;
    if ((salt === null) !== (committed === null)) refuse("salt and committed must be both there, or both null");
    if (committed !== null && commitment(salt, jcs(committed)) !== proved.event.get("commitment")) {
      refuse("the content was changed: it is not what the record's commitment was made of");
    }
    return { ...proved, committed };
  }
  /** The tree of a closed log as the first event of the next log tells it (section 5.8). */
  function throughSeam(opened, keys) {
    const { event, checkpoint, committed } = openOpened(opened instanceof Map ? opened : refuse("the seam is no opened proof"), keys);
    const payload = committed?.get("event_data"), type = "datastorage.log.continued";
    if (!(payload instanceof Map) || event.get("event_type") !== type || payload.get("event_type") !== type || event.get("event_category") !== "security" ||
        event.get("log_index")?.token !== "0" || event.get("correlation_id") !== `datastorage:log:${payload.get("continuation_id")}`) {
      refuse("the seam is not the event that continues a log");
    }
    const number = numberOf(payload.get("log_id"), "log_id"), closed = textOf(payload.get("closed_log"), "closed_log"), suffix = `/${number}`;
    const first = number && closed.endsWith(suffix) ? closed.slice(0, -suffix.length) : closed;
    if (event.get("log") !== `${first}/${number + 1}`) refuse("the seam is not of the log after the closed one");
    return { origin: closed, size: numberOf(payload.get("tree_size"), "tree_size"), root: unhex(payload.get("root_hash"), 32), witnesses: checkpoint.witnesses,
      signers: checkpoint.signers, through: event.get("log"), positions: payload.get("size") };
  }
  const PROOF = "c2sp.org/tlog-proof@v1";
  function verifyProof(source, keys) {
    const report = new Report("Proof of one event");
    const opened = source.startsWith("{") ? parseObject(source) : null;
    const { event, position, checkpoint, committed = null } = opened ? openOpened(opened, keys) : openProof(source, keys);
    report.headline = `Event ${event.get("event_id")} stands at position ${position} of the log ${checkpoint.origin}.`;
    report.proved.push(checkpoint.through ?
      `This log was closed after a loss. ${checkpoint.through} continues it; its first event has the ${counted(checkpoint.size, "event")} of this log as they stood then, and ${checkpoint.signers.join(" and ")} signed that.` :
      `${checkpoint.signers.join(" and ")} signed a checkpoint of this log with ${counted(checkpoint.size, "event")}.`);
    if (checkpoint.witnesses.length) report.proved.push(`It was cosigned by ${checkpoint.witnesses.join(" and ")}.`);
    report.proved.push("The event's record, shown below, is part of what was signed; no member of it was changed since.");
    if (committed) {
      report.proved.push("So is its content: who did it, to what, and the payload.");
    } else {
      report.open.push(`Who did it, to what, and the payload: they are not in this file${opened ? ": they were erased, or not asked for" : "; a proof with open=true has them"}.`);
    }
    if (opened?.has("timestamp")) report.open.push("The timestamp in the file: it needs the certificates of its authority (openssl ts -verify).");
    report.open.push(TRUTH, CLOCKS, "That there are no other events about the same matter: a proof is about one.");
    report.details = new Map([...event, ...(committed ?? [])]);
    report.checkpoint = checkpoint;
    return report;
  }

  // An export (section 9.3).

  const COLUMNS = ("event_id event_version event_timestamp event_date recorded_at event_type event_category event_action event_outcome " +
    "correlation_id actor_type actor_id actor_ip resource_type resource_id resource_name parent_event_id parent_event_date namespace " +
    "cluster_id severity duration_ms error_code error_message is_sensitive trace_id span_id retention_days legal_hold legal_hold_reason " +
    "legal_hold_placed_by legal_hold_placed_at hash_algorithm log log_index chain_index previous_event_hash event_hash payload_salt " +
    "payload_commitment event_metadata event_data redacted sealed").split(" ");
  const JSON_COLUMNS = new Set(("event_data event_metadata duration_ms retention_days log_index chain_index is_sensitive legal_hold " +
    "redacted sealed").split(" "));
  const isHeader = (names) => [COLUMNS.length, COLUMNS.length - 1].includes(names.length) && names.every((name, i) => name === COLUMNS[i]);
  const STATEMENT = "application/vnd.in-toto+json";
  const OF_EXPORT = "https://kubernaut.ai/datastorage/audit-export/v1";
  const SHARED = ["export_id", "format", "redacted", "filter", "log", "log_size"];
  /** An event in the order of exports; log is only a member of it in files of several logs. */
  const place = (position, id = null, date = null, log = undefined) =>
    new Map([["position", position], ["event_id", id], ["event_date", date], ...(log === undefined ? [] : [["log", log]])]);

  class Export {
    constructor(keys) {
      Object.assign(this, { keys, report: new Report("Export"), format: null, header: null, before: null, digest: null, parts: 0 });
      Object.assign(this, { logs: new Map(), last: null, unsealedKey: "", chains: new Map(), notes: [], signers: new Set() });
      this.total = { events: 0, sealed: 0, unsealed: 0, erased: 0 };
      this.redacted = false;
      this.startPart();
    }
    startPart() {
      this.part = { hash: new Sha256(), events: 0, sealed: 0, unsealed: 0, erased: 0, logs: new Set(), redacted: false };
    }
    get isComplete() { return this.before !== null && this.before.get("next") === null && !this.part.events; }
    defect(text) { this.report.defect(`${this.where}: ${text}`); }
    record(bytes) {
      try {
        this.read(bytes);
      } catch (error) {
        this.defect(reason(error));
      }
    }
    read(bytes) {
      let row = null, fields = null;
      if (this.format === "csv") {
        fields = csvFields(decode(bytes));
        if (fields[0] === "#manifest") {
          if (fields.length !== this.header?.length || fields.slice(2).some(Boolean)) refuse("a manifest has two fields, the others are empty");
          return this.manifest(fields[1]);
        }
        if (!this.header) {
          this.header = fields;
          this.part.hash.update(bytes);
          return isHeader(fields) || refuse("the header is not that of an export");
        }
      } else if (decode(bytes.subarray(0, 15)) === '{"payloadType":') return this.manifest(decode(bytes));
      this.part.hash.update(bytes);
      this.part.events++;
      if (this.before && this.before.get("next") === null) refuse("something follows the last part");
      if (fields) {
        if (fields.length !== this.header.length) refuse("the number of fields is not that of the header");
        row = new Map(fields.map((field, i) => [this.header[i], this.cell(this.header[i], field)]));
      } else {
        row = parseObject(decode(bytes));
        if (!isHeader([...row.keys()])) refuse("the members are not those of an export, in their order");
      }
      const before = this.report.defects.length;
      if (row.get("log_index") === null) this.unsealed(row); else this.sealed(row);
      if (this.report.rows.length < ROWS_SHOWN) this.report.rows.push(shown(row, this.report.defects.length === before));
      else this.report.more++;
    }
    cell(name, field) {
      if (field === "") return null;
      const text = field[0] === "'" ? field.slice(1) : field;
      return JSON_COLUMNS.has(name) ? parseJSON(text) : text;
    }
    sealed(row) {
      const part = this.part, position = integer(row.get("log_index"), "log_index");
      part.sealed++;
      this.last = place(row.get("log_index"), null, null, row.get("log"));
      if (!this.logs.has(row.get("log"))) this.logs.set(row.get("log"), { position: -1, leaves: [], first: null, last: null });
      const log = this.logs.get(row.get("log"));
      log.first ??= row.get("log_index");
      log.last = row.get("log_index");
      if (position <= log.position || this.unsealedKey || log !== [...this.logs.values()].at(-1)) this.defect(`position ${position} is not in the order of the log`);
      log.position = position;
      const stored = row.get("event_hash"), leaf = unhex(stored, 32);
      if (position === log.leaves.length) log.leaves.push(leaf);
      if (row.get("payload_commitment") !== null) part.erased++;
      if (row.get("sealed") === false) this.defect(`the log did not have the event at position ${position}: it was inserted or changed`);
      const redacted = row.get("redacted") ?? [];
      if (!Array.isArray(redacted)) refuse("redacted is neither null nor a list");
      if (redacted.length) part.redacted = true;
      if (!redacted.some((name) => HASHED.has(name)) && eventHash(row) !== stored) {
        this.defect(`the event at position ${position} does not have its hash: it was changed`);
      }
      if (!redacted.includes("event_timestamp") && !row.get("event_timestamp")?.startsWith(`${row.get("event_date")}T`)) {
        this.defect("event_date is not the date of event_timestamp");
      }
      this.link(row, stored, redacted.includes("correlation_id"));
    }
    link(row, stored, isMasked) {
      const index = integer(row.get("chain_index"), "chain_index"), previous = row.get("previous_event_hash") || null;
      if ((index === 0) !== (previous === null)) this.defect("only the first event of a chain has no link");
      if (isMasked) return; // different correlations may look alike
      const before = this.chains.get(row.get("correlation_id"));
      if (before && index <= before.index) this.defect(`chain position ${index} of ${row.get("correlation_id")} does not follow ${before.index}`);
      if (before && index === before.index + 1 && previous !== before.hash) {
        this.defect(`the link of ${row.get("correlation_id")} at ${index} is not the hash of the event before`);
      }
      this.chains.set(row.get("correlation_id"), { index, hash: stored });
    }
    unsealed(row) {
      this.part.unsealed++;
      this.part.logs.add(row.get("log"));
      this.last = place(null, row.get("event_id"), row.get("event_date"), null);
      const key = `${row.get("event_id")} ${row.get("event_date")}`;
      if (key <= this.unsealedKey) this.defect(`the unsealed event ${row.get("event_id")} is not in order`);
      this.unsealedKey = key;
      if (row.get("chain_index") !== null || row.get("sealed") === true) refuse("an unsealed event has no chain position and is not marked as sealed");
    }
    manifest(source) {
      const part = this.part, digest = hex(part.hash.digest());
      this.startPart();
      const { statement, predicate, signer } = openEnvelope(source, this.keys, OF_EXPORT);
      this.signers.add(signer);
      const subject = statement.get("subject"), name = `export-${predicate.get("export_id")}-part-${predicate.get("part")}.${this.format}`;
      if (!same(subject, [new Map([["name", name], ["digest", new Map([["sha256", digest]])]])])) {
        this.defect("the records are not those whose digest the manifest has: something in this part was changed, removed or added");
      }
      const isRedacted = predicate.get("redacted") === true;
      const number = (n) => new Num(String(n));
      const claims = { format: this.format, events: number(part.events), sealed: number(part.sealed), unsealed: number(part.unsealed) };
      const logs = logsOf(predicate), last = this.last && new Map(this.last);
      if (logs.length === 1) last?.delete("log"); // the members of a file of one log
      claims.through = last;
      if (!isRedacted) claims.erased = number(part.erased);
      for (const [member, value] of Object.entries(claims)) {
        if (!predicate.has(member) || !same(predicate.get(member), value)) this.defect(`the manifest's ${member} is not that of the part`);
      }
      if (!isRedacted && part.redacted) this.defect("the manifest's redacted is not that of the part");
      for (const log of part.logs) if (log !== predicate.get("log")) this.defect(`an event is of another log, ${log}`);
      this.ofLogs(logs);
      this.parts++;
      this.redacted ||= isRedacted;
      for (const which of Object.keys(this.total)) if (which !== "erased" || !isRedacted) this.total[which] += part[which];
      this.follows(predicate);
      this.before = predicate;
      this.digest = digest;
      logs.forEach((log, i) => {
        const name = log.get("log"), following = logs[i + 1];
        if (log.get("checkpoint") !== null && (!following || this.keys.some((key) => isLogKey(key, name)))) this.signed(name, openCheckpoint(log.get("checkpoint"), this.keys));
        if (following && log.get("seam") !== null) {
          const tree = throughSeam(log.get("seam"), this.keys);
          if (tree.through !== following.get("log") || !same(tree.positions, log.get("log_size"))) refuse("the seam is not of the next log, or says another size of the closed one");
          this.signed(name, tree);
        }
      });
    }
    /** Compare what was read of each log with what the manifest says of it. */
    ofLogs(logs) {
      const read = [...this.logs];
      for (const log of logs) {
        const one = read[0]?.[0] === log.get("log") ? read.shift()[1] : { position: -1, first: null, last: null };
        for (const [member, value] of [["first_position", one.first], ["last_position", one.last]]) {
          if (!log.has(member) || !same(log.get(member), value)) this.defect(`the manifest's ${member} is not that of the part`);
        }
        if (one.position >= integer(log.get("log_size"), "log_size")) this.defect("the manifest's log_size is below a position of the part");
        one.first = one.last = null;
      }
      if (read.length) this.defect(`an event is of another log, ${read[0][0]}, or not in the order of the logs`);
    }
    signed(name, checkpoint) {
      if (checkpoint.origin !== name) refuse(`the checkpoint is of another log, ${checkpoint.origin}`);
      this.notes.push(checkpoint);
    }
    follows(predicate) {
      const before = this.before, part = integer(predicate.get("part"), "part");
      if (!before && part !== 1) this.defect(`this is part ${part}: what comes before it is missing`);
      if (before && part !== integer(before.get("part"), "part") + 1) this.defect(`part ${part} does not follow part ${before.get("part")}`);
      if (before?.get("next") === null) this.defect("a part follows the last one");
      if (!same(predicate.get("previous"), this.digest) || !same(predicate.get("after"), before ? before.get("through") : null)) {
        this.defect("the part does not begin where the one before ends");
      }
      for (const member of before ? SHARED : []) {
        if (!same(predicate.get(member), before.get(member))) this.defect(`the parts differ in ${member}`);
      }
      const sizes = (one) => logsOf(one).map((log) => [log.get("log"), log.get("log_size")]);
      if (before && !same(sizes(predicate), sizes(before))) this.defect("the parts differ in earlier_logs");
    }
    end() {
      const { report, before, total } = this;
      this.where = "At the end";
      if (!this.isComplete) this.defect("the file is incomplete: it does not end with the manifest of the last part");
      const covered = new Map();
      for (const checkpoint of this.notes) {
        const name = checkpoint.origin, leaves = this.logs.get(name)?.leaves ?? [];
        if (checkpoint.size > leaves.length || checkpoint.size === (covered.get(name) ?? 0)) continue;
        if (equal(treeRoot(leaves.slice(0, checkpoint.size)), checkpoint.root)) covered.set(name, Math.max(covered.get(name) ?? 0, checkpoint.size));
        else this.defect(`the events below position ${checkpoint.size} are not those of the checkpoint that was signed`);
      }
      if (!before) return report;
      const log = before.get("log"), names = logsOf(before).map((one) => one.get("log")), by = before.get("exported_by");
      report.headline = `Export ${before.get("export_id")} of the ${names.length > 1 ? "logs" : "log"} ${names.join(" and ")}, made ${before.get("exported_at")}${by ? ` by ${by}` : ""}: ${counted(total.events, "event")}.`;
      report.proved.push(`${[...this.signers].join(" and ")} signed ${this.parts === 1 ? "the file" : `each of its ${this.parts} parts`}; not a byte was changed since.`);
      if (total.sealed) {
        report.proved.push(`${counted(total.sealed, "event was", "events were")} logged as shown${total.erased || this.redacted ? ", but for what is erased or masked" : ""}; each is linked to the one before it, where the file has both.`);
      }
      for (const [name, size] of covered) {
        report.proved.push(`Nothing was left out among the first ${counted(size, "event")} of the log${names.length > 1 ? ` ${name}` : ""}: together they have the root ${name === log ? "of the checkpoint that the key signed" : "that was signed for it, or that the first event of the next log names"}.`);
      }
      if (names.some((name) => !covered.has(name))) report.open.push(`That nothing was left out: the filter was ${jcs(before.get("filter"))}, and only a file of the whole log can prove it. It is the exporter's word.`);
      const leftOut = before.get("left_out");
      if (leftOut instanceof Map) report.open.push(`What only the archive had of ${listOf(leftOut.get("months"), "months").join(", ")} was left out: ${counted(integer(leftOut.get("events"), "events"), "event")}, of which nobody looked which match the filter.`);
      if (total.unsealed) {
        report.caveat = true;
        report.open.push(`${counted(total.unsealed, "event was", "events were")} put into the database by somebody else (unsealed): shown here, but not in the log.`);
      }
      if (total.erased) report.open.push(`${counted(total.erased, "event was", "events were")} erased: the record holds, who did it and the payload are gone.`);
      if (this.redacted) report.open.push("Personal data is masked; what was masked holds by its commitment, but cannot be read. Where a member of the record itself was masked, its hash is the exporter's word.");
      report.open.push("Not hashed, so the exporter's word: retention_days, the legal_hold columns, hash_algorithm.", TRUTH, CLOCKS);
      return report;
    }
  }
  /** The entries of the closed logs, and the predicate for its own log: each has log, log_size, positions and checkpoint. */
  function logsOf(predicate) {
    if (!predicate.has("earlier_logs")) return [predicate];
    const earlier = listOf(predicate.get("earlier_logs"), "earlier_logs");
    if (!earlier.length || !earlier.every((one) => one instanceof Map)) refuse("earlier_logs is no list of logs");
    return [...earlier, predicate];
  }
  const shown = (row, ok) => ({
    ok: ok && row.get("log_index") !== null, bad: !ok, position: row.get("log_index")?.token ?? "unsealed", time: row.get("event_timestamp"),
    type: row.get("event_type"), correlation: row.get("correlation_id"), actor: row.get("actor_id"), outcome: row.get("event_outcome"),
  });

  function csvFields(line) {
    const fields = [], field = /(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\r\n)/y;
    for (;;) {
      const at = field.lastIndex, found = field.exec(line) ?? refuse(`not CSV at character ${at} of the record`);
      fields.push(found[2] ?? found[1].replaceAll('""', '"'));
      if (found[3] !== ",") return field.lastIndex === line.length ? fields : refuse("not CSV: a line's end where none may be");
    }
  }

  /** The statement of a DSSE envelope (section 9.2), and the key that signed it; isNamed: only under its own keyid. */
  function openEnvelope(source, keys, predicateType, isNamed = false) {
    const envelope = parseObject(source), payload = unbase64(envelope.get("payload") ?? "");
    if ([...envelope.keys()].sort().join() !== "payload,payloadType,signatures" || envelope.get("payloadType") !== STATEMENT) {
      refuse("the manifest is no DSSE envelope, or has members that nobody signs");
    }
    const statement = parseObject(decode(payload)), predicate = statement.get("predicate");
    if (!(predicate instanceof Map) || statement.get("_type") !== "https://in-toto.io/Statement/v1" || statement.get("predicateType") !== predicateType) {
      refuse("the manifest is of something else");
    }
    const log = predicate.get("log"), signed = join(encode(`DSSEv1 ${STATEMENT.length} ${STATEMENT} ${payload.length} `), payload);
    let signer = null;
    for (const one of listOf(envelope.get("signatures"), "signatures")) {
      if (!(one instanceof Map) || [...one.keys()].sort().join() !== "keyid,sig") refuse("a signature of the manifest is malformed");
      const signature = unbase64(one.get("sig"));
      for (const key of keys.filter((candidate) => isLogKey(candidate, log))) {
        const isOwn = one.get("keyid") === key.label, isRight = ed25519(key.bytes, signed, signature);
        if (isRight && (isOwn || !isNamed)) signer ??= key.label;
        if (!isRight && isOwn) refuse(`the signature of ${key.label} on the manifest is wrong`);
      }
    }
    return { statement, predicate, signer: signer ?? refuse(`no given key of ${log} has signed the manifest`) };
  }

  // A bundle (section 9.6). What is not of the form of section 9.5 refuses the whole file.

  const OF_BUNDLE = "https://kubernaut.ai/datastorage/bundle/v1";
  const BUNDLE = `{"format":"${OF_BUNDLE}",`;
  const RECORD = [...HASHED, "v", "commitment"];
  const NEVER_MASKED = new Set("v log log_index chain_index previous_event_hash commitment".split(" "));
  const UNHASHED = "retention_days legal_hold legal_hold_reason legal_hold_placed_by legal_hold_placed_at hash_algorithm";
  const NOTIFIED = "remediation_id notification_id recipient channel message_summary status sent_at delivery_status error_message " +
    "escalation_level created_at";
  const LOST = Symbol("lost"); // the operation of what is missing since a log was continued: nothing restores it
  const OWN_ID = { // the member of a payload with which the correlation of such a self event ends (section 2)
    "datastorage.retention.purged": "operation_id", "datastorage.retention.restored": "operation_id",
    "datastorage.event.erased": "erasure_id", "datastorage.notification.stored": "storing_id",
    "datastorage.log.continued": "continuation_id",
  };
  function exactly(value, what, names) {
    const all = typeof names === "string" ? names.split(" ") : names;
    if (!(value instanceof Map) || value.size !== all.length || !all.every((name) => value.has(name))) {
      refuse(`${what} has other members than the form of bundles`);
    }
    return Object.fromEntries(value);
  }
  const textOf = (value, what) => (typeof value === "string" ? value : refuse(`${what} is no text`));
  const listOf = (value, what) => (Array.isArray(value) ? value : refuse(`${what} is no list`));
  const numberOf = (value, what) => (value instanceof Num ? integer(value, what) : refuse(`${what} is no number`));
  function hashOf(value) {
    const hash = unbase64(textOf(value, "a hash"));
    return hash.length === 32 ? hash : refuse("a hash has 32 bytes");
  }
  function isConsistent(from, to, oldRoot, newRoot, hashes) { // RFC 9162, section 2.1.4.2; section 8.5
    if (from === 0 || from === to) return hashes.length === 0 && ((from === 0 && to !== 0) || equal(oldRoot, newRoot));
    if (from > to || hashes.length === 0) return false;
    const proof = Number.isInteger(Math.log2(from)) ? [oldRoot, ...hashes] : hashes, half = (n) => Math.floor(n / 2);
    let fn = from - 1, sn = to - 1;
    while (fn % 2 === 1) { fn = half(fn); sn = half(sn); }
    let fr = proof[0], sr = proof[0];
    for (const hash of proof.slice(1)) {
      if (sn === 0) return false;
      if (fn % 2 === 1 || fn === sn) {
        fr = nodeHash(hash, fr);
        sr = nodeHash(hash, sr);
        while (fn % 2 === 0 && fn !== 0) { fn = half(fn); sn = half(sn); }
      } else sr = nodeHash(sr, hash);
      fn = half(fn); sn = half(sn);
    }
    return sn === 0 && equal(fr, oldRoot) && equal(sr, newRoot);
  }
  function ranges(text) { // the text of an int8multirange
    if (!/^\{(\[\d+,\d+\)(,\[\d+,\d+\))*)?\}$/.test(text)) refuse(`${text.slice(0, 60)} are no positions`);
    return [...text.matchAll(/(\d+),(\d+)/g)].map(([, from, to]) => [integer(from, "a position"), integer(to, "a position")]);
  }
  const has = (all, position) => all.some(([from, to]) => from <= position && position < to);

  class Bundle {
    constructor(keys) {
      Object.assign(this, { keys, report: new Report("All about one remediation, with proofs (bundle)"), logs: new Map(), entries: new Map() });
    }
    defect(text) { this.report.defect(text); }
    verify(source) {
      const at = source.lastIndexOf("\n", source.length - 2) + 1, content = source.slice(0, at), line = source.slice(at);
      if (!line.startsWith('"manifest":') || !line.endsWith("}\n") || !content.endsWith(",\n")) refuse("the last line is not the manifest: something was cut off or added");
      const c = exactly(parseObject(`${content.slice(0, -2)}}`), "the content",
        "format page correlation_id redacted logs chain events gaps evidence unproved notifications");
      this.redacted = typeof c.redacted === "boolean" ? c.redacted : refuse("redacted is neither true nor false");
      this.correlation = textOf(c.correlation_id, "correlation_id");
      for (const words of listOf(c.page, "page")) {
        const differs = "DIFFERS FROM THE LOG: ";
        if (textOf(words, "a line of the page").startsWith(differs)) this.defect(`the service found when it wrote the file: ${words.slice(differs.length)}`);
      }
      const seams = listOf(c.logs, "logs").map((log, order) => this.log(log, order));
      const events = this.readEntries(c.events, false), evidence = this.readEntries(c.evidence, true);
      evidence.forEach((entry) => this.believe(entry));
      seams.forEach((check) => check());
      this.chain(c.chain, events);
      this.gaps(listOf(c.gaps, "gaps"), events);
      for (const entry of [...events, ...evidence]) {
        if (!entry.committed && !has(this.logs.get(entry.log).erased, entry.position)) {
          this.defect(`the event at position ${entry.position} is shown without its content, and nothing in the log records that it was erased`);
        }
      }
      const rows = listOf(c.unproved, "unproved"), notifications = listOf(c.notifications, "notifications");
      rows.forEach((row) => this.unproved(row));
      const covered = this.notifications(notifications, evidence);
      const counts = { events, gaps: c.gaps, evidence, unproved: rows, notifications };
      const numbers = Object.fromEntries(Object.entries(counts).map(([name, all]) => [name, all.length]));
      numbers.erased = events.filter((entry) => !entry.committed).length;
      this.manifest(line.slice(11, -2), content, numbers);
      this.conclude(c, events, evidence, numbers, covered);
      return this.report;
    }
    manifest(source, content, numbers) {
      const { statement, predicate, signer } = openEnvelope(source, this.keys, OF_BUNDLE, true);
      exactly(statement, "the statement", "_type subject predicateType predicate");
      const p = exactly(predicate, "the manifest",
        "export_id correlation_id redacted exported_at exported_by log events erased gaps evidence unproved notifications");
      for (const name of ["export_id", "exported_at", "exported_by"]) textOf(p[name], name);
      const digest = new Map([["sha256", hex(sha256(encode(content)))]]);
      if (!same(statement.get("subject"), [new Map([["name", `bundle-${p.export_id}.json`], ["digest", digest]])])) {
        this.defect("the content is not that whose digest the manifest has: something was changed, removed or added");
      }
      if (p.log !== [...this.logs.keys()].at(-1) || p.correlation_id !== this.correlation || p.redacted !== this.redacted) {
        this.defect("the manifest is of another log or correlation, or differs in redacted");
      }
      for (const [name, n] of Object.entries(numbers)) {
        if (!(p[name] instanceof Num) || p[name].token !== String(n)) this.defect(`the manifest's ${name} is not that of the content`);
      }
      Object.assign(this, { signer, exported: `${p.exported_at}${p.exported_by ? ` by ${p.exported_by}` : ""}` });
    }
    /** Step 3, and of step 11 what needs no certificate. Returns the check of the seam, which needs the evidence. */
    log(value, order) {
      const l = exactly(value, "a log", "log_id name size root checkpoint seam timestamps"), name = textOf(l.name, "the log's name");
      const log = { order, number: numberOf(l.log_id, "log_id"), size: numberOf(l.size, "size"), root: hashOf(l.root), erased: [], purged: new Map(), restored: new Map() };
      for (const [other, { number }] of this.logs) if (other === name || number === log.number) refuse("two logs have one name or number");
      this.logs.set(name, log);
      if (l.checkpoint !== null) {
        log.checkpoint = this.checkpoint(l.checkpoint, name);
        if (log.checkpoint.size !== log.size || !equal(log.checkpoint.root, log.root)) refuse("the checkpoint is not of the log's size and root");
      } else if (l.seam === null) refuse(`nothing vouches for the log ${name}`);
      log.timestamps = listOf(l.timestamps, "timestamps").length;
      for (const each of l.timestamps) {
        const t = exactly(each, "a timestamp", "checkpoint consistency token"), checkpoint = this.checkpoint(t.checkpoint, name);
        const proof = listOf(t.consistency, "consistency").map(hashOf);
        if (!isConsistent(checkpoint.size, log.size, checkpoint.root, log.root, proof)) refuse("a timestamp's checkpoint is not of this log");
        unbase64(textOf(t.token, "a token"));
      }
      return () => {
        if (l.seam === null) return;
        const seam = this.at(l.seam, "a seam"), payload = seam?.payload;
        if (seam?.record.get("event_type") !== "datastorage.log.continued" || payload?.get("closed_log") !== name ||
            payload.get("tree_size")?.token !== String(log.size) || payload.get("root_hash") !== hex(log.root)) {
          refuse(`the event that continues the log ${name} does not name its size and root`);
        }
      };
    }
    checkpoint(note, origin) {
      const checkpoint = openCheckpoint(note, this.keys);
      return checkpoint.origin === origin ? checkpoint : refuse(`a checkpoint is of another log, ${checkpoint.origin}`);
    }
    at(value, what) {
      const { log, position } = exactly(value, what, "log position");
      const entry = this.entries.get(`${numberOf(position, "position")} ${textOf(log, "log")}`);
      return entry?.isEvidence ? entry : null;
    }
    readEntries(value, isEvidence) {
      return listOf(value, "event entries").map((each) => {
        const e = exactly(each, "an event entry", "log position leaf proof record salt committed redacted not_covered");
        exactly(e.not_covered, "not_covered", UNHASHED);
        const entry = { log: textOf(e.log, "log"), position: numberOf(e.position, "position"), leaf: textOf(e.leaf, "leaf"), isEvidence };
        const record = parseObject(textOf(e.record, "record"));
        exactly(record, "a record", RECORD);
        this.included(entry, entry.leaf, e.proof);
        const masked = e.redacted === null ? [] : listOf(e.redacted, "redacted");
        if (e.redacted !== null && (!masked.length || masked.some((name, i) => typeof name !== "string" || (i && name <= masked[i - 1])))) {
          refuse("redacted is neither null nor a sorted list of names");
        }
        for (const name of masked) {
          if (!this.redacted || NEVER_MASKED.has(name) || !(record.has(name) || COMMITTED.includes(name))) refuse(`${name} cannot have been masked`);
        }
        if (!masked.some((name) => record.has(name)) && hex(leafHash(encode(e.record))) !== entry.leaf) {
          this.defect(`the event at position ${entry.position} does not have its hash: it was changed`);
        }
        if (record.get("log") !== entry.log || !same(record.get("log_index"), e.position)) refuse("a record is of another place than its entry");
        entry.committed = null;
        if (e.committed !== null) {
          entry.committed = parseObject(textOf(e.committed, "committed"));
          exactly(entry.committed, "a committed object", COMMITTED);
          const isMasked = masked.some((name) => COMMITTED.includes(name));
          if ((e.salt === null) !== isMasked) refuse("an entry is masked or has its salt, and not both");
          if (!isMasked && commitment(e.salt, e.committed) !== record.get("commitment")) {
            this.defect(`the content of the event at position ${entry.position} was changed`);
          }
        } else if (e.salt !== null) refuse("a salt without its content");
        Object.assign(entry, { record, masked, index: isEvidence ? null : numberOf(record.get("chain_index"), "chain_index") });
        const place = `${entry.position} ${entry.log}`;
        if (this.entries.has(place)) refuse(`position ${entry.position} stands twice`);
        this.entries.set(place, entry);
        return entry;
      });
    }
    included({ log, position }, leaf, proof) {
      const known = this.logs.get(log) ?? refuse("an entry is of no log of this file");
      if (!leadsTo(known.root, unhex(leaf, 32), position, known.size, listOf(proof, "proof").map(hashOf))) {
        this.defect(`the proof does not lead from position ${position} to the log's root`);
      }
    }
    /** Step 6: section 5.9, steps 2 to 5. */
    believe(entry) {
      const type = entry.record.get("event_type"), payload = entry.committed?.get("event_data"), id = OWN_ID[type];
      if (!id || !(payload instanceof Map) || payload.get("event_type") !== type || entry.record.get("event_category") !== "security" ||
          entry.record.get("correlation_id") !== `datastorage:${type.split(".")[1]}:${payload.get(id)}`) return;
      entry.payload = payload;
      if (typeof payload.get("positions") !== "string") return;
      const about = payload.has("log_id") ? numberOf(payload.get("log_id"), "log_id") : 0, own = this.logs.get(entry.log);
      for (const log of this.logs.values()) {
        if (log.number !== about || log.order > own.order) continue; // nothing is evidence about what came after it
        let named = ranges(payload.get("positions"));
        if (log === own) named = named.map(([from, to]) => [from, Math.min(to, entry.position)]);
        if (type === "datastorage.event.erased") { log.erased.push(...named); continue; }
        if (type === "datastorage.log.continued") {
          if (entry.position === 0 && own.number === about + 1) log.purged.set(LOST, [...(log.purged.get(LOST) ?? []), ...named]);
          continue;
        }
        const sets = type === "datastorage.retention.purged" ? log.purged : log.restored;
        sets.set(payload.get(id), [...(sets.get(payload.get(id)) ?? []), ...named]);
      }
    }
    chain(value, events) {
      this.head = { length: 0, hash: null };
      if (value !== null) {
        const { length, hash } = exactly(value, "chain", "length hash");
        this.head = { length: numberOf(length, "length"), hash: textOf(hash, "hash") };
      } else if (events.length) refuse("there are events, and no chain");
      let before = null;
      for (const entry of events) {
        const previous = entry.record.get("previous_event_hash");
        if (entry.record.get("correlation_id") !== this.correlation && !entry.masked.includes("correlation_id")) {
          this.defect(`the event at position ${entry.position} is of another correlation`);
        }
        if ((entry.index === 0) !== (previous === null)) this.defect("only the first event of a chain has no link");
        if (before && (entry.index <= before.index || !this.isBefore(before, entry))) {
          this.defect(`the event at position ${entry.position} is not in the order of the chain`);
        }
        if (before && entry.index === before.index + 1 && previous !== before.leaf) {
          this.defect(`the link of the event at position ${entry.position} is not the hash of the one before`);
        }
        before = entry;
      }
      if (before && (before.index >= this.head.length || (before.index === this.head.length - 1 && before.leaf !== this.head.hash))) {
        this.defect("the chain does not end with its last event");
      }
    }
    isBefore(a, b) {
      return a.log === b.log ? a.position < b.position : this.logs.get(a.log).order < this.logs.get(b.log).order;
    }
    gaps(given, events) {
      const runs = [], ends = [...events, null];
      let next = 0, before = null;
      for (const after of ends) {
        const end = after ? after.index : this.head.length;
        if (end > next) runs.push({ first: next, end, hash: after ? after.record.get("previous_event_hash") : this.head.hash, before, after });
        if (after) { next = after.index + 1; before = after; }
      }
      if (runs.length !== given.length) refuse("the gaps are not those of the chain");
      this.purged = 0;
      given.forEach((one, i) => {
        const g = exactly(one, "a gap", "first end last_hash log position proof"), { first, end, hash, before: low, after } = runs[i];
        if (g.first?.token !== String(first) || g.end?.token !== String(end) || g.last_hash !== hash) refuse("the gaps are not those of the chain");
        const which = end - first === 1 ? `event ${first} of the chain is` : `events ${first} to ${end - 1} of the chain are`;
        if (g.log === null && g.position === null && g.proof === null) {
          this.defect(`removed: ${which} missing, and nothing records a purge`);
          return;
        }
        const at = { log: textOf(g.log, "log"), position: numberOf(g.position, "position") };
        this.included(at, textOf(g.last_hash, "last_hash"), g.proof);
        const isBetween = (!low || this.isBefore(low, at)) && (!after || this.isBefore(at, after));
        if (!isBetween || !this.isPurged(this.logs.get(at.log), at.position) || this.missingBetween(low, at) < end - first - 1) this.defect(`removed: ${which} missing, and no purge explains it`);
        this.purged += end - first;
      });
    }
    /** The missing positions after an entry, or from the beginning, and before a place, in all logs. */
    missingBetween(low, at) {
      const last = this.logs.get(at.log).order, start = low ? this.logs.get(low.log).order : 0;
      return [...this.logs].filter(([, log]) => start <= log.order && log.order <= last).reduce((n, [name, log]) =>
        n + this.purgedBetween(log, low?.log === name ? low.position + 1 : 0, name === at.log ? at.position : log.size), 0);
    }
    isPurged(log, position) {
      return [...log.purged].some(([operation, named]) => has(named, position) && !has(log.restored.get(operation) ?? [], position));
    }
    purgedBetween(log, from, to) { // between two neighbouring bounds all positions are purged, or none
      const bounds = [...log.purged.values(), ...log.restored.values()].flat(2).concat(from, to)
        .map((bound) => Math.min(Math.max(bound, from), to)).sort((a, b) => a - b);
      return bounds.reduce((n, bound, i) => n + (i && this.isPurged(log, bounds[i - 1]) ? bound - bounds[i - 1] : 0), 0);
    }
    unproved(text) {
      const row = parseObject(textOf(text, "an unproved row"));
      exactly(row, "an unproved row", COLUMNS);
      if (row.get("sealed") !== false) refuse("an unproved row is marked as sealed");
      if (row.get("log_index") !== null) this.defect(`a row says that it is at position ${row.get("log_index")}: the log has another event there, or none`);
    }
    notifications(given, evidence) {
      const named = new Map();
      for (const each of given) {
        const n = exactly(each, "a notification", "columns salt committed covered_by");
        if (!(n.columns instanceof Map)) refuse("a notification has no columns");
        const id = n.columns.get("notification_id");
        if ((n.salt === null) !== (n.committed === null) || (n.salt !== null && (this.redacted || n.covered_by === null))) {
          refuse(`the notification ${id} has a salt or text that it cannot have`);
        }
        if (n.covered_by === null) continue;
        const event = this.at(n.covered_by, "covered_by");
        if (event?.record.get("event_type") !== "datastorage.notification.stored" || !event.payload) {
          this.defect(`inserted: no event in the log has the digest of the notification ${id}`);
          continue;
        }
        named.set(event, (named.get(event) ?? 0) + 1);
        if (event.payload.get("notification_id") !== id) this.defect(`the event names another notification than ${id}`);
        if (this.redacted) continue;
        const text = textOf(n.committed, "committed"), content = parseObject(text);
        exactly(content, "a notification", NOTIFIED);
        if (commitment(n.salt, text) !== event.payload.get("digest")) this.defect(`the notification ${id} does not have its digest: it was changed`);
        for (const [name, value] of content) {
          if (!n.columns.has(name) || !same(value, n.columns.get(name))) this.defect(`the notification ${id} shows another ${name} than was logged`);
        }
      }
      for (const event of evidence) {
        if (event.payload && event.record.get("event_type") === "datastorage.notification.stored" && named.get(event) !== 1) {
          this.defect(`removed: the notification ${event.payload.get("notification_id")}`);
        }
      }
      return named.size;
    }
    conclude(c, events, evidence, numbers, covered) {
      const { report } = this, masked = [...events, ...evidence].filter((entry) => entry.masked.length).length;
      report.headline = `${this.correlation}: ${counted(events.length, "event")} of a chain of ${this.head.length}, exported ${this.exported}.`;
      report.proved.push(`${this.signer} signed the file; not a byte was changed since.`);
      for (const [name, log] of this.logs) {
        report.proved.push(log.checkpoint ? `${log.checkpoint.signers.join(" and ")} signed a checkpoint of ${name} with ${counted(log.size, "event")}; ${
          log.checkpoint.witnesses.length ? `it was cosigned by ${log.checkpoint.witnesses.join(" and ")}.` : "no witness whose key was given has cosigned it."}` :
          `The log that follows ${name} vouches for its ${counted(log.size, "event")}.`);
        if (log.timestamps) report.open.push(`The time of ${counted(log.timestamps, "timestamp")} of ${name}: its checkpoint is of this log, but the authority's signature needs its certificates (openssl ts -verify).`);
      }
      report.proved.push(`${counted(events.length, "event is", "events are")} part of what was signed${numbers.erased || masked ? ", but for what is erased or masked" : ""}, and each is linked to the one before it.`);
      if (this.purged) report.proved.push(`${counted(this.purged, "event")} of the chain ${this.purged === 1 ? "was" : "were"} purged by the rules: the log records it.`);
      if (numbers.erased) report.proved.push(`${counted(numbers.erased, "event was", "events were")} erased by the rules: the log records it; who did it and the payload are gone.`);
      const kinds = new Map();
      for (const entry of evidence) kinds.set(entry.record.get("event_type"), (kinds.get(entry.record.get("event_type")) ?? 0) + 1);
      if (evidence.length) report.proved.push(`The log has about these events: ${[...kinds].map(([type, n]) => `${n} ${type}`).join(", ")}.`);
      if (covered) report.proved.push(`${counted(covered, "notification")}: the log has the digest${this.redacted ? "; the text is masked and cannot be compared with it" : " of what is shown"}.`);
      const word = (n, one, many, why) => { if (n) { report.caveat = true; report.open.push(`${counted(n, one, many)} ${why}`); } };
      word(numbers.unproved, "row", "rows", "that the log does not have: put into the database by somebody else (unsealed).");
      word(numbers.notifications - covered, "notification", "notifications", "that the log has no digest of: the exporter's word.");
      word(masked, "event", "events", "with masked text: what a masked text says is the exporter's word.");
      report.open.push("The exporter's word: that the chain ends where this file says, that no hold, purge or other event about these is missing, the page of words, and retention_days, legal_hold, hash_algorithm.", TRUTH, CLOCKS);
      for (const entry of [...events, ...evidence]) {
        const row = new Map([...entry.record, ...(entry.committed ?? [["actor_id", "erased"]])]);
        report.rows.push(shown(row, true));
      }
      report.page = c.page.join("\n");
    }
  }

  // Files: read in slices, with a pause for the page now and then.

  const SLICE = 4 << 20, RECORD_MAX = 64 << 20, PAUSE_MS = 40;
  class Reading {
    constructor(files, progress) {
      Object.assign(this, { progress, done: 0, total: files.reduce((sum, file) => sum + file.size, 0), paused: performance.now() });
    }
    async pause(done) {
      if (performance.now() - this.paused < PAUSE_MS) return;
      this.progress?.(this.total ? (this.done + done) / this.total : 1);
      await new Promise((resume) => { setTimeout(resume); });
      this.paused = performance.now();
    }
  }
  async function readExport(file, form, reading, whole) {
    let rest = new Uint8Array(), number = 0;
    for (let start = 0; start < file.size; start += SLICE) {
      const slice = new Uint8Array(await file.slice(start, start + SLICE).arrayBuffer());
      whole.update(slice);
      const bytes = rest.length ? join(rest, slice) : slice;
      let at = 0, quoted = false;
      for (let i = 0; i < bytes.length; i++) {
        if (form.format === "csv" && bytes[i] === 0x22) quoted = !quoted;
        if (bytes[i] !== 0x0a || quoted || (form.format === "csv" && bytes[i - 1] !== 0x0d)) continue;
        form.where = `${file.name}, record ${++number}`;
        form.record(bytes.subarray(at, i + 1));
        at = i + 1;
        await reading.pause(start + at);
      }
      rest = bytes.slice(at);
      if (rest.length > RECORD_MAX) break;
    }
    form.where = `${file.name}, record ${number + 1}`;
    if (rest.length) form.defect("the record does not end with a newline");
  }

  /** Verify files, those of one export as its parts. Returns a Report for each thing; `progress` gets numbers up to 1. */
  async function verify(files, keys, progress) {
    const reading = new Reading(files, progress), reports = [];
    let open = null; // the export that the next file may continue
    const close = () => { if (open) reports.push(open.end()); open = null; };
    for (const file of [...files].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }))) {
      const start = new TextDecoder().decode(await file.slice(0, BUNDLE.length).arrayBuffer()), whole = new Sha256();
      const isRecords = /^(\{"event_id":|\{"payloadType":|event_id,|#manifest,)/.test(start);
      const about = { name: file.name, size: file.size };
      if (isRecords) {
        if (!open || open.isComplete) { close(); open = new Export(keys); }
        open.report.files = [...(open.report.files ?? []), about];
        open.format ??= start.startsWith("{") ? "ndjson" : "csv";
        await readExport(file, open, reading, whole);
      } else {
        close();
        let report = new Report("File");
        try {
          if (file.size > 2 * RECORD_MAX) refuse("too large for a proof or a bundle");
          const bytes = new Uint8Array(await file.arrayBuffer());
          whole.update(bytes);
          if (start.startsWith(BUNDLE)) report = new Bundle(keys).verify(decode(bytes));
          else if (start.startsWith(PROOF) || start.startsWith("{")) report = verifyProof(decode(bytes), keys);
          else refuse("this is neither a proof nor an export nor a bundle of DataStorage");
        } catch (error) {
          report.headline = "Nothing in this file may be relied on.";
          report.defect(reason(error));
        }
        report.files = [about];
        reports.push(report);
      }
      about.sha256 = hex(whole.digest());
      reading.done += file.size;
    }
    close();
    if (keys.some((key) => ![1, 4].includes(key.algorithm))) {
      for (const report of reports) report.open.push("Signatures by keys of other kinds than Ed25519, which were given too: they are not checked here.");
    }
    progress?.(1);
    return reports;
  }

  return { verify, verifyProof, readProof, parseKeys, openCheckpoint, climb, leafHash, commitment, encode, decode, Refused, reason, ed25519, sha256,
    sha512, hex, unhex, parseObject, eventHash, canonicalNumber, jcs };
})();
/* DataStorage verifier: end. */
