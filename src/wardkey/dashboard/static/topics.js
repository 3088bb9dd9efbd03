// Live topics: requests a ten-minute grant and shows MQTT messages as text.
"use strict";
(() => {
  const MAX_MESSAGES = 200, MAX_CHARACTERS = 2000;
  const form = document.getElementById("watch");
  const pattern = document.getElementById("pattern");
  const pause = document.getElementById("pause");
  const list = document.getElementById("messages");
  const nothing = document.getElementById("nothing");
  const decoder = new TextDecoder();
  let client = null, paused = false, missed = 0;
  const setStatus = (text) => { document.getElementById("state").textContent = text; };

  const cell = (name, text) => {
    const element = document.createElement(name);
    element.textContent = text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS)}…` : text;
    return element;
  };
  const show = (topic, payload) => {
    const item = document.createElement("li");
    const now = new Date();
    const time = cell("time", now.toLocaleTimeString());
    time.dateTime = now.toISOString();
    item.append(cell("b", topic), cell("span", decoder.decode(payload.subarray(0, MAX_CHARACTERS * 4))), time);
    list.prepend(item);
    while (list.children.length > MAX_MESSAGES) list.lastElementChild.remove();
    nothing.hidden = true;
  };
  const stop = (text) => {
    if (client) client.end(true);
    client = null;
    pause.disabled = true;
    setStatus(text);
  };

  const watch = async (filter) => {
    setStatus("Connecting…");
    let login;
    try {
      const body = new URLSearchParams(new FormData(form));
      const response = await fetch(form.action, { method: "POST", body });
      if (!response.ok || response.redirected) throw new Error();
      login = await response.json();
    } catch {
      return stop("Couldn't get a login; reload the page.");
    }
    const session = mqtt.connect(form.dataset.socket, {
      username: login.username,
      password: login.password,
      clientId: login.client_id,
      reconnectPeriod: 0,
      // The page's CSP doesn't allow workers.
      timerVariant: "native",
    });
    client = session;
    session.on("connect", () => session.subscribe(filter, { qos: 0 }, (fault, granted) => {
      if (client !== session) return;
      if (fault || !granted || !granted.length || granted[0].qos >= 128) {
        return stop(`The ACL rules don't let you subscribe to ${filter}.`);
      }
      pause.disabled = false;
      setStatus(`Watching ${filter}`);
    }));
    session.on("message", (topic, payload) => {
      if (client !== session) return;
      if (!paused) return show(topic, payload);
      missed += 1;
      setStatus(`Paused; ${missed} not shown`);
    });
    session.on("error", () => { if (client === session) stop("The broker refused the login; try again."); });
    session.on("close", () => { if (client === session) stop("The connection ended; press Watch to continue."); });
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // Two logins at once would show each message twice.
    event.stopPropagation();
    stop("Connecting…");
    resume();
    watch(pattern.value.trim());
  });
  const resume = () => {
    paused = false;
    missed = 0;
    pause.setAttribute("aria-pressed", "false");
    pause.querySelector("span").textContent = "Pause";
  };
  pause.addEventListener("click", () => {
    if (paused) {
      resume();
      return setStatus(`Watching ${pattern.value.trim()}`);
    }
    paused = true;
    pause.setAttribute("aria-pressed", "true");
    pause.querySelector("span").textContent = "Resume";
    setStatus("Paused");
  });
  document.getElementById("clear").addEventListener("click", () => {
    list.replaceChildren();
    nothing.hidden = false;
  });
  addEventListener("pagehide", () => stop("Not watching"));
})();
