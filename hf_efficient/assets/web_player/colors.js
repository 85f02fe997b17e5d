// Frames of the stream as RGB levels, converted as the Python player does (docs/stdo.md, conversion 2): chroma is
// interpolated by the bicubic filter (a = -0.6, as swscale has it) from its siting (left), then the tagged matrix.

const ROWS = [[-0.028125, 0.240625, 0.871875, -0.084375], [-0.084375, 0.871875, 0.240625, -0.028125]];
const BETWEEN = [-0.075, 0.575, 0.575, -0.075];

const clamp = (value, most) => (value < 0 ? 0 : value > most ? most : value);

/** The planes of a VideoFrame in 4:2:0: {y, u, v: Uint8Array}, tightly packed; null where the browser hides them. */
export async function planesOf(frame, width, height) {
  if (frame.format !== "I420" && frame.format !== "NV12") return null;
  const rect = frame.visibleRect;
  if (rect.width !== width || rect.height !== height) return null;
  const [w, h] = [width / 2, height / 2];
  const bytes = new Uint8Array(frame.allocationSize());
  const layout = await frame.copyTo(bytes);
  const plane = (n, columns, rows, step = 1, first = 0) => {
    const { offset, stride } = layout[n];
    const out = new Uint8Array(columns * rows);
    for (let j = 0, k = 0; j < rows; j++)
      for (let i = 0, at = offset + j * stride + first; i < columns; i++, at += step) out[k++] = bytes[at];
    return out;
  };
  if (frame.format === "I420") return { y: plane(0, width, height), u: plane(1, w, h), v: plane(2, w, h) };
  return { y: plane(0, width, height), u: plane(1, w, h, 2, 0), v: plane(1, w, h, 2, 1) };
}

/** (h, w) of chroma to (height, width) of floats. */
export function enlargeChroma(plane, width, height) {
  const [w, h] = [width / 2, height / 2];
  const tall = new Float32Array(w * height);
  for (let y = 0; y < height; y++) {
    const taps = ROWS[y & 1];
    const first = (y >> 1) - (y & 1 ? 1 : 2);
    const rows = taps.map((_, n) => clamp(first + n, h - 1) * w);
    for (let x = 0, k = y * w; x < w; x++, k++)
      tall[k] = taps[0] * plane[rows[0] + x] + taps[1] * plane[rows[1] + x] + taps[2] * plane[rows[2] + x]
        + taps[3] * plane[rows[3] + x];
  }
  const out = new Float32Array(width * height);
  for (let y = 0, k = 0; y < height; y++) {
    const row = y * w;
    for (let x = 0; x < w; x++) {
      out[k++] = tall[row + x];
      out[k++] = BETWEEN[0] * tall[row + Math.max(x - 1, 0)] + BETWEEN[1] * tall[row + x]
        + BETWEEN[2] * tall[row + Math.min(x + 1, w - 1)] + BETWEEN[3] * tall[row + Math.min(x + 2, w - 1)];
    }
  }
  return out;
}

/** Planes to RGB levels, (3, height, width) as Uint8ClampedArray, rounded to nearest. color: of export.json. */
export function toRGB({ y, u, v }, width, height, color) {
  const size = width * height;
  const rgb = new Uint8ClampedArray(3 * size);
  const [cb, cr] = [enlargeChroma(u, width, height), enlargeChroma(v, width, height)];
  const { red, blue, full_range: full } = color;
  const green = 1 - red - blue;
  const [black, luma, chroma] = full ? [0, 1, 1] : [16, 255 / 219, 255 / 224];
  const [rv, bu] = [2 * (1 - red) * chroma, 2 * (1 - blue) * chroma];
  const [gu, gv] = [(-2 * blue * (1 - blue) / green) * chroma, (-2 * red * (1 - red) / green) * chroma];
  for (let k = 0; k < size; k++) {
    const [level, b, r] = [luma * (y[k] - black), cb[k] - 128, cr[k] - 128];
    rgb[k] = level + rv * r;
    rgb[size + k] = level + gu * b + gv * r;
    rgb[2 * size + k] = level + bu * b;
  }
  return rgb;
}

/** The same from pixels that the browser has converted, (height, width, 4): close, but not the same levels. */
export function fromRGBA(pixels, size) {
  const rgb = new Uint8ClampedArray(3 * size);
  for (let k = 0; k < size; k++) for (let c = 0; c < 3; c++) rgb[c * size + k] = pixels[4 * k + c];
  return rgb;
}

/** A box of a frame with its context, as a network takes it: (3, bottom - top + 2r, right - left + 2r) in [0, 1]. */
export function padded(rgb, width, height, [top, left, bottom, right], radius) {
  const [rows, columns] = [bottom - top + 2 * radius, right - left + 2 * radius];
  const out = new Float32Array(3 * rows * columns);
  const xs = Int32Array.from({ length: columns }, (_, i) => clamp(left - radius + i, width - 1));
  for (let c = 0, k = 0; c < 3; c++)
    for (let j = 0; j < rows; j++) {
      const row = (c * height + clamp(top - radius + j, height - 1)) * width;
      for (let i = 0; i < columns; i++) out[k++] = rgb[row + xs[i]] / 255;
    }
  return out;
}
