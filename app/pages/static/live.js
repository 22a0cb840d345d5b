// The live mode of the page of events: what the log gets is put on top, in the page's own markup. Texts are only ever set as text.
"use strict";
(() => {
  const ROWS_MAX = 500, RETRY_MS = 5000;
  const bar = document.querySelector("[data-stream]");
  if (!bar || !window.EventSource) return;
  const button = bar.querySelector("button"), words = bar.querySelector("[role=status]");
  const template = document.querySelector("template[data-live-row]");
  let place = bar.dataset.from, source = null, timer = 0, count = 0;

  const show = (state) => {
    const isOn = state !== "off" && state !== "paused";
    button.setAttribute("aria-pressed", String(isOn));
    button.textContent = isOn ? "Pause" : state === "paused" ? "Go on" : "Live";
    const rows = count === 1 ? "1 event has come" : `${count} events have come`;
    words.textContent = {
      off: "", paused: `paused, ${rows}`, live: `live, ${rows}`, begins: "connecting …", lost: `the connection was lost; trying again. ${rows}`,
    }[state];
    bar.dataset.state = state;
  };

  /** The place after one that was seen. */
  const after = (seen) => {
    const [log, position] = seen.split(":");
    return `${log}:${Number(position) + 1}`;
  };

  /** The table's own first row; a page without events has its table in a template. */
  function table() {
    const found = document.querySelector("table.events");
    if (found) return found;
    const empty = document.querySelector("p.empty");
    empty.replaceWith(document.querySelector("template[data-live-table]").content.cloneNode(true));
    return document.querySelector("table.events");
  }

  function add(event) {
    if (document.getElementById(`e-${event.event_id}`)) return; // it came between the page and the stream
    const row = template.content.cloneNode(true).firstElementChild;
    const cell = (name) => row.querySelector(`[data-live="${name}"]`);
    const put = (name, text) => { for (const one of row.querySelectorAll(`[data-live="${name}"]`)) one.textContent = text ?? ""; };
    row.id = `e-${event.event_id}`;
    if (event.event_outcome === "failure") row.querySelector("tr.event").classList.add("failed");
    for (const time of row.querySelectorAll("time[data-member]")) {
      const text = event[time.dataset.member];
      time.setAttribute("datetime", text);
      time.textContent = `${text.slice(0, 10)} ${text.slice(11, 19)} UTC`;
    }
    for (const name of ["event_type", "event_action", "event_category", "severity", "namespace", "cluster_id", "event_id"]) put(name, event[name]);
    put("event_outcome", event.event_outcome);
    cell("event_outcome").classList.add(event.event_outcome);
    put("actor", event.actor_id);
    put("kind", event.resource_id ? event.resource_type : "");
    put("resource", event.resource_id);
    put("correlation_id", event.correlation_id);
    put("position", `${event.log_index}`);
    for (const link of row.querySelectorAll("a[data-event]")) link.href = `/ui/events/${event.event_id}`;
    for (const link of row.querySelectorAll("a[data-correlation]")) link.href = `/ui/correlations/${encodeURIComponent(event.correlation_id)}`;
    const into = table();
    into.insertBefore(row, into.tBodies[0] ?? null);
    while (into.tBodies.length > ROWS_MAX) into.tBodies[into.tBodies.length - 1].remove();
    row.dispatchEvent(new CustomEvent("rows", { bubbles: true }));
    count += 1;
  }

  function stop() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function begin() {
    stop();
    show("begins");
    const current = new EventSource(`${bar.dataset.stream}&from=${encodeURIComponent(place)}`);
    source = current;
    const seen = (message) => { if (message.lastEventId) place = after(message.lastEventId); };
    current.addEventListener("audit", (message) => { seen(message); add(JSON.parse(message.data)); show("live"); });
    current.addEventListener("position", (message) => { seen(message); show("live"); });
    current.addEventListener("absent", seen);
    current.addEventListener("error", () => {
      if (current !== source) return;
      show("lost");
      if (current.readyState === EventSource.CLOSED) timer = setTimeout(begin, RETRY_MS); // it was refused, as while the service starts
    });
  }

  button.addEventListener("click", () => {
    if (source || timer && bar.dataset.state === "lost") { stop(); show("paused"); } else begin();
  });
  show("off");
  bar.hidden = false;
})();
