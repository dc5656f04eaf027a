"use strict";
// What a model or a corpus wrote is only ever shown as text.
(() => {
  const field = (name) => document.getElementById(name);
  const form = field("ask");
  const buttons = [...form.querySelectorAll("button:not(:disabled)")];
  const status = field("status");
  const answer = field("answer");

  const element = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = name;
    made.dir = "auto";
    return made;
  };
  const neighbor = (found, rank) => {
    const section = document.createElement("section");
    const note = element("p", `, chunk ${found.chunk.toLocaleString("en-US")}`, "note");
    note.prepend(element("bdi", found.document));
    const text = element("pre");
    text.append(found.text, element("span", found.continuation, "continuation"));
    section.append(element("h3", `Neighbor ${rank}, distance ${found.distance.toFixed(3)}`), note, text);
    return section;
  };
  // A text beside its neighbors, nearest first.
  const row = (title, text, neighbors, none) => {
    const made = element("article", "", "row");
    const own = document.createElement("section");
    const beside = element("div", "", "found");
    own.append(element("h3", title), text);
    beside.append(...neighbors.map((found, place) => neighbor(found, place + 1)));
    if (!neighbors.length) beside.append(element("p", none, "note"));
    made.append(own, beside);
    return made;
  };

  const search = (content) =>
    content.neighbors.map((neighbors, place) => {
      const count = content.chunks[place].length;
      const title = count === 1 ? "Searched for" : `Searched for, in ${count} chunks`;
      return row(title, element("pre", content.chunks[place].join("")), neighbors, "Nothing was found.");
    });
  const generate = (content) =>
    content.texts.flatMap((written) =>
      written.stretches.map((stretch, place) => {
        const text = element("pre", stretch.prompt);
        text.append(element("span", stretch.text, "new"));
        return row(`Part ${place + 1}`, text, stretch.neighbors, "Nothing was retrieved for it.");
      }),
    );

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const task = event.submitter ? event.submitter.value : buttons[0].value;
    const text = field("text").value;
    const number = (name) => Number(field(name).value);
    const body =
      task === "search"
        ? { query: text, n_docs: Math.max(1, number("k")) }
        : { prompt: text, k: number("k"), max_tokens: number("tokens"), temperature: number("temperature"), seed: number("seed") };
    for (const button of buttons) button.disabled = true;
    answer.replaceChildren();
    status.className = "note";
    status.textContent = "Working ...";
    const begun = performance.now();
    try {
      const response = await fetch(`/${task}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      const content = await response.json();
      if (!response.ok) throw new Error(content.error);
      answer.append(...(task === "search" ? search(content) : generate(content)));
      const seconds = ((performance.now() - begun) / 1000).toFixed(2);
      const count = task === "search" ? "" : `${content.texts[0].tokens} tokens (${content.texts[0].finish_reason}), `;
      status.textContent = `${count}${seconds} s`;
    } catch (error) {
      status.className = "error";
      status.textContent = error.message;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
})();
