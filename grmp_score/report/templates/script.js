"use strict";
(function () {
  const form = document.getElementById("controls");
  const list = document.getElementById("images");
  const count = document.getElementById("count");
  const field = (id) => document.getElementById(id);
  const cards = Array.from(list.children, (card) => ({
    card,
    score: Number(card.dataset.score),
    file: Number(card.dataset.file),
    gap: Number(card.dataset.gap),
    name: card.dataset.name,
    lower: card.dataset.name.toLowerCase(),
    spare: "spare" in card.dataset,
  }));
  const names = new Intl.Collator(undefined, { numeric: true }).compare;
  const orders = {
    best: (a, b) => b.score - a.score || a.file - b.file,
    worst: (a, b) => a.score - b.score || a.file - b.file,
    name: (a, b) => names(a.name, b.name) || a.file - b.file,
    file: (a, b) => a.file - b.file,
    gap: (a, b) => b.gap - a.gap || a.file - b.file,
  };
  let order = "best";

  // An empty or half-typed number is no limit.
  function limit(id, otherwise) {
    const value = field(id).valueAsNumber;
    return Number.isNaN(value) ? otherwise : value;
  }

  function update() {
    if (field("order").value !== order) {
      order = field("order").value;
      cards.sort(orders[order]);
      const sorted = document.createDocumentFragment();
      for (const item of cards) sorted.append(item.card);
      list.append(sorted);
    }
    const least = limit("least", 0), most = limit("most", 1);
    const text = field("text").value.trim().toLowerCase();
    const bestOnly = field("bestonly").checked;
    let shown = 0;
    for (const item of cards) {
      const visible = item.score >= least && item.score <= most && item.lower.includes(text)
        && !(bestOnly && item.spare);
      item.card.hidden = !visible;
      shown += visible;
    }
    count.textContent = shown + " of " + cards.length + " images shown";
  }

  const picks = Array.from(document.querySelectorAll(".pick"));
  for (const pick of picks) {
    pick.hidden = field("picking").hidden = false;
    pick.addEventListener("click", () => pick.setAttribute("aria-pressed", pick.getAttribute("aria-pressed") !== "true"));
  }
  if (picks.length) field("export").addEventListener("click", () => {
    const kept = picks.filter((pick) => pick.getAttribute("aria-pressed") === "true");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(kept.map((pick) => pick.dataset.path + "\n"), { type: "text/plain" }));
    link.download = "picks.txt";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  // A link to an image that a filter hides shows it.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.hidden) {
      form.reset();
      setTimeout(() => target.scrollIntoView());
    }
  });
  field("bestlabel").hidden = !cards.some((item) => item.spare);
  form.hidden = cards.length < 2;
  update();
})();
