"use strict";
(() => {
  const best = Number(document.body.dataset.best); // 0: pairs
  const $ = (id) => document.getElementById(id);
  const frames = [...document.querySelectorAll(".frame")];
  let state = null, working = false, learned = null, showResults = false;

  // ------------------------------------------------------------ time that a photo is looked at
  let spent = 0, since = null;
  const looking = () => !document.hidden && !$("rating").hidden && !document.querySelector("dialog[open]");
  function clock() {
    const now = performance.now();
    if (since !== null) spent += now - since;
    since = looking() ? now : null;
  }
  document.addEventListener("visibilitychange", clock);

  // ---------------------------------------------------------------------------- the program
  async function ask(what, body) {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(what, options);
    } catch {
      throw new Error("The program does not answer. All that you saw confirmed is saved: start it again.");
    }
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }

  const fail = (error) => { $("error").textContent = error.message; };

  async function act(what, body = {}) {
    if (working) return;
    working = true;
    try {
      const next = await ask(what, body);
      $("error").textContent = "";
      show(next);
    } catch (error) {
      fail(error);
    } finally {
      working = false;
    }
  }

  function seconds() {
    clock();
    return Math.round(spent / 100) / 10;
  }

  const visible = (i) => state && i < state.shown.length && frames[i].firstElementChild.naturalWidth > 0;

  function rate(score) {
    if (visible(0)) act("rate", { photo: state.shown[0], score, seconds: seconds() });
  }

  function choose(side) {
    if (visible(0) && visible(1))
      act("choose", { better: state.shown[side], worse: state.shown[1 - side], seconds: seconds() });
  }

  // ------------------------------------------------------------------------------- the page
  function show(next) {
    const moved = !state || String(state.shown) !== String(next.shown) || state.score !== next.score;
    const before = state;
    state = next;
    if (moved) showPhotos();
    if (before && before.done !== state.done && (said += 1) > 3) say("");
    $("bar").max = Math.max(state.target, state.done);
    $("bar").value = state.done;
    const minutes = state.seconds_left === null ? "" : `, about ${Math.ceil(state.seconds_left / 60)} min left`;
    $("count").textContent = `${state.done} of ${state.target}${minutes}`;
    if ($("back")) $("back").disabled = !state.can_go_back;
    $("undo").disabled = !state.can_undo;
    for (const button of document.querySelectorAll("#answers button, #skip, #zoom")) button.disabled = !state.shown.length;
    for (const button of document.querySelectorAll("#answers [data-score]"))
      button.classList.toggle("mine", state.score === Number(button.dataset.score));
    if (before && before.done < state.target && state.done >= state.target) say("That was the last one. You may go on.");
    if (!state.shown.length) say("There is no photo left to show.");
    showLearner(state.learner);
  }

  function showPhotos() {
    zoom(false);
    frames.forEach((frame, i) => {
      const image = frame.firstElementChild, there = i < state.shown.length;
      image.hidden = !there;
      frame.parentElement.querySelector("figcaption").textContent = there ? state.names[i] : "";
      if (!there) return;
      image.alt = state.names[i];
      image.src = `photo/${state.shown[i]}`;
    });
    if ($("slider")) setSlider(state.score === null ? 50 : state.score);
    for (const number of state.coming) new Image().src = `photo/${number}`;
    spent = 0;
    since = looking() ? performance.now() : null;
  }

  frames.forEach((frame, i) => frame.firstElementChild.addEventListener("error", () => {
    if (!state || !state.shown.length) return;
    say(`${state.names[i]} cannot be shown and is left out.`);
    act("skip", { photo: state.shown[i], unreadable: true });
  }));

  let said = 0; // answers since the news
  function say(text) {
    $("news").textContent = text;
    said = 0;
  }

  function zoom(on = !document.body.classList.contains("zoom")) {
    document.body.classList.toggle("zoom", on);
    $("zoom").setAttribute("aria-pressed", on);
    for (const frame of frames) {
      const image = frame.firstElementChild;
      image.style.width = on ? `${image.naturalWidth / devicePixelRatio}px` : ""; // a pixel of the photo is one of the screen
      frame.scrollTo((frame.scrollWidth - frame.clientWidth) / 2, (frame.scrollHeight - frame.clientHeight) / 2);
    }
    if (on) frames[0].focus();
  }

  for (const frame of frames) {
    frame.addEventListener("pointermove", (event) => {
      if (event.buttons && event.pointerType === "mouse") frame.scrollBy(-event.movementX, -event.movementY);
    });
    frame.addEventListener("dragstart", (event) => event.preventDefault());
    frame.addEventListener("dblclick", () => zoom());
  }

  // ------------------------------------------------------------------------- what is learned
  let timer = null;
  function showLearner(learner) {
    $("train").disabled = $("save").disabled = learner.busy;
    document.body.setAttribute("aria-busy", learner.busy);
    if (learner.error) $("error").textContent = learner.error;
    if (learner.saved && learner.saved !== learned?.saved) say(`The model is in ${learner.saved}`);
    const fresh = learner.finished > (learned?.finished ?? 0);
    learned = { finished: learner.finished, saved: learner.saved };
    if (fresh) ask("results").then(showLearned, fail);
    if (!learner.busy) showResults = showResults && fresh;
    clearTimeout(timer);
    if (learner.busy) timer = setTimeout(() => ask("state").then((next) => show({ ...state, learner: next.learner }), fail), 700);
  }

  function showLearned(results) {
    say(showResults ? "" : results.sentences.join(" "));
    $("sentences").replaceChildren(...results.sentences.map((text) => element("p", { textContent: text })));
    $("sections").replaceChildren(...results.sections.flatMap(section));
    if (showResults) view(true);
    showResults = false;
  }

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function section({ heading, after, before }) {
    const side = (title, cards) => element("div", {}, element("h4", { textContent: title }), element("ul", {}, ...cards.map(card)));
    const sides = element("div", { className: before.length ? "sides" : "sides one" }, side("By your labels", after));
    if (before.length) sides.append(side("Before", before));
    return [element("h3", { textContent: heading }), sides];
  }

  function card({ photo, name, after, before, label }) {
    const said = element("p", { className: "said" });
    const picture = element("a", { href: `photo/${photo}`, target: "_blank" });
    picture.append(element("img", { src: `photo/${photo}?small`, alt: `${name}, large in a new window`, loading: "lazy" }));
    const box = element("div", { className: "card", tabIndex: 0 }, picture,
      element("p", { textContent: name }), element("p", { textContent: `place ${after}, before ${before}` }), said);
    box.setAttribute("role", "group");
    const correct = async (score) => {
      try {
        show(await ask("rate", { photo, score }));
        for (const other of document.querySelectorAll(`.card[data-photo="${photo}"]`)) other.mark(score);
      } catch (error) {
        fail(error);
      }
    };
    box.dataset.photo = photo;
    box.mark = (score) => {
      said.textContent = score === null ? "" : best ? `your label: ${score}` : `your score: ${score.toFixed(2)}`;
      box.setAttribute("aria-label", [name, `place ${after}, before ${before}`, said.textContent].filter(Boolean).join(", "));
    };
    box.mark(label);
    box.correct = best ? correct : null;
    if (best === 5) {
      const row = [1, 2, 3, 4, 5, 0].map((score) => element("button", { type: "button", textContent: score || "✕",
        tabIndex: -1, ariaLabel: score ? `rate ${score}` : "reject", onclick: () => correct(score) }));
      box.append(element("div", { className: "buttons" }, ...row));
    } else if (best) {
      box.append(element("input", { type: "number", min: 0, max: best, ariaLabel: `score of ${name}`,
        onchange: (event) => event.target.value !== "" && correct(event.target.valueAsNumber) }));
    } else {
      box.append(element("button", { type: "button", textContent: "Compare",
        onclick: async () => { await act("compare", { photo }); view(false); } }));
    }
    return element("li", {}, box);
  }

  function view(results) {
    $("results").hidden = !results;
    $("rating").hidden = results;
    clock();
    if (results) $("results").querySelector("h2").focus();
    else frames[0].focus();
  }

  function train() {
    showResults = true;
    say("Training …");
    act("learn");
  }

  function pause(dialog) {
    dialog.showModal();
    clock();
    dialog.addEventListener("close", clock, { once: true });
  }

  // ------------------------------------------------------------------------ buttons and keys
  function setSlider(value) {
    $("slider").value = value;
    $("value").textContent = $("slider").value;
  }
  if ($("slider")) {
    $("slider").addEventListener("input", () => setSlider($("slider").value));
    $("give").addEventListener("click", () => rate(Number($("slider").value)));
  }
  for (const button of document.querySelectorAll("#answers [data-score]"))
    button.addEventListener("click", () => rate(Number(button.dataset.score)));
  for (const button of document.querySelectorAll("#answers [data-side]"))
    button.addEventListener("click", () => choose(Number(button.dataset.side)));
  const skip = () => state && state.shown.length && act("skip", { photo: state.shown[0] });
  const buttons = {
    skip, back: () => act("back"), undo: () => act("undo"), zoom: () => zoom(), train,
    pause: () => pause($("paused")), keys: () => pause($("help")), save: () => act("save"), return: () => view(false),
  };
  for (const [id, does] of Object.entries(buttons)) $(id)?.addEventListener("click", does);

  const letters = { s: "skip", b: "back", u: "undo", z: "zoom", p: "pause", t: "train", "?": "keys" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
    const key = event.key.toLowerCase(), digit = /^[1-5]$/.test(key) ? Number(key) : key === "x" ? 0 : null;
    if (event.target.type === "number") return;
    if (!$("results").hidden) {
      const box = event.target.closest?.(".card");
      if (key === "escape") view(false);
      else if (box?.correct && best === 5 && digit !== null) box.correct(digit);
      else if (key === "t") $("train").click();
      return;
    }
    const arrow = { arrowleft: 0, arrowright: 1 }[key], zoomed = document.body.classList.contains("zoom");
    if (best === 5 && digit !== null) rate(digit);
    else if (best && digit === 0) rate(0);
    else if (!best && (digit === 1 || digit === 2)) choose(digit - 1);
    else if (!best && arrow !== undefined && !zoomed) choose(arrow);
    else if (best === 100 && key === "enter" && event.target.tagName !== "BUTTON") rate(Number($("slider").value));
    else if (best === 100 && arrow !== undefined && !zoomed && event.target !== $("slider"))
      setSlider(Number($("slider").value) + (arrow ? 1 : -1));
    else if (key === "escape" && zoomed) zoom(false);
    else if (letters[key]) $(letters[key])?.click();
    else return;
    event.preventDefault();
  });

  ask("state").then(show).catch(fail);
})();
