// The B-scan viewer: draws one volume of the page's data at a time and follows the controls.
"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const part = Object.fromEntries(
    [...viewer.querySelectorAll("[data-part]")].map((element) => [element.dataset.part, element]));
  const texts = [...document.querySelectorAll("script[data-viewer-volume]")];
  const KEYS = { l: "layers", h: "heat", a: "annotation" };
  const shown = { layers: true, heat: true, annotation: true };
  const NOTCH_PX = 40; // less than any mouse's; a touchpad sends many small ones
  let volume, place = 0, turned = 0;

  const rounded = (number) => Number(number.toPrecision(3));
  const picture = (data) => `data:image/webp;base64,${data}`;
  const bscan = () => volume.bscans[place];
  const highest = () => volume.bscans.reduce(
    (best, one, i) => ((one.max_score ?? -Infinity) > (volume.bscans[best].max_score ?? -Infinity) ? i : best), 0);

  function open(number) {
    volume = JSON.parse(texts[number].textContent);
    part.volume.value = number;
    part.slider.max = volume.bscans.length - 1;
    part.stage.style.setProperty("--ratio", volume.width / volume.height);
    part.drawing.setAttribute("viewBox", `0 0 ${volume.width} ${volume.height}`);
    part.gray.alt = `B-scan of volume ${volume.volume}`;
    part.layers.disabled = !volume.bscans.some((one) => Object.values(one.layers).some((lines) => lines.length));
    part.annotation.disabled = !volume.bscans.some((one) => one.outlines.length);
    const kinds = ["residual", "score"].filter((kind) => volume.bscans.some((one) => one[kind]));
    part.heat.disabled = !kinds.length;
    part.kind.disabled = kinds.length < 2;
    if (kinds.length && !kinds.includes(part.kind.value)) part.kind.value = kinds[0];
    measure();
    go(highest());
  }

  // The bar: its width and height stand for lengths that are written beside it.
  function measure() {
    const [apart, deep, wide] = volume.spacing_um;
    part.bar.style.width = `${100 * 500 / (wide * volume.width)}%`;
    part.bar.style.height = `${100 * 200 / (deep * volume.height)}%`;
    part.bar.textContent = "500 µm wide, 200 µm deep";
    const front = (volume.width * wide) / (volume.n_bscans * apart);
    part.enface.style.setProperty("--ratio", Math.min(Math.max(front || 1, 0.5), 4));
  }

  function go(to) {
    place = Math.min(Math.max(to, 0), volume.bscans.length - 1);
    part.slider.value = place;
    draw();
  }

  function draw() {
    const one = bscan(), kind = part.kind.value, heat = one[kind];
    part.gray.src = picture(one.gray);
    part.heatmap.hidden = !(shown.heat && heat);
    if (heat) part.heatmap.src = picture(heat);
    const lines = [];
    if (shown.layers) {
      for (const [name, pieces] of Object.entries(one.layers)) {
        for (const points of pieces) lines.push(line("polyline", name, points));
      }
    }
    if (shown.annotation) for (const points of one.outlines) lines.push(line("polygon", "outline", points));
    part.drawing.replaceChildren(...lines);
    for (const name of Object.values(KEYS)) {
      part[name].setAttribute("aria-pressed", String(shown[name] && !part[name].disabled));
    }
    const map = volume.enface[kind];
    part.front.hidden = !map;
    part.front.parentElement.classList.toggle("alone", !map);
    if (map) part.enfacemap.src = picture(map);
    part.line.style.top = `${100 * (1 - (one.place + 0.5) / volume.n_bscans)}%`;
    const [low, high] = volume.scale[kind] ?? [];
    part.scale.hidden = low === undefined;
    if (low !== undefined) part.scale.textContent = `${kind} (${volume.method}) from ${rounded(low)} to ${rounded(high)} and above`;
    tell(one, heat, kind);
  }

  function line(shape, name, points) {
    const element = document.createElementNS(part.drawing.namespaceURI, shape);
    element.setAttribute("class", name);
    element.setAttribute("points", points.map((point) => point.join(",")).join(" "));
    return element;
  }

  function tell(one, heat, kind) {
    const where = `B-scan ${one.place} (0 to ${volume.n_bscans - 1})`;
    const score = one.max_score === null ? "no score" : `highest score ${rounded(one.max_score)}`;
    const on = [];
    if (shown.layers && !part.layers.disabled) on.push("layers");
    if (shown.heat && heat) on.push(`heat map of the ${kind}`);
    if (shown.annotation && one.outlines.length) on.push("annotation");
    part.slider.setAttribute("aria-valuetext", where);
    part.status.textContent = `${where}, ${score}. Shown: ${on.join(", ") || "the scan alone"}.`;
  }

  function toggle(name) {
    if (part[name].disabled) return;
    shown[name] = !shown[name];
    draw();
  }

  const turn = {
    ArrowLeft: () => go(place - 1),
    ArrowRight: () => go(place + 1),
    Home: () => go(0),
    End: () => go(volume.bscans.length - 1),
    t: () => go(highest()),
  };
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (KEYS[key]) toggle(KEYS[key]);
    else if (turn[key]) turn[key]();
    else return;
    event.preventDefault();
  });
  for (const name of Object.values(KEYS)) part[name].addEventListener("click", () => toggle(name));
  part.previous.addEventListener("click", () => go(place - 1));
  part.next.addEventListener("click", () => go(place + 1));
  part.top.addEventListener("click", () => go(highest()));
  part.slider.addEventListener("input", () => go(Number(part.slider.value)));
  part.kind.addEventListener("change", draw);
  part.volume.addEventListener("change", () => open(Number(part.volume.value)));

  const focus = () => part.slider.focus({ preventScroll: true });
  part.stage.addEventListener("click", focus);
  part.stage.addEventListener("wheel", (event) => {
    if (!viewer.contains(document.activeElement) || event.ctrlKey) return;
    event.preventDefault();
    turned += event.deltaY;
    if (Math.abs(turned) < NOTCH_PX) return;
    go(place + Math.sign(turned));
    turned = 0;
  }, { passive: false });

  // A press on the map goes to the B-scan nearest to it; those left out of the page have no picture.
  function point(event) {
    const box = part.enface.getBoundingClientRect();
    const wanted = (1 - (event.clientY - box.top) / box.height) * volume.n_bscans - 0.5;
    const away = volume.bscans.map((one) => Math.abs(one.place - wanted));
    go(away.indexOf(Math.min(...away)));
  }
  part.enface.addEventListener("pointerdown", (event) => {
    part.enface.setPointerCapture(event.pointerId);
    point(event);
    focus();
    event.preventDefault();
  });
  part.enface.addEventListener("pointermove", (event) => {
    if (part.enface.hasPointerCapture(event.pointerId)) point(event);
  });

  for (const link of document.querySelectorAll("a[data-volume]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // following the link would take the focus away from the slider
      document.getElementById("scans").scrollIntoView();
      open(Number(link.dataset.volume));
      focus();
    });
  }
  viewer.hidden = false;
  open(Number(part.volume.value));
})();
