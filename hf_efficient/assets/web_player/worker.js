// Runs the networks, away from the page, so that the page answers while they run.
import { fromRGBA, padded, planesOf, toRGB } from "./colors.js";
import { boxesOf, unpackRouting } from "./tiles.js";

let ort, record, grid, maps, sessions;

async function start(settings) {
  record = settings.record;
  const { source, scale } = record;
  grid = {
    width: 2 * Math.ceil(source.width / (2 * scale)), height: 2 * Math.ceil(source.height / (2 * scale)),
    patch_width: record.patch_width, patch_height: record.patch_height,
  };
  grid.columns = Math.ceil(grid.width / grid.patch_width);
  grid.rows = Math.ceil(grid.height / grid.patch_height);
  const gpu = settings.runtime !== "wasm" && record.web.webgpu && (await navigator.gpu?.requestAdapter());
  if (settings.runtime === "webgpu" && !gpu) throw new Error("This browser has no WebGPU here: leave out ?runtime=webgpu.");
  ort = await import(gpu ? "./runtime/ort.webgpu.min.mjs" : "./runtime/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  const threads = self.crossOriginIsolated ? Math.min(settings.threads ?? navigator.hardwareConcurrency, 8) : 1;
  ort.env.wasm.numThreads = threads;
  const several = record.networks.length > 1;
  sessions = [];
  for (const { file, radius } of record.networks) {
    const options = { executionProviders: [gpu ? "webgpu" : "wasm"] };
    if (!several) options.freeDimensionOverrides = { height: grid.height + 2 * radius, width: grid.width + 2 * radius };
    sessions.push(await ort.InferenceSession.create(new URL(file, import.meta.url).href, options));
  }
  if (several) {
    const packed = await (await fetch("routing.bin")).arrayBuffer();
    maps = await unpackRouting(packed, grid.rows, grid.columns, sessions.length);
    if (maps.length !== source.frames) throw new Error("routing.bin has another number of frames: copy the folder again.");
  }
  return { runtime: gpu ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}` };
}

/** RGB levels of a frame, and whether they are exactly the Python player's. */
async function read(frame) {
  const { width, height } = grid;
  const planes = await planesOf(frame, width, height);
  if (planes) return [toRGB(planes, width, height, record.color), true];
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(frame, 0, 0, width, height);
  return [fromRGBA(context.getImageData(0, 0, width, height).data, width * height), false];
}

/** Write a network's output, (3, rows, columns) in [0, 1], into the played picture at (top, left). */
function write(output, rows, columns, picture, top, left) {
  const { width, height } = record.source;
  const [below, after, plane] = [Math.min(rows, height - top), Math.min(columns, width - left), rows * columns];
  for (let j = 0; j < below; j++)
    for (let i = 0, k = j * columns, to = 4 * ((top + j) * width + left); i < after; i++, k++) {
      picture[to++] = output[k] * 255;
      picture[to++] = output[plane + k] * 255;
      picture[to++] = output[2 * plane + k] * 255;
      picture[to++] = 255;
    }
}

async function enlarge(index, frame) {
  const began = performance.now();
  const [rgb, exact] = await read(frame);
  frame.close();
  const { width, height } = grid;
  const { scale, source, networks } = record;
  const picture = new Uint8ClampedArray(4 * source.width * source.height);
  let network = 0;
  for (let m = 0; m < sessions.length; m++) {
    const { radius } = networks[m];
    for (const box of maps ? boxesOf(maps[index], m, grid) : [[0, 0, height, width]]) {
      const [top, left, bottom, right] = box;
      const shape = [1, 3, bottom - top + 2 * radius, right - left + 2 * radius];
      const input = new ort.Tensor("float32", padded(rgb, width, height, box, radius), shape);
      const before = performance.now();
      const { enlarged } = await sessions[m].run({ frame: input });
      const data = await enlarged.getData();
      network += performance.now() - before;
      write(data, enlarged.dims[2], enlarged.dims[3], picture, scale * top, scale * left);
      enlarged.dispose();
    }
  }
  return { index, exact, picture, network, ms: performance.now() - began };
}

self.onmessage = async ({ data }) => {
  try {
    const answer = data.record ? await start(data) : await enlarge(data.index, data.frame);
    self.postMessage(answer, answer.picture ? [answer.picture.buffer] : []);
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
