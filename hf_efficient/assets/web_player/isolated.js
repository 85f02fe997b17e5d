// Threads of WebAssembly need a page that is isolated from others, which two headers of the server say. Where the
// server does not send them (plain file servers), a service worker adds them: this file is both, the page's script that
// registers it and the worker.
if (typeof window === "undefined") {
  self.addEventListener("install", () => self.skipWaiting());
  self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
  self.addEventListener("fetch", (event) => {
    const { request } = event;
    if (request.method !== "GET" || request.destination === "video" || request.headers.has("range")) return;
    if (new URL(request.url).origin !== self.location.origin) return;
    event.respondWith(fetch(request).then((response) => {
      if (response.status === 0) return response;
      const headers = new Headers(response.headers);
      headers.set("Cross-Origin-Opener-Policy", "same-origin");
      headers.set("Cross-Origin-Embedder-Policy", "require-corp");
      const body = [204, 205, 304].includes(response.status) ? null : response.body;
      return new Response(body, { status: response.status, statusText: response.statusText, headers });
    }));
  });
} else if (!window.crossOriginIsolated && window.isSecureContext && navigator.serviceWorker) {
  // once: where the worker does not help, the page plays with one thread
  const tried = sessionStorage.getItem("isolated");
  sessionStorage.setItem("isolated", "tried");
  window.isolating = tried ? Promise.resolve() : navigator.serviceWorker.register("isolated.js").then(async () => {
    await navigator.serviceWorker.ready;
    window.location.reload();
    await new Promise(() => {});
  }).catch(() => {});
} else {
  window.isolating = Promise.resolve();
}
