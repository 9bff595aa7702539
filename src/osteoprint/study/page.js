"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");
const decode = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

/* A canvas with as many pixels as the screen has; returns true where its size changed. */
function fit(canvas) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width === width && canvas.height === height) return false;
  canvas.width = width;
  canvas.height = height;
  return true;
}

/* The map: one point per film pair. */
function startMap(chart) {
  const canvas = document.getElementById("map");
  const peek = document.getElementById("peek");
  const film = peek.querySelector(".film");
  const context = canvas.getContext("2d");
  const known = Math.max(...chart.bone.filter((_, i) => chart.kind[i] < 2)) + 1;
  const shortest = Math.min(...chart.mm), longest = Math.max(...chart.mm);
  film.style.backgroundImage = `url(${chart.sheet.src})`;
  let layout = "tsne", paint = "bone", active = Math.max(0, chart.kind.indexOf(2)), from = null, moved = 0;

  const place = (i) => {
    const size = Math.min(canvas.width, canvas.height), pad = size * 0.05;
    const at = (index, axis) => {
      const to = chart.places[layout][index][axis];
      const old = from ? chart.places[from][index][axis] : to;
      return old + (to - old) * moved;
    };
    return [
      (canvas.width - size) / 2 + pad + at(i, 0) * (size - 2 * pad),
      (canvas.height - size) / 2 + pad + (1 - at(i, 1)) * (size - 2 * pad),
    ];
  };
  const colour = (bone, alpha) => {
    if (paint === "bone") return `hsl(${chart.hues[bone]} 62% ${dark.matches ? 63 : 44}% / ${alpha})`;
    const share = (chart.mm[bone] - shortest) / Math.max(longest - shortest, 1e-9);
    const [r, g, b] = chart.lengths[Math.round(share * (chart.lengths.length - 1))];
    return `rgb(${r} ${g} ${b} / ${alpha})`;
  };
  const point = (i, unit) => {
    const [x, y] = place(i);
    const own = chart.bone[i] === chart.bone[active];
    const r = unit * (i === active ? 7.5 : own ? 5.6 : 4.4);
    const fill = colour(chart.bone[i], own ? 1 : 0.62);
    context.beginPath();
    if (chart.kind[i] === 2) {
      const d = r * 1.35;
      context.moveTo(x, y - d); context.lineTo(x + d, y); context.lineTo(x, y + d); context.lineTo(x - d, y);
      context.closePath();
    } else context.arc(x, y, r, 0, 2 * Math.PI);
    context.lineWidth = unit * 1.6;
    if (chart.kind[i] === 1) {
      context.strokeStyle = fill;
      context.stroke();
    } else {
      context.fillStyle = fill;
      context.fill();
    }
    if (chart.kind[i] === 2 || i === active) {
      context.strokeStyle = css("--ink");
      context.lineWidth = unit * (i === active ? 2.4 : 1.3);
      context.stroke();
    }
  };
  function draw() {
    fit(canvas);
    const unit = canvas.width / Math.max(canvas.clientWidth, 1);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const order = chart.kind.map((_, i) => i);
    const rank = (i) => (i === active ? 4 : chart.bone[i] === chart.bone[active] ? 3 : chart.kind[i]);
    order.sort((a, b) => rank(a) - rank(b)).forEach((i) => point(i, unit));
  }
  function show(i) {
    active = i;
    const sheet = chart.sheet, zoom = film.clientWidth / sheet.width;
    const rows = Math.ceil(chart.kind.length / sheet.columns);
    film.style.backgroundSize = `${sheet.columns * sheet.width * zoom}px ${rows * sheet.height * zoom}px`;
    film.style.backgroundPosition =
      `${-(i % sheet.columns) * sheet.width * zoom}px ${-Math.floor(i / sheet.columns) * sheet.height * zoom}px`;
    const bone = chart.bone[i];
    const kind = ["enrolled view", "new film", "a bone the network never saw"][chart.kind[i]];
    film.setAttribute("aria-label", `AP and ML film of ${chart.names[bone]}, ${chart.labels[i]}`);
    peek.querySelector("h3").textContent = chart.names[bone];
    peek.querySelector("p").textContent = `${kind}; ${chart.labels[i]}; bone of ${chart.mm[bone].toFixed(0)} mm`;
    draw();
  }
  function under(event) {
    const box = canvas.getBoundingClientRect();
    const ratio = canvas.width / box.width;
    const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
    let best = -1, least = (28 * ratio) ** 2;
    chart.kind.forEach((_, i) => {
      const [px, py] = place(i), far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) { least = far; best = i; }
    });
    if (best >= 0 && best !== active) show(best);
  }
  function glide(next) {
    from = layout; layout = next; moved = 0;
    const began = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = (now) => {
      const t = still ? 1 : Math.min(1, Math.max(0, now - began) / 700);
      moved = t * t * (3 - 2 * t);
      if (t < 1) requestAnimationFrame(step);
      else { from = null; moved = 1; }
      draw();
    };
    requestAnimationFrame(step);
  }
  canvas.addEventListener("pointermove", under);
  canvas.addEventListener("pointerdown", under);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show((active + step + chart.kind.length) % chart.kind.length);
  });
  document.querySelectorAll("[name=layout]").forEach((i) => i.addEventListener("change", () => glide(i.value)));
  document.querySelectorAll("[name=paint]").forEach((i) => i.addEventListener("change", () => { paint = i.value; draw(); }));
  new ResizeObserver(() => show(active)).observe(canvas);
  dark.addEventListener("change", draw);
  show(active);
}

/* Surfaces: one WebGL context draws for every stage; each stage keeps its own picture. */
const VERTEX = `
attribute vec3 at; attribute vec3 normal; attribute vec3 colour;
uniform mat3 turn; uniform vec2 zoom; uniform vec2 shift;
varying vec3 n; varying vec3 c;
void main() {
  vec3 p = turn * at;
  float w = 1.0 - 0.18 * p.z;
  n = turn * normal; c = colour;
  gl_Position = vec4(p.xy * zoom + shift * w, -0.45 * p.z, w);
}`;
const FRAGMENT = `
precision mediump float;
varying vec3 n; varying vec3 c;
uniform vec3 ghost; uniform float alpha;
void main() {
  vec3 m = normalize(n);
  if (m.z < 0.0) m = -m;
  if (alpha < 1.0) {
    float rim = pow(1.0 - m.z, 1.6);
    float a = mix(0.07, alpha, rim);
    gl_FragColor = vec4(ghost * a, a);
    return;
  }
  float key = max(dot(m, normalize(vec3(-0.45, 0.55, 0.75))), 0.0);
  float fill = max(dot(m, normalize(vec3(0.8, -0.2, 0.35))), 0.0);
  float shine = pow(max(dot(m, normalize(vec3(-0.25, 0.35, 0.95))), 0.0), 28.0);
  vec3 lit = c * (0.34 + 0.62 * key + 0.16 * fill) + 0.07 * shine;
  gl_FragColor = vec4(lit, 1.0);
}`;

function painter() {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl", { alpha: true, antialias: true });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  ["at", "normal", "colour"].forEach((name, i) => gl.bindAttribLocation(program, i, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  gl.getExtension("OES_element_index_uint");
  // Without its context nothing can be turned any more: the still pictures come back.
  canvas.addEventListener("webglcontextlost", () => {
    document.querySelectorAll(".stage").forEach((stage) => {
      stage.classList.remove("live");
      stage.querySelector("canvas").hidden = stage.querySelector(".signs").hidden = true;
    });
  });
  return { canvas, gl, uniform: (name) => gl.getUniformLocation(program, name) };
}

function normalsOf(at, faces) {
  const out = new Float32Array(at.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const u = [0, 1, 2].map((k) => at[b + k] - at[a + k]);
    const v = [0, 1, 2].map((k) => at[c + k] - at[a + k]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const i of [a, b, c]) for (let k = 0; k < 3; k++) out[i + k] += n[k];
  }
  for (let i = 0; i < out.length; i += 3) {
    const size = Math.hypot(out[i], out[i + 1], out[i + 2]) || 1;
    for (let k = 0; k < 3; k++) out[i + k] /= size;
  }
  return out;
}

/* Moves, each times its weight, are added to the packed vertices: a shape model's modes. */
function upload(gl, packed, colours, moves = [], weights = []) {
  const at = Float32Array.from(decode(packed.at, Int16Array), (v) => v / 32000);
  moves.forEach((move, m) => {
    if (weights[m]) move.forEach((v, i) => { at[i] += (weights[m] * v) / 32000; });
  });
  const faces = decode(packed.faces, packed.wide ? Uint32Array : Uint16Array);
  const paint = new Uint8Array(at.length);
  const far = packed.far ? decode(packed.far, Uint8Array) : null;
  for (let i = 0; i < at.length / 3; i++) {
    const spot = far ? (far[i] / 255) * (colours.length - 1) : 0;
    const low = Math.floor(spot), high = Math.min(low + 1, colours.length - 1);
    for (let k = 0; k < 3; k++)
      paint[3 * i + k] = far ? colours[low][k] + (colours[high][k] - colours[low][k]) * (spot - low) : [226, 218, 201][k];
  }
  const make = (target, data) => {
    const buffer = gl.createBuffer();
    gl.bindBuffer(target, buffer);
    gl.bufferData(target, data, gl.STATIC_DRAW);
    return buffer;
  };
  return {
    buffers: [at, normalsOf(at, faces), paint].map((d) => make(gl.ARRAY_BUFFER, d)),
    faces: make(gl.ELEMENT_ARRAY_BUFFER, faces),
    count: faces.length,
    kind: packed.wide ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT,
  };
}

function drawBody(brush, body, alpha) {
  const { gl } = brush;
  body.buffers.forEach((buffer, i) => {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(i);
    gl.vertexAttribPointer(i, 3, i === 2 ? gl.UNSIGNED_BYTE : gl.FLOAT, i === 2, 0, 0);
  });
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, body.faces);
  gl.uniform1f(brush.uniform("alpha"), alpha);
  gl.drawElements(gl.TRIANGLES, body.count, body.kind, 0);
}

function drawGhost(brush, body) {
  const { gl } = brush;
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.depthMask(false);
  drawBody(brush, body, 0.75);
  gl.depthMask(true);
  gl.disable(gl.BLEND);
}

/* Anatomical axes (up the shaft, outwards, forwards) seen from the front, then turned. */
function turning(yaw, pitch) {
  const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  const right = [0, -cy, sy], towards = [0, sy, cy];
  const up = [cp, 0, 0].map((v, k) => v - sp * towards[k]);
  const near = [sp, 0, 0].map((v, k) => v + cp * towards[k]);
  return [0, 1, 2].flatMap((k) => [right[k], up[k], near[k]]);
}

function startStage(stage, brush, solid, colours, wait) {
  const { gl } = brush;
  const canvas = stage.querySelector("canvas");
  const context = canvas.getContext("2d");
  const card = stage.closest(".shape");
  const signs = stage.querySelector(".signs");
  const rest = { yaw: -0.5, pitch: 0.1, zoom: 1, x: 0, y: 0 };
  const moves = (solid.moves || []).map((move) => decode(move, Int16Array));
  const weights = moves.map(() => 0);
  let pose = { ...rest }, mode = solid.truth ? "beside" : "match", paint = "far", bodies = null, asked = false;
  function draw() {
    asked = false;
    if (gl.isContextLost()) return;
    fit(canvas);
    bodies ??= {
      truth: solid.truth ? upload(gl, solid.truth, colours) : null,
      far: upload(gl, solid.match, colours, moves, weights),
      sure: solid.match.sure ? upload(gl, { ...solid.match, far: solid.match.sure }, colours) : null,
    };
    const match = (paint === "sure" && bodies.sure) || bodies.far;
    const { width, height } = canvas;
    if (brush.canvas.width !== width || brush.canvas.height !== height) Object.assign(brush.canvas, { width, height });
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix3fv(brush.uniform("turn"), false, turning(pose.yaw, pose.pitch));
    gl.uniform3fv(brush.uniform("ghost"), css("--ghost").split(",").map((v) => v / 255));
    // Beside each other, both lean a little towards the middle of the stage.
    const split = mode === "beside", part = split ? Math.round(0.6 * width) : width;
    const view = (left) => {
      gl.viewport(left, 0, part, height);
      gl.uniform2f(brush.uniform("zoom"), (1.02 * pose.zoom * height) / part, 1.02 * pose.zoom);
      gl.uniform2f(brush.uniform("shift"), (pose.x * height) / part, pose.y);
    };
    view(0);
    if (split || mode === "truth") drawBody(brush, bodies.truth, 1);
    view(width - part);
    if (mode !== "truth") drawBody(brush, match, 1);
    if (split || mode === "both") drawGhost(brush, bodies.truth);
    signs.hidden = !split;
    context.clearRect(0, 0, width, height);
    context.drawImage(brush.canvas, 0, 0);
    stage.classList.add("live");
  }
  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  const turn = (dx, dy) => {
    pose.yaw += dx;
    pose.pitch = Math.min(1.55, Math.max(-1.55, pose.pitch + dy));
    redraw();
  };
  // Coming closer keeps the height under the pointer where it is (in units of half the stage).
  const magnify = (by, spot = 0) => {
    const zoom = Math.min(10, Math.max(0.6, pose.zoom * by));
    pose.y = spot - ((spot - pose.y) * zoom) / pose.zoom;
    pose.zoom = zoom;
    redraw();
  };
  const move = (dx, dy) => { pose.x += dx; pose.y += dy; redraw(); };
  const unit = () => 2 / Math.max(canvas.clientHeight, 1);
  const spotOf = (e) => 1 - e.offsetY * unit();
  const fingers = new Map();
  canvas.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, e); canvas.setPointerCapture(e.pointerId); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => fingers.delete(e.pointerId));
  canvas.addEventListener("pointermove", (e) => {
    const old = fingers.get(e.pointerId);
    if (!old) return;
    const [dx, dy] = [e.clientX - old.clientX, e.clientY - old.clientY];
    const other = [...fingers.values()].find((f) => f.pointerId !== e.pointerId);
    if (other) {
      const apart = (f) => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY) || 1;
      magnify(apart(e) / apart(old), spotOf(e));
      move((dx * unit()) / 2, (-dy * unit()) / 2);
    } else if (e.shiftKey) move(dx * unit(), -dy * unit());
    else turn(dx * 0.009, dy * 0.009);
    fingers.set(e.pointerId, e);
  });
  // The wheel scrolls the page until the stage has been clicked.
  canvas.addEventListener("wheel", (e) => {
    if (document.activeElement !== canvas && !e.ctrlKey) return;
    e.preventDefault();
    magnify(Math.exp(-e.deltaY * 0.0015), spotOf(e));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { pose = { ...rest }; redraw(); });
  canvas.addEventListener("keydown", (e) => {
    const moves = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, -0.12], ArrowDown: [0, 0.12] };
    const step = moves[e.key];
    if (step && e.shiftKey) move(step[0], -step[1]);
    else if (step) turn(...step);
    else if (e.key === "+" || e.key === "=") magnify(1.15);
    else if (e.key === "-") magnify(1 / 1.15);
    else if (e.key === "0") { pose = { ...rest }; redraw(); }
    else return;
    e.preventDefault();
  });
  card.querySelectorAll("fieldset input").forEach((i) => i.addEventListener("change", () => {
    if (i.name.startsWith("paint-")) paint = i.value; else mode = i.value;
    redraw();
  }));
  card.querySelectorAll("[type=range]").forEach((slider) => slider.addEventListener("input", () => {
    weights[slider.dataset.mode] = Number(slider.value);
    if (bodies) [...bodies.far.buffers, bodies.far.faces].forEach((buffer) => gl.deleteBuffer(buffer));
    bodies = null;
    redraw();
  }));
  new ResizeObserver(() => { if (bodies) redraw(); }).observe(canvas);
  dark.addEventListener("change", redraw);
  canvas.hidden = false;
  card.querySelector(".under[hidden]").hidden = false;
  setTimeout(draw, wait);
}

startMap(DATA.map);
const brush = painter();
// One stage after the other, so that the page can be read meanwhile.
if (brush) document.querySelectorAll(".stage").forEach((stage, i) => {
  startStage(stage, brush, DATA.solids.bones[i], DATA.solids.colours, 40 * i);
});
