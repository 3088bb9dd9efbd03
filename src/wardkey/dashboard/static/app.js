// Optional enhancements: local times, copying, dialogs, warnings before leaving.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const announce = (text) => { document.getElementById("live").textContent = text; };

  // Times: the server writes UTC or relative times; convert them to the viewer's zone.
  const exact = new Intl.DateTimeFormat("en", { dateStyle: "full", timeStyle: "long" });
  const day = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
  const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
  for (const time of all("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.title = exact.format(at);
    if (time.dataset.as === "day") time.textContent = day.format(at);
    if (time.dataset.as === "moment") time.textContent = moment.format(at);
  }

  // On a phone, the current tab may be scrolled out of view.
  for (const tab of all(".tabs [aria-current]")) {
    tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 16;
  }

  // Copying.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (!button) return;
    const source = button.dataset.copyFrom;
    const text = source ? document.querySelector(source).textContent : button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const element = source && document.querySelector(source);
      if (element) getSelection().selectAllChildren(element);
      announce("Couldn't copy; the text is selected instead.");
      return;
    }
    announce("Copied");
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
    if (source && document.querySelector(source).hasAttribute("data-secret")) leaving.copied = true;
  });

  // Browsers before 2026 don't support button commands.
  if (!("commandForElement" in HTMLButtonElement.prototype)) document.addEventListener("click", (event) => {
    const button = event.target.closest("button[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (dialog) button.getAttribute("command") === "close" ? dialog.close() : dialog.showModal();
  });

  // Dialogs the server rendered open become modal.
  for (const dialog of all("dialog[data-open]")) {
    dialog.close();
    dialog.showModal();
    // showModal() doesn't scroll to an element that already had focus.
    dialog.querySelector(":focus")?.scrollIntoView({ block: "nearest" });
  }
  // Remove the dialog from the URL, or a reload would open it again.
  const url = new URL(location.href);
  for (const name of ["dialog", "done", "who"]) url.searchParams.delete(name);
  if (url.href !== location.href) history.replaceState(null, "", url);

  // A secret shown once: replace its history entry with the page behind it.
  const leaving = { copied: true };
  const reveal = document.querySelector("[data-reveal]");
  if (reveal) {
    leaving.copied = false;
    history.replaceState(null, "", reveal.dataset.reveal);
    const unsaved = document.getElementById("unsaved");
    const close = () => {
      if (leaving.copied) location.replace(reveal.dataset.reveal);
      else unsaved.showModal();
    };
    reveal.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
    // A second Escape closes the dialog even if the first was prevented.
    reveal.addEventListener("close", () => { if (!reveal.open) { reveal.showModal(); close(); } });
    reveal.querySelector("[data-close]").addEventListener("click", (event) => { event.preventDefault(); close(); });
    unsaved.querySelector("[data-leave]").addEventListener("click", () => {
      leaving.copied = true;
      location.replace(reveal.dataset.reveal);
    });
    addEventListener("beforeunload", (event) => { if (!leaving.copied) event.preventDefault(); });
    // Keep the secret out of the back-forward cache and restored tabs.
    addEventListener("pagehide", () => { for (const node of all("[data-secret]")) node.textContent = ""; });
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  // Send each form once, and enable a confirmed action once its name is typed.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
  addEventListener("pageshow", () => { for (const form of all("form[data-sent]")) delete form.dataset.sent; });
  for (const input of all("input[data-confirm]")) {
    const button = input.form.querySelector("[type=submit]");
    const update = () => { button.disabled = input.value !== input.dataset.confirm; };
    input.addEventListener("input", update);
    update();
  }

  // Passkeys: the browser creates or uses one, and the form submits the result.
  const passkeyForm = document.querySelector("form[data-passkey]");
  if (passkeyForm) {
    const request = async () => {
      const fault = document.getElementById("passkey-fault");
      fault.hidden = true;
      try {
        const options = JSON.parse(passkeyForm.dataset.options);
        const credential = passkeyForm.dataset.passkey === "create"
          ? await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) })
          : await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
        passkeyForm.elements.answer.value = JSON.stringify(credential);
        HTMLFormElement.prototype.submit.call(passkeyForm);
      } catch {
        delete passkeyForm.dataset.sent;
        fault.hidden = false;
      }
    };
    passkeyForm.addEventListener("submit", (event) => { event.preventDefault(); request(); });
    if (passkeyForm.dataset.passkey === "get") request();
  }

  // Submit filters when they change.
  for (const select of all("form[data-auto] select")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }

  // A rough estimate of a password's strength; the server decides.
  for (const input of all("input[data-strength]")) {
    const box = document.getElementById(input.dataset.strength);
    const meter = box.querySelector("meter");
    const labels = ["too short", "weak", "fair", "good", "strong"];
    const update = () => {
      const text = input.value;
      const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/, /[^a-zA-Z0-9]/].filter((kind) => kind.test(text)).length;
      const different = new Set(text).size;
      let score = text.length < 12 || different < 5 ? 0 : 1;
      if (score && different >= 8) score = Math.min(4, 1 + Math.floor((text.length - 10) / 4) + (kinds > 2 ? 1 : 0));
      meter.value = score;
      box.querySelector("span").textContent = text
        ? `Strength: ${labels[score]}`
        : "At least 12 characters; a few random words work well.";
    };
    input.addEventListener("input", update);
  }
})();
