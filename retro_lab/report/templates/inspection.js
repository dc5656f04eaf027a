"use strict";
// What comes from the corpus is only ever read and written as text.
(() => {
  const chunks = [...document.querySelectorAll("article")];
  const readout = document.getElementById("readout");
  const search = document.getElementById("search");
  const tally = document.getElementById("tally");
  const colors = [...document.querySelectorAll("input[name=color]")];
  document.getElementById("bar").addEventListener("submit", (event) => event.preventDefault());

  const tokenAt = (node) => (node instanceof Element ? node.closest(".own .text span") : null);
  const show = (token) => {
    const [off, on, prefix] = token.dataset.n.split(" ");
    const text = token.textContent ? JSON.stringify(token.textContent) : "(part of the next character)";
    const difference = off === "-" ? 0 : Number(off) - Number(on);
    const sign = difference < 0 ? "\u2212" : "+";
    const losses =
      off === "-"
        ? "not scored"
        : `loss Off ${off}   loss On ${on}   Off \u2212 On ${sign}${Math.abs(difference).toFixed(3)} nats`;
    readout.textContent = `${text}   ${losses}   LCP ${prefix}`;
  };
  for (const kind of ["mouseover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const token = tokenAt(event.target);
      if (token) show(token);
    });
  }

  // The chunk that the keyboard is at: the one with the focus, or else the first in view.
  const here = () => {
    const focused = document.activeElement.closest("article");
    if (focused) return chunks.indexOf(focused);
    const top = document.getElementById("bar").getBoundingClientRect().bottom;
    return chunks.findIndex((chunk) => chunk.getBoundingClientRect().bottom > top + 1) - 0.5;
  };
  const go = (number) => {
    const chunk = chunks[Math.max(0, Math.min(chunks.length - 1, number))];
    chunk.scrollIntoView({ block: "start" });
    const token = chunk.querySelector(".own .text span");
    if (token) token.focus({ preventScroll: true });
  };

  // Equal in length to the text, so that places in one are places in the other.
  const folded = (text) => (text.toLowerCase().length === text.length ? text.toLowerCase() : text);
  let ranges = [];
  let current = -1;
  const mark = (name, found) => {
    if (CSS.highlights) CSS.highlights.set(name, new Highlight(...found));
  };
  const tell = () => {
    const count = ranges.length.toLocaleString("en-US");
    const found = current < 0 ? count : `${current + 1} of ${count}`;
    tally.textContent = search.value ? `${found} ${ranges.length === 1 ? "match" : "matches"}` : "";
    mark("found", ranges);
    mark("current", current < 0 ? [] : [ranges[current]]);
  };
  const rangesIn = (block, needle) => {
    const nodes = [];
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    let length = 0;
    while (walker.nextNode()) {
      nodes.push({ node: walker.currentNode, start: length });
      length += walker.currentNode.data.length;
    }
    const text = folded(block.textContent);
    const place = (at) => {
      let index = nodes.findIndex(({ node, start }) => at <= start + node.data.length);
      return [nodes[index].node, at - nodes[index].start];
    };
    const found = [];
    for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
      const range = new Range();
      range.setStart(...place(at));
      range.setEnd(...place(at + needle.length));
      found.push(range);
    }
    return found;
  };
  const find = () => {
    const needle = folded(search.value);
    ranges = needle ? [...document.querySelectorAll("article .text")].flatMap((block) => rangesIn(block, needle)) : [];
    current = -1;
    tell();
  };
  const step = (by) => {
    if (!ranges.length) return;
    current = current < 0 && by < 0 ? ranges.length - 1 : (current + by + ranges.length) % ranges.length;
    const element = ranges[current].startContainer.parentElement;
    const folds = element.closest("details");
    if (folds) folds.open = true;
    element.scrollIntoView({ block: "center" });
    tell();
  };
  search.addEventListener("input", find);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") search.blur();
      else return;
    } else if (event.key === "j") go(Math.floor(here()) + 1);
    else if (event.key === "k") go(Math.ceil(here()) - 1);
    else if (event.key === "c") colors.find((color) => !color.checked).click();
    else if (event.key === "/") search.select();
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const token = tokenAt(document.activeElement);
      const next = token && (event.key === "ArrowRight" ? token.nextElementSibling : token.previousElementSibling);
      if (!token) return;
      if (next) next.focus();
    } else return;
    event.preventDefault();
  });
})();
