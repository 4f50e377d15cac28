// Draws a confusion matrix from the counts in the element before this script: rows are the truth, colours the share of
// the true class's pixels. The pointer shows a cell's figures, a click the most frequent mistakes of its row.
"use strict";
(() => {
  const root = document.currentScript.parentElement.querySelector(".confusion");
  const data = JSON.parse(root.querySelector("script").textContent);
  const {names, totals, cells} = data;
  const wrong = new Array(names.length).fill(0);
  const rows = names.map(() => new Map());
  for (const [truth, predicted, count] of cells) {
    rows[truth].set(predicted, count);
    if (truth !== predicted) { wrong[truth] += count; wrong[predicted] += count; }
  }
  const make = (tag, text, parent) => {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const choice = (label, options) => {
    const select = make("select", "", make("label", label + " ", controls));
    options.forEach(([value, text]) => { make("option", text, select).value = value; });
    select.addEventListener("change", draw);
    return select;
  };
  const controls = make("p", "", root);
  const sizes = [20, 40].filter(n => n < names.length).map(n => [n, `${n} most confused`]);
  const count = choice("classes", [...sizes, [names.length, `all ${names.length}`]]);
  controls.append(" ");
  const order = choice("order", [["label", "of the labels"], ["wrong", "most confused first"], ["name", "by name"]]);
  const canvas = make("canvas", "", root);
  const note = make("p", "Point at a cell for its figures; click for the mistakes of its row.", root);
  const list = make("ul", "", root);
  let shown = [], cell = 1, left = 0, top = 0;

  const percent = (part, all) => (100 * part / all).toFixed(2) + " %";
  const short = name => name.split(",")[0].slice(0, 18);
  const line = (truth, predicted) => totals[truth]
    ? `truth ${names[truth]}, predicted ${names[predicted]}: ` +
      `${percent(rows[truth].get(predicted) || 0, totals[truth])} of the class, ` +
      `${(rows[truth].get(predicted) || 0).toLocaleString("en")} pixels`
    : `truth ${names[truth]}: no pixels`;

  function draw() {
    const most = names.map((_, k) => k).sort((a, b) => wrong[b] - wrong[a] || a - b).slice(0, +count.value);
    const by = {label: (a, b) => a - b, name: (a, b) => names[a].localeCompare(names[b])}[order.value];
    shown = by ? most.sort(by) : most;
    const width = Math.min(root.clientWidth || 380, 1000);
    const named = (width - 130) / shown.length >= 11;
    left = top = named ? 130 : 0;
    cell = Math.min(30, Math.max(2, (width - left) / shown.length));
    const scale = window.devicePixelRatio || 1;
    const side = left + cell * shown.length;
    canvas.width = canvas.height = side * scale;
    canvas.style.width = canvas.style.height = side + "px";
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "12px sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    shown.forEach((truth, y) => {
      shown.forEach((predicted, x) => {
        const share = totals[truth] ? (rows[truth].get(predicted) || 0) / totals[truth] : -1;
        // The square root shows a few per cent as well as the nearly full diagonal.
        const level = Math.sqrt(Math.max(share, 0));
        const hue = truth === predicted ? "210 60%" : "0 75%";
        pen.fillStyle = share < 0 ? "#ddd" : `hsl(${hue} ${97 - 55 * level}%)`;
        pen.fillRect(left + x * cell, top + y * cell, Math.max(cell - 0.5, 1), Math.max(cell - 0.5, 1));
      });
      if (!named) return;
      pen.fillStyle = "#222";
      pen.fillText(short(names[truth]), left - 5, top + (y + 0.5) * cell);
      pen.save();
      pen.translate(left + (y + 0.5) * cell, top - 5);
      pen.rotate(Math.PI / 2);
      pen.fillText(short(names[truth]), 0, 0);
      pen.restore();
    });
  }
  const at = event => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - left) / cell);
    const y = Math.floor((event.clientY - box.top - top) / cell);
    return x >= 0 && y >= 0 && x < shown.length && y < shown.length ? [shown[y], shown[x]] : null;
  };
  canvas.addEventListener("pointermove", event => {
    const pair = at(event);
    if (pair) note.textContent = line(...pair);
  });
  canvas.addEventListener("click", event => {
    const pair = at(event);
    if (!pair) return;
    note.textContent = line(...pair);
    const others = [...rows[pair[0]]].filter(([predicted]) => predicted !== pair[0]).sort((a, b) => b[1] - a[1]);
    list.replaceChildren();
    others.slice(0, 8).forEach(([predicted]) => make("li", line(pair[0], predicted), list));
  });
  window.addEventListener("resize", draw);
  draw();
})();
