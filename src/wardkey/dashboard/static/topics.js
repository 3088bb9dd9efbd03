// Live messages over MQTT: a grant of ten minutes is asked for, and what comes is shown as text.
"use strict";
(() => {
  const MOST = 200, LONGEST = 2000;
  const form = document.getElementById("watch");
  const pattern = document.getElementById("pattern");
  const pause = document.getElementById("pause");
  const list = document.getElementById("messages");
  const nothing = document.getElementById("nothing");
  const decoder = new TextDecoder();
  let client = null, paused = false, missed = 0;
  const say = (text) => { document.getElementById("state").textContent = text; };

  const cell = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
    return made;
  };
  const show = (topic, payload) => {
    const item = document.createElement("li");
    const now = new Date();
    const time = cell("time", now.toLocaleTimeString());
    time.dateTime = now.toISOString();
    item.append(cell("b", topic), cell("span", decoder.decode(payload.subarray(0, LONGEST * 4))), time);
    list.prepend(item);
    while (list.children.length > MOST) list.lastElementChild.remove();
    nothing.hidden = true;
  };
  const stop = (text) => {
    if (client) client.end(true);
    client = null;
    pause.disabled = true;
    say(text);
  };

  const begin = async (wanted) => {
    say("Connecting…");
    let told;
    try {
      const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      if (!answer.ok || answer.redirected) throw new Error();
      told = await answer.json();
    } catch {
      return stop("No login was given; load the page again.");
    }
    const mine = mqtt.connect(form.dataset.socket, {
      username: told.username,
      password: told.password,
      clientId: told.client_id,
      reconnectPeriod: 0,
      // The policy of this page allows no worker.
      timerVariant: "native",
    });
    client = mine;
    mine.on("connect", () => mine.subscribe(wanted, { qos: 0 }, (fault, granted) => {
      if (client !== mine) return;
      if (fault || !granted || !granted.length || granted[0].qos >= 128) return stop(`The ACL rules do not let you subscribe to ${wanted}.`);
      pause.disabled = false;
      say(`Watching ${wanted}`);
    }));
    mine.on("message", (topic, payload) => {
      if (client !== mine) return;
      if (!paused) return show(topic, payload);
      missed += 1;
      say(`Paused; ${missed} not shown`);
    });
    mine.on("error", () => { if (client === mine) stop("The broker refused the login; try again."); });
    mine.on("close", () => { if (client === mine) stop("The connection ended; press Watch to go on."); });
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // Two logins at once would show each message twice.
    event.stopPropagation();
    stop("Connecting…");
    resume();
    begin(pattern.value.trim());
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
      return say(`Watching ${pattern.value.trim()}`);
    }
    paused = true;
    pause.setAttribute("aria-pressed", "true");
    pause.querySelector("span").textContent = "Go on";
    say("Paused");
  });
  document.getElementById("clear").addEventListener("click", () => {
    list.replaceChildren();
    nothing.hidden = false;
  });
  addEventListener("pagehide", () => stop("Not watching"));
})();
