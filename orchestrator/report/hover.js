"use strict";
// The values under the pointer. Each plot carries its data; nothing is fetched.
for (const plot of document.querySelectorAll(".plot")) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  const canvas = plot.querySelector(".canvas");
  const cursor = document.createElement("div");
  const tip = document.createElement("div");
  cursor.className = "cursor";
  tip.className = "tip";
  cursor.hidden = tip.hidden = true;
  canvas.append(cursor, tip);

  const show = (value, unit) => {
    const size = Math.abs(value);
    const [scale, prefix] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
    return Number((value / scale).toPrecision(4)) + prefix + (unit ? " " + unit : "");
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
  };
  const line = (text, color) => {
    const row = document.createElement("div");
    if (color) {
      const chip = document.createElement("i");
      chip.style.background = `var(${color})`;
      row.append(chip);
    }
    row.append(text);
    return row;
  };

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const place = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const [first, last] = data.x;
    const found = data.series.map((one) => [one, nearest(one.points, first + place * (last - first))]);
    const at = found.reduce((best, [, point]) => {
      const distance = Math.abs((point[0] - first) / (last - first) - place);
      return distance < best[1] ? [point[0], distance] : best;
    }, [0, Infinity])[0];
    const left = ((at - first) / (last - first)) * box.width;
    cursor.style.left = `${left}px`;
    tip.replaceChildren(line(`${data.xName} ${show(at, data.xUnit)}`));
    for (const [one, point] of found) tip.append(line(`${one.name} ${show(point[1], data.yUnit)}`, one.color));
    cursor.hidden = tip.hidden = false;
    tip.style.left = `${left + tip.offsetWidth + 12 < box.width ? left + 12 : Math.max(0, left - tip.offsetWidth - 12)}px`;
  });
  canvas.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}
