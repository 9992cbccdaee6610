
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const levels = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const levelOf = Object.fromEntries([...levels].map((c, i) => [c, i / (levels.length - 1)]));
const labelWidth = 118, rowHeight = 12, topHeight = 12, axisHeight = 18;
const cellWidth = Math.max(2, Math.floor(1152 / data.bins.length));
const shown = text => text.replace(/\n/g, "\u21b5").replace(/^ +$/, "\u2423");

function element(tag, parent, text) {
  const e = parent.appendChild(document.createElement(tag));
  if (text !== undefined) e.textContent = text;
  return e;
}

function select(title, groups, onchange) {
  const label = element("label", document.getElementById("controls"), title);
  const box = element("select", label);
  for (const [name, options] of groups) {
    const group = name ? element("optgroup", box) : box;
    if (name) group.label = name;
    for (const [value, text] of options) element("option", group, text).value = value;
  }
  box.onchange = onchange;
  return box;
}

// White, then from light to dark blue; the first step is already visible.
function shade(share) {
  if (share === 0) return null;
  const t = share ** .75, mix = (a, b) => Math.round(a + (b - a) * t);
  return `rgb(${mix(222, 8)},${mix(235, 48)},${mix(247, 107)})`;
}

function stepsOf(question) {
  const rows = [];
  data.steps.forEach((step, i) => { if (step[0] === question) rows.push(i); });
  return rows;
}

function drawAxes(paint, rows, height, places) {
  paint.font = "11px ui-monospace, 'DejaVu Sans Mono', monospace";
  paint.textAlign = "right";
  paint.textBaseline = "middle";
  rows.forEach((row, i) => {
    paint.fillStyle = data.steps[row][1] ? "#b3261e" : "#5d6775";
    paint.fillText(shown(data.steps[row][2]).slice(0, 15), labelWidth - 6,
                   topHeight + (i + .5) * rowHeight);
  });
  paint.fillStyle = "#b3261e";
  for (const bin of places) {
    const x = labelWidth + (bin + .5) * cellWidth;
    for (const [y, dy] of [[topHeight - 1, -7], [height + 1, 7]]) {
      paint.beginPath();
      paint.moveTo(x, y);
      paint.lineTo(x - 4, y + dy);
      paint.lineTo(x + 4, y + dy);
      paint.fill();
    }
  }
  const last = data.bins[data.bins.length - 1], tokens = last[0] + last[1];
  const width = data.bins[0][1];
  const every = [100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000].find(
      step => tokens / step <= 12) || 100000;
  paint.fillStyle = "#5d6775";
  paint.textAlign = "center";
  for (let position = 0; position < tokens; position += every) {
    const x = labelWidth + position / width * cellWidth;
    paint.fillRect(x, height, 1, 4);
    paint.fillText(position, Math.max(x, labelWidth + 4), height + 12);
  }
}

function drawMap(parent, policy, layer, question, title) {
  const panel = element("div", parent);
  panel.className = "panel";
  element("h3", panel, title);
  const rows = stepsOf(question), bins = data.bins.length, cells = policy.layers[layer];
  const height = topHeight + rows.length * rowHeight, width = labelWidth + bins * cellWidth + 30;
  const canvas = element("canvas", panel), scale = window.devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = (height + axisHeight) * scale;
  canvas.style.width = width + "px";
  const paint = canvas.getContext("2d");
  paint.scale(scale, scale);
  paint.fillStyle = "#f8f9fb";
  paint.fillRect(labelWidth, topHeight, bins * cellWidth, rows.length * rowHeight);
  rows.forEach((row, i) => {
    for (let bin = 0; bin < bins; ++bin) {
      const share = levelOf[cells[row * bins + bin]], colour = shade(share);
      if (!colour) continue;
      paint.fillStyle = colour;
      paint.fillRect(labelWidth + bin * cellWidth, topHeight + i * rowHeight, cellWidth,
                     rowHeight - 1);
    }
  });
  const places = data.places[question] || [];
  drawAxes(paint, rows, height, places);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${policy.name}, layer ${layer}: parts of the document read`);
  canvas.onmousemove = event => showTip(event, canvas, rows, cells);
  canvas.onmouseleave = () => { document.getElementById("tip").hidden = true; };
}

function showTip(event, canvas, rows, cells) {
  const tip = document.getElementById("tip"), box = canvas.getBoundingClientRect();
  const bin = Math.floor((event.clientX - box.left - labelWidth) / cellWidth);
  const row = rows[Math.floor((event.clientY - box.top - topHeight) / rowHeight)];
  tip.hidden = bin < 0 || bin >= data.bins.length || row === undefined;
  if (tip.hidden) return;
  const [first, count, text] = data.bins[bin];
  const share = Math.round(100 * levelOf[cells[row * data.bins.length + bin]]);
  tip.textContent = "";
  element("b", tip, `step \u201c${shown(data.steps[row][2])}\u201d: ${share} % of tokens ${first}` +
                    ` to ${first + count - 1}`);
  tip.append(text + "\u2026");
  tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
  const below = event.clientY + 18;
  tip.style.top = (below + tip.offsetHeight > window.innerHeight ?
                   event.clientY - tip.offsetHeight - 12 : below) + "px";
}

function draw() {
  const maps = document.getElementById("maps"), [kind, index] = view.value.split(":");
  maps.textContent = "";
  const question = Number(asked.value);
  if (kind === "policy") {
    const policy = data.policies[index];
    policy.layers.forEach((_, layer) => drawMap(maps, policy, layer, question, `Layer ${layer}`));
  } else {
    for (const policy of data.policies) drawMap(maps, policy, Number(index), question, policy.name);
  }
}

const layers = Array.from({length: data.layers}, (_, i) => [`layer:${i}`, `layer ${i}`]);
const view = select("Show", [
  ["All layers of", data.policies.map((policy, i) => [`policy:${i}`, policy.name])],
  ["All policies at", layers]], draw);
const asked = select("Question", [["", data.questions.map((text, i) => [i, shown(text)])]], draw);
if (data.policies.length > 0) draw();
