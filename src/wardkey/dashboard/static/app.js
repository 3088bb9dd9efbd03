// What pages gain with a script: times in the viewer's zone, copying, dialogs, guards before leaving.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = (text) => { document.getElementById("live").textContent = text; };

  // Times: the server writes them in UTC or as a distance; here they get the viewer's zone.
  const exact = new Intl.DateTimeFormat("en", { dateStyle: "full", timeStyle: "long" });
  const day = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
  const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
  for (const time of all("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.title = exact.format(at);
    if (time.dataset.as === "day") time.textContent = day.format(at);
    if (time.dataset.as === "moment") time.textContent = moment.format(at);
  }

  // On a phone the tab one is at may be out of sight.
  for (const tab of all(".tabs [aria-current]")) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 16;

  // Copying.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (!button) return;
    const source = button.dataset.copyFrom;
    const text = source ? document.querySelector(source).textContent : button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const kept = source && document.querySelector(source);
      if (kept) getSelection().selectAllChildren(kept);
      say("Copying is not allowed here; the text is selected instead.");
      return;
    }
    say("Copied");
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
    if (source && document.querySelector(source).hasAttribute("data-secret")) leaving.copied = true;
  });

  // Browsers of before 2026 know no commands of buttons.
  if (!("commandForElement" in HTMLButtonElement.prototype)) document.addEventListener("click", (event) => {
    const button = event.target.closest("button[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (dialog) button.getAttribute("command") === "close" ? dialog.close() : dialog.showModal();
  });

  // Dialogs that the server wants open become modal.
  for (const dialog of all("dialog[data-open]")) {
    dialog.close();
    dialog.showModal();
    // What had the focus before is not scrolled to by itself.
    dialog.querySelector(":focus")?.scrollIntoView({ block: "nearest" });
  }
  // Their place in the address goes with them, so that a reload does not open them again.
  const here = new URL(location.href);
  for (const name of ["dialog", "done", "who"]) here.searchParams.delete(name);
  if (here.href !== location.href) history.replaceState(null, "", here);

  // A secret that is shown once: the page behind it takes its place in the history at once.
  const leaving = { copied: true };
  const reveal = document.querySelector("[data-reveal]");
  if (reveal) {
    leaving.copied = false;
    history.replaceState(null, "", reveal.dataset.reveal);
    const unsaved = document.getElementById("unsaved");
    const close = () => { if (leaving.copied) location.replace(reveal.dataset.reveal); else unsaved.showModal(); };
    reveal.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
    // A second Escape closes whatever is said against the first.
    reveal.addEventListener("close", () => { if (!reveal.open) { reveal.showModal(); close(); } });
    reveal.querySelector("[data-close]").addEventListener("click", (event) => { event.preventDefault(); close(); });
    unsaved.querySelector("[data-leave]").addEventListener("click", () => {
      leaving.copied = true;
      location.replace(reveal.dataset.reveal);
    });
    addEventListener("beforeunload", (event) => { if (!leaving.copied) event.preventDefault(); });
    // Neither the back-forward cache nor a restored tab may hold it.
    addEventListener("pagehide", () => { for (const node of all("[data-secret]")) node.textContent = ""; });
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  // A form is sent once, and a name is typed before its button works.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
  addEventListener("pageshow", () => { for (const form of all("form[data-sent]")) delete form.dataset.sent; });
  for (const input of all("input[data-confirm]")) {
    const button = input.form.querySelector("[type=submit]");
    const look = () => { button.disabled = input.value !== input.dataset.confirm; };
    input.addEventListener("input", look);
    look();
  }

  // A passkey: the browser makes or shows one, and its answer goes with the form.
  const asking = document.querySelector("form[data-passkey]");
  if (asking) {
    const ask = async () => {
      const fault = document.getElementById("passkey-fault");
      fault.hidden = true;
      try {
        const options = JSON.parse(asking.dataset.options);
        const made = asking.dataset.passkey === "create"
          ? await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) })
          : await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
        asking.elements.answer.value = JSON.stringify(made);
        HTMLFormElement.prototype.submit.call(asking);
      } catch {
        delete asking.dataset.sent;
        fault.hidden = false;
      }
    };
    asking.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
    if (asking.dataset.passkey === "get") ask();
  }

  // Filters are sent when they change.
  for (const select of all("form[data-auto] select")) select.addEventListener("change", () => select.form.requestSubmit());

  // How long a guess would take, very roughly; the server decides.
  for (const input of all("input[data-strength]")) {
    const box = document.getElementById(input.dataset.strength);
    const meter = box.querySelector("meter");
    const words = ["too short", "weak", "fair", "good", "strong"];
    const look = () => {
      const text = input.value;
      const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/, /[^a-zA-Z0-9]/].filter((kind) => kind.test(text)).length;
      const different = new Set(text).size;
      let score = text.length < 12 || different < 5 ? 0 : 1;
      if (score && different >= 8) score = Math.min(4, 1 + Math.floor((text.length - 10) / 4) + (kinds > 2 ? 1 : 0));
      meter.value = score;
      box.querySelector("span").textContent = text ? `Strength: ${words[score]}` : "At least 12 characters; a few words of your own do well.";
    };
    input.addEventListener("input", look);
  }
})();
