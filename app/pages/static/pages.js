// What makes the pages better where there is JavaScript: the reader's time zone, the theme, rows that open by a click.
// Nothing depends on it. No state but two choices in localStorage.
"use strict";
(() => {
  const root = document.documentElement;
  const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode */ } };

  // Before the first paint: the theme that was chosen, else the browser's.
  if (remembered("theme")) root.dataset.theme = remembered("theme");
  root.dataset.script = "on";

  const zones = () => (remembered("zone") === "UTC" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC");

  function shortName(date, zone) {
    const parts = new Intl.DateTimeFormat("en", { timeZone: zone, timeZoneName: "short" }).formatToParts(date);
    return parts.find((part) => part.type === "timeZoneName").value;
  }

  // Every <time> of the page in one zone, always with the zone's name beside it.
  function showTimes(zone, within = document) {
    const format = new Intl.DateTimeFormat("sv-SE", {
      timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
    });
    for (const time of within.querySelectorAll("time[datetime]")) {
      const text = time.getAttribute("datetime");
      const date = new Date(text);
      if (Number.isNaN(date.getTime())) continue;
      time.textContent = format.format(date) + " ";
      const name = document.createElement("abbr");
      name.textContent = shortName(date, zone);
      name.title = zone;
      time.append(name);
      time.title = text;
    }
    for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = zone;
  }

  function installZone() {
    const button = document.querySelector('[data-switch="zone"]');
    const own = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
    const show = () => {
      const zone = zones();
      showTimes(zone);
      button.textContent = zone === "UTC" ? "UTC" : shortName(new Date(), zone);
      button.setAttribute("aria-label", `Times are ${zone}; show ${zone === "UTC" ? own : "UTC"}`);
      button.title = button.getAttribute("aria-label");
    };
    button.hidden = false;
    button.addEventListener("click", () => { remember("zone", zones() === "UTC" ? "local" : "UTC"); show(); });
    show();
  }

  function installTheme() {
    const button = document.querySelector('[data-switch="theme"]');
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
    const show = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Show the pages ${isDark() ? "light" : "dark"}`);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember("theme", root.dataset.theme);
      show();
    });
    show();
  }

  // A click anywhere on an event's row opens it, but not on a link, and not at the end of selecting text.
  function installRows(within = document) {
    for (const row of within.querySelectorAll("tr.event")) {
      row.addEventListener("click", (click) => {
        if (click.target.closest("a, button, input, label") || String(getSelection())) return;
        const details = row.parentElement.querySelector("details");
        details.open = !details.open;
      });
    }
  }

  // A search sends the fields that have a value: its address is short enough to be shared.
  function installForms() {
    for (const form of document.querySelectorAll("form.filters")) {
      form.addEventListener("submit", () => {
        // A time that the reader writes without a zone is one of the zone that the page shows.
        const { since, until, zone } = form.elements;
        const isLocal = (field) => field && /^\s*(\d{4}-|today|yesterday)/.test(field.value);
        if (zone && !zone.value && (isLocal(since) || isLocal(until)) && zones() !== "UTC") zone.value = zones();
        for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
      });
    }
    addEventListener("pageshow", () => {
      for (const field of document.querySelectorAll("form.filters :disabled")) field.disabled = false;
    });
  }

  // A link to something that is closed opens it.
  function openTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  }

  // Rows that came later (live.js).
  addEventListener("rows", (added) => {
    showTimes(zones(), added.target);
    installRows(added.target);
  });
  addEventListener("hashchange", openTarget);
  addEventListener("DOMContentLoaded", () => {
    openTarget();
    installZone();
    installTheme();
    installRows();
    installForms();
  });
})();
