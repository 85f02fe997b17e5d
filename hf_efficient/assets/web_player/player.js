// The page: the small stream plays in <video>, and each of its frames that the network can keep up with is shown
// enlarged on a canvas. `window.player` is for tests and for other pages; `?frame=N` opens at a frame,
// `?runtime=wasm` and `?threads=1` choose how the network runs.

const $ = (id) => document.getElementById(id);
const [video, plain, enlarged, status] = [$("video"), $("plain"), $("enlarged"), $("status")];
const query = new URLSearchParams(location.search);
const counts = { shown: 0, dropped: 0, exact: true, ms: [], network: [] };
let record, times, worker, runtime, last = -1, waiting = null, wanted = null, counting = false;

/** The number of the frame whose time is nearest to `seconds`. */
function frameAt(seconds) {
  let [low, high] = [0, times.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= seconds + 0.0005) low = middle; else high = middle - 1;
  }
  return low + 1 < times.length && times[low + 1] - seconds < seconds - times[low] ? low + 1 : low;
}

/** Ask the worker; one question at a time. */
const ask = (message, transfer = []) => new Promise((resolve, reject) => {
  worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
  worker.onerror = (event) => reject(new Error(event.message || "the worker cannot be started"));
  worker.postMessage(message, transfer);
});

const failed = (error) => { status.textContent = `Error: ${error.message ?? error}`; window.player.error = String(error); };

function draw(picture) {
  const { width, height } = record.source;
  [enlarged.width, enlarged.height] = [width, height];
  enlarged.getContext("2d").putImageData(new ImageData(picture, width, height), 0, 0);
}

function drawPlain(frame) {
  const { width, height } = record.source;
  [plain.width, plain.height] = [width, height];
  const context = plain.getContext("2d");
  context.imageSmoothingQuality = "high";
  const { codedWidth, codedHeight } = frame; // without the frame's own rotation, which the page applies
  context.drawImage(frame, 0, 0, codedWidth, codedHeight, 0, 0, record.scale * codedWidth, record.scale * codedHeight);
}

/** Show the frame that <video> has now, unless the network is still busy with the one before. */
async function take() {
  if (waiting || video.readyState < 2) return;
  const frame = new VideoFrame(video);
  const index = frameAt(frame.timestamp / 1e6);
  if (index === last && wanted?.index !== index) return frame.close();
  drawPlain(frame);
  waiting = ask({ index, frame }, [frame]);
  try {
    const answer = await waiting;
    draw(answer.picture);
    counts.shown += 1;
    if (counting && index > last + 1) counts.dropped += index - last - 1;
    counting = !video.seeking;
    counts.exact &&= answer.exact;
    for (const name of ["ms", "network"]) counts[name] = [...counts[name].slice(-99), answer[name]];
    last = index;
    report();
    if (wanted?.index === index) { wanted.resolve({ ...answer, ...sizes() }); wanted = null; }
  } catch (error) {
    failed(error);
  } finally {
    waiting = null;
  }
  if (wanted || video.paused) take(); // what came while the network was busy
}

const sizes = () => ({ width: record.source.width, height: record.source.height });
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;

function report() {
  const duration = (times.at(-1) - times[0]) / Math.max(1, times.length - 1) || 1 / 25;
  const share = (1000 * duration) / Math.max(median(counts.ms), 0.01);
  const colors = counts.exact ? "" : "; colors as the browser converts them";
  status.textContent = `Frame ${last + 1} of ${times.length}: ${median(counts.ms).toFixed(1)} ms a frame (network `
    + `${median(counts.network).toFixed(1)}), ${Math.min(100, 100 * share).toFixed(0)} % of real time; `
    + `${counts.shown} shown, ${counts.dropped} dropped; ${runtime}${colors}`;
  $("seek").value = last;
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  $("time").textContent = `${clock(times[last] - times[0])} / ${clock(times.at(-1) - times[0] + duration)}`;
}

/** Pause at a frame; its pixels, (height, width, 4) as `picture`, once they are shown; null if another was asked for. */
function show(index) {
  if (!(index >= 0 && index < times.length)) return Promise.reject(new Error(`There is no frame ${index}.`));
  wanted?.resolve(null); // it is not waited for any longer
  video.pause();
  const end = times[index + 1] ?? Math.max(times[index], video.duration);
  return new Promise((resolve, reject) => {
    wanted = { index, resolve, reject };
    video.currentTime = (times[index] + end) / 2;
  });
}

function layOut() {
  const { source } = record;
  const [n, d] = source.pixel_aspect.split("/").map(Number);
  const aspect = (n ? n / (d || 1) : 1) * source.width / source.height;
  const turned = ((source.rotation % 360) + 360) % 360;
  const across = turned % 180 === 90;
  $("stage").style.aspectRatio = across ? 1 / aspect : aspect;
  $("stage").style.maxWidth = `${75 * (across ? 1 / aspect : aspect)}vh`;
  if (!turned) return;
  for (const canvas of [plain, enlarged]) {
    canvas.style.transform = `rotate(${-turned}deg)${across ? ` scale(${aspect})` : ""}`;
  }
}

function connect() {
  const next = () => { take(); video.requestVideoFrameCallback(next); };
  video.requestVideoFrameCallback(next);
  video.addEventListener("seeked", take);
  video.addEventListener("seeking", () => { counting = false; });
  video.addEventListener("play", () => { $("play").textContent = "Pause"; });
  video.addEventListener("pause", () => { $("play").textContent = "Play"; });
  $("play").onclick = () => (video.paused ? video.play() : video.pause());
  $("seek").max = times.length - 1;
  $("seek").oninput = () => show(Number($("seek").value)).catch(failed);
  $("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
  $("slider").oninput = () => {
    const share = $("slider").value;
    enlarged.style.clipPath = `inset(0 0 0 ${share}%)`;
    $("line").style.left = `${share}%`;
    $("line").style.display = share > 0 ? "block" : "none";
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT") return;
    if (event.key === " ") { event.preventDefault(); $("play").click(); }
    if (event.key === "ArrowRight") show(Math.min(last + 1, times.length - 1)).catch(failed);
    if (event.key === "ArrowLeft") show(Math.max(last - 1, 0)).catch(failed);
    if (event.key === "f") $("full").click();
  });
}

async function load(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be read (${response.status}): copy the folder as a whole.`);
  return response;
}

/** The address of the stream; a server that cannot send parts of a file cannot seek, so then it is read as a whole. */
async function streamAddress(name) {
  const head = await fetch(name, { method: "HEAD" });
  if (head.headers.get("accept-ranges") === "bytes") return name;
  return URL.createObjectURL(await (await load(name)).blob());
}

async function start() {
  await window.isolating;
  if (typeof VideoFrame === "undefined" || !video.requestVideoFrameCallback)
    throw new Error("This browser has no WebCodecs: use a current one, over https or on localhost.");
  record = await (await load("export.json")).json();
  times = new Float64Array(await (await load("times.bin")).arrayBuffer());
  layOut();
  worker = new Worker("worker.js", { type: "module" });
  const threads = Number(query.get("threads")) || undefined;
  ({ runtime } = await ask({ record, runtime: query.get("runtime"), threads }));
  connect();
  const playable = new Promise((resolve, reject) => {
    video.addEventListener("loadeddata", resolve, { once: true });
    video.addEventListener("error", () => reject(new Error(video.error?.message || "the stream cannot be played")));
  });
  video.src = await streamAddress(record.low_resolution);
  await playable;
  return show(Math.min(Math.max(Number(query.get("frame")) || 0, 0), times.length - 1));
}

window.player = { show, counts, video, get times() { return times; }, get last() { return last; }, ready: null };
window.player.ready = start();
window.player.ready.catch(failed);
