// The routing map: which network enlarges which patch (docs/stdo.md), and few rectangles that cover a network's patches.

/** The maps of all frames: a list of Uint8Array of rows * columns labels. */
export async function unpackRouting(packed, rows, columns, networks) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const depth = 32 - Math.clz32(networks - 1);
  const plane = Math.ceil((rows * columns) / 8);
  const maps = [];
  let previous = new Uint8Array(rows * columns);
  for (let start = 0; start + depth * plane <= bytes.length; start += depth * plane) {
    const labels = new Uint8Array(rows * columns);
    for (let n = 0; n < labels.length; n++) {
      let change = 0;
      for (let bit = 0; bit < depth; bit++)
        change = (change << 1) | ((bytes[start + bit * plane + (n >> 3)] >> (7 - (n & 7))) & 1);
      labels[n] = previous[n] ^ change;
      if (labels[n] >= networks) throw new Error(`routing.bin names network ${labels[n]} of ${networks}: it is damaged.`);
    }
    maps.push(labels);
    previous = labels;
  }
  return maps;
}

/** Rectangles [top, left, bottom, right] of pixels that cover the patches of network m, each patch by exactly one. */
export function boxesOf(labels, m, { rows, columns, patch_width: pw, patch_height: ph, width, height }) {
  const done = [];
  let open = new Map(); // "first,past" column of a run -> row where it began
  for (let i = 0; i <= rows; i++) {
    const runs = new Set();
    for (let j = 0, first = -1; i < rows && j <= columns; j++) {
      const mine = j < columns && labels[i * columns + j] === m;
      if (mine && first < 0) first = j;
      if (!mine && first >= 0) { runs.add(`${first},${j}`); first = -1; }
    }
    for (const [run, row] of open)
      if (!runs.has(run)) {
        const [first, past] = run.split(",").map(Number);
        done.push([row * ph, first * pw, Math.min(i * ph, height), Math.min(past * pw, width)]);
      }
    open = new Map([...runs].map((run) => [run, open.get(run) ?? i]));
  }
  return done;
}
