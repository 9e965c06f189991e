"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = new Map();
  const owners = new Map(); // key path of a tensor to the part that holds it
  const homes = new Map(); // key path of a part to the block in whose box it is drawn
  const boxes = new Map(); // key path to its box, once drawn
  const diagrams = new Set(); // what is open, for its edges
  // Maps, since names of a model may be those of an object's own members (constructor, __proto__).
  const diagramItems = new Map(Object.entries(data.diagrams));
  const classLines = new Map(Object.entries(data.classes));
  const sourceLines = data.source.split("\n");
  const canvas = document.getElementById("canvas");
  const details = document.getElementById("details");
  let chosen = null;

  // Text of the model is shown as text only; what would reorder or hide it is spelled out.
  const visible = (text) =>
    text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g,
      (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"));

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = visible(text);
    return made;
  }

  function button(className, action) {
    const made = element("button", className);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  }

  const short = (number) => {
    for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (number >= size) return Number((number / size).toPrecision(3)) + unit;
    return String(number);
  };
  const shapeText = (shape) => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const asPython = (path) =>
    "model" + path.split(".").filter(Boolean).map((name) => (/^\d+$/.test(name) ? `[${name}]` : `.${name}`)).join("");
  const lastName = (path) => path.slice(path.lastIndexOf(".") + 1);
  const within = (path, block) => block === "" || path === block || path.startsWith(block + ".");
  const nameIn = (path, block) => (block !== "" && within(path, block) ? path.slice(block.length + 1) : path);

  // What there is.

  function remember(part, block) {
    parts.set(part.path, part);
    for (const tensor of part.tensors || []) owners.set(tensor.path, part.path);
    if (part.path !== "" && !homes.has(part.path)) homes.set(part.path, block);
    const inner = diagramItems.has(part.path) ? part.path : block;
    for (const child of part.children || []) remember(child, inner);
  }

  for (const [path, items] of diagramItems)
    for (const item of items) if (item.path && !homes.has(item.path)) homes.set(item.path, path);
  const drawn = new Set(homes.keys());
  remember(data.root, "");

  // Layers and tensors that no box of a diagram stands for.
  function undrawn(part) {
    if (drawn.has(part.path)) return [];
    if (!part.children) return [part];
    return part.children.flatMap(undrawn);
  }

  // Boxes.

  function box(kind, title, note, path, choose, inside, level) {
    const made = element("div", `box ${kind}`);
    const head = element("div", "head");
    made.append(head);
    if (inside) {
      const toggle = button("toggle", () => open(made, toggle.getAttribute("aria-expanded") !== "true"));
      toggle.setAttribute("aria-expanded", "false");
      toggle.setAttribute("aria-label", visible(`Open or close ${title}`));
      made.fill = inside;
      made.toggle = toggle;
      head.append(toggle);
    }
    const name = button("name", () => pick(made, choose));
    name.append(element("span", "title", title), element("span", "note", note));
    head.append(name);
    made.choose = choose;
    if (path !== undefined && !boxes.has(path)) boxes.set(path, made);
    if (inside && level < 2) open(made, true);
    return made;
  }

  function open(made, wanted) {
    if (!made.toggle) return;
    if (wanted && !made.inside) {
      made.inside = element("div", "inside");
      made.append(made.inside);
      made.fill(made.inside);
    }
    if (made.inside) made.inside.hidden = !wanted;
    made.toggle.setAttribute("aria-expanded", String(wanted));
    redrawSoon();
  }

  function pick(made, choose) {
    if (chosen) chosen.classList.remove("chosen");
    chosen = made;
    made.classList.add("chosen");
    choose();
    redrawSoon();
  }

  function partBox(part, title, outputs, nodes, level) {
    const block = part.kind === "block";
    const note = [part.class, (outputs || part.outputs || []).filter(Boolean).join(", "),
      part.parameters ? `${short(part.parameters)} parameters` : ""].filter(Boolean).join(" \u00b7 ");
    const inside = block ? (target) => fillBlock(target, part, level) : null;
    return box(part.kind, title, note, part.path, () => showPart(part, nodes), inside, level);
  }

  function itemBox(item, block, level) {
    if (item.path && parts.has(item.path))
      return partBox(parts.get(item.path), nameIn(item.path, block.path), item.outputs, item.nodes, level + 1);
    return box(item.kind, item.label, (item.outputs || []).filter(Boolean).join(", "), undefined, () => showItem(item), null, 0);
  }

  function fillBlock(target, part, level) {
    const items = diagramItems.get(part.path);
    if (items) target.append(diagram(items, part, level));
    const fields = (part.children || []).flatMap(undrawn);
    if (!fields.length) return;
    const list = element("div", "fields");
    list.append(element("h3", "", "Fields that operators read"));
    for (const field of fields) list.append(partBox(field, nameIn(field.path, part.path), null, [], level + 1));
    target.append(list);
  }

  // Diagrams: rows by the longest way from an input, edges in the gaps between them.

  function diagram(items, part, level) {
    const made = element("div", "diagram");
    const rows = [];
    made.items = items;
    made.boxes = items.map((item) => itemBox(item, part, level));
    made.rowOf = [];
    items.forEach((item, position) => {
      const last = item.kind === "output" ? rows.length : 0;
      const row = Math.max(last, ...(item.reads || []).map((from) => made.rowOf[from] + 1));
      made.rowOf.push(row);
      while (rows.length <= row) rows.push(element("div", "row"));
      rows[row].append(made.boxes[position]);
    });
    made.lanes = lanes(made);
    made.style.paddingRight = `${14 + 9 * (Math.max(-1, ...made.lanes.values()) + 1)}px`;
    made.rows = rows;
    made.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.svg.setAttribute("aria-hidden", "true");
    made.append(made.svg, ...rows);
    diagrams.add(made);
    resized.observe(made);
    return made;
  }

  // Edges that pass rows run beside them, each in a lane that is free there.
  function lanes(made) {
    const found = new Map();
    const ends = [];
    made.items.forEach((item, to) => {
      for (const from of item.reads || []) {
        if (made.rowOf[to] - made.rowOf[from] < 2 || found.has(from)) continue;
        const last = Math.max(...made.items.map((other, row) => ((other.reads || []).includes(from) ? made.rowOf[row] : 0)));
        let lane = ends.findIndex((end) => end <= made.rowOf[from]);
        if (lane < 0) lane = ends.length;
        ends[lane] = last;
        found.set(from, lane);
      }
    });
    return found;
  }

  function draw(made) {
    if (!made.offsetParent) return;
    const frame = made.getBoundingClientRect();
    const place = (node) => {
      const area = node.getBoundingClientRect();
      return { x: area.left - frame.left + area.width / 2, top: area.top - frame.top, bottom: area.bottom - frame.top };
    };
    const rows = made.rows.map(place);
    const spots = made.boxes.map(place);
    const shapes = [];
    made.items.forEach((item, to) => {
      for (const from of item.reads || []) {
        const [a, b] = [spots[from], spots[to]];
        const [low, high] = [rows[made.rowOf[from]].bottom, rows[made.rowOf[to]].top];
        let line;
        if (made.rowOf[to] - made.rowOf[from] < 2) {
          const middle = (low + b.top) / 2;
          line = `M${a.x} ${a.bottom} L${a.x} ${low} C${a.x} ${middle} ${b.x} ${middle} ${b.x} ${b.top - 4}`;
        } else {
          const lane = made.lanes.get(from);
          const x = frame.width - 8 - 9 * lane;
          line = `M${a.x} ${a.bottom} V${low + 8 + (lane % 3) * 3} H${x} V${high - 14 + (lane % 3) * 3} H${b.x} V${b.top - 4}`;
        }
        const hot = chosen !== null && (made.boxes[from] === chosen || made.boxes[to] === chosen);
        shapes.push([hot, line, `M${b.x - 4} ${b.top - 6} L${b.x + 4} ${b.top - 6} L${b.x} ${b.top} Z`]);
      }
    });
    shapes.sort((one, other) => one[0] - other[0]);
    made.svg.replaceChildren(...shapes.flatMap(([hot, line, tip]) => [path(hot ? "edge hot" : "edge", line), path("tip", tip)]));
  }

  function path(className, line) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "path");
    made.setAttribute("class", className);
    made.setAttribute("d", line);
    return made;
  }

  let waiting = false;
  function redrawSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const made of diagrams) draw(made);
    });
  }
  const resized = new ResizeObserver(redrawSoon);

  // Details.

  function section(title, ...content) {
    if (content.length) details.append(element("h3", "", title), ...content);
  }

  function list(texts) {
    const made = element("ul");
    for (const text of texts) made.append(element("li", "", text));
    return made;
  }

  function showPart(part, nodes) {
    details.replaceChildren(element("h2", "", part.path || "Model"), element("code", "", asPython(part.path)));
    const facts = [part.class, part.parameters ? `${part.parameters.toLocaleString("en")} parameters` : "",
      ...(part.outputs || []).map((shape) => `returns ${shape}`)].filter(Boolean);
    details.append(element("p", "", facts.join(", ")));
    if (part.made_by) section("Constructor", element("pre", "", part.made_by));
    const tensors = tensorsOf(part);
    if (tensors.length) section(`Weights (${tensors.length})`, weights(tensors));
    const names = part.kind === "block" ? nodesOf(part.path) : nodes || [];
    if (names.length) section(`ONNX nodes (${names.length})`, list(names));
    const range = part.kind === "block" ? classLines.get(part.class) : null;
    if (range) section(`class ${part.class}`, element("pre", "", sourceLines.slice(range[0], range[1]).join("\n")));
  }

  function showItem(item) {
    details.replaceChildren(element("h2", "", item.label), element("p", "", (item.outputs || []).filter(Boolean).join(", ")));
    if ((item.nodes || []).length) section("ONNX nodes", list(item.nodes));
  }

  const tensorsOf = (part) => [...(part.tensors || []), ...(part.children || []).flatMap(tensorsOf)];

  function nodesOf(block) {
    return (diagramItems.get(block) || []).flatMap((item) =>
      item.kind === "block" ? nodesOf(item.path) : item.nodes || []);
  }

  function weights(tensors) {
    const table = element("table");
    const head = element("tr");
    for (const title of ["Key path, initializer", "Shape", "Dtype", "Role"]) {
      const cell = element("th", "", title);
      cell.scope = "col";
      head.append(cell);
    }
    table.append(head);
    for (const tensor of tensors) {
      const row = element("tr");
      const name = element("td", "", tensor.path);
      name.append(element("span", "note", tensor.initializer));
      row.append(name, ...[shapeText(tensor.shape), tensor.dtype, tensor.role].map((text) => element("td", "short", text)));
      table.append(row);
    }
    return table;
  }

  // Search.

  const query = document.getElementById("query");
  const results = document.getElementById("results");
  const known = [...parts.keys(), ...owners.keys()].filter(Boolean);

  function search() {
    const text = query.value.trim().toLowerCase();
    const found = text ? known.filter((name) => name.toLowerCase().includes(text)) : [];
    const rows = [...new Set(found)].slice(0, 60).map((name) => {
      const row = element("li");
      const choice = button("", () => reveal(name));
      choice.textContent = visible(name);
      row.append(choice);
      return row;
    });
    if (text && !rows.length) rows.push(element("li", "", "No key path holds this text."));
    results.replaceChildren(...rows);
    results.hidden = !text;
  }

  // A tuple has no box: the first of its members has.
  function drawnAs(name) {
    const tuple = parts.get(name).kind === "tuple";
    return tuple ? [...homes.keys()].find((path) => within(path, name) && parts.get(path).kind !== "tuple") || name : name;
  }

  function reveal(name) {
    results.hidden = true;
    show("diagram");
    const wanted = drawnAs(owners.get(name) || name);
    const around = [];
    for (let block = homes.get(wanted); block !== undefined; block = homes.get(block)) {
      around.unshift(block);
      if (block === "") break;
    }
    for (const block of around) if (boxes.has(block)) open(boxes.get(block), true);
    const made = boxes.get(wanted);
    if (!made) return showPart(parts.get(wanted), []);
    pick(made, made.choose);
    made.scrollIntoView({ block: "center", inline: "center" });
    made.querySelector(".name").focus({ preventScroll: true });
    if (parts.has(name) && name !== wanted) showPart(parts.get(name), []);
  }

  query.addEventListener("input", search);
  query.addEventListener("keydown", (event) => {
    if (event.key === "Escape") results.hidden = true;
    if (event.key === "Enter" && results.querySelector("button")) results.querySelector("button").click();
    if (event.key === "ArrowDown" && results.querySelector("button")) results.querySelector("button").focus();
  });
  results.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (event.key === "Escape") { results.hidden = true; query.focus(); }
    if (!step) return;
    event.preventDefault();
    const next = event.target.parentElement[step];
    (next ? next.firstElementChild : query).focus();
  });

  // Views.

  const views = ["diagram", "source"];
  function show(view) {
    for (const name of views) {
      document.getElementById(`tab-${name}`).setAttribute("aria-selected", String(name === view));
      document.getElementById(`view-${name}`).hidden = name !== view;
    }
    redrawSoon();
  }
  for (const name of views) document.getElementById(`tab-${name}`).addEventListener("click", () => show(name));

  // Boxes appear as their blocks open, so this goes on until nothing new does.
  function openAll() {
    let before;
    do {
      before = diagrams.size;
      for (const made of document.querySelectorAll(".box")) open(made, true);
    } while (diagrams.size > before);
  }
  document.getElementById("open-all").addEventListener("click", openAll);
  document.getElementById("close-all").addEventListener("click", () => {
    for (const made of document.querySelectorAll(".box .box")) open(made, false);
  });

  document.title = visible(data.name);
  document.getElementById("name").textContent = visible(data.name);
  document.getElementById("summary").append(...data.summary.map((text) => element("li", "", text)));
  document.getElementById("source").textContent = visible(data.source);
  canvas.append(partBox(data.root, "Model", null, [], 0));
  const view = document.getElementById("view-diagram");
  view.scrollLeft = (view.scrollWidth - view.clientWidth) / 2;
  redrawSoon();
})();
