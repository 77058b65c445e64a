// A page opened from the disk may not start a Worker, which the site's search needs. This one runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html><title>search</title>";
      const begun = new Promise((then) => this.frame.addEventListener("load", then, { once: true }));
      document.body.append(this.frame);
      this.ready = begun.then(() => {
        const inside = this.frame.contentWindow;
        const load = (src) => new Promise((onload, onerror) => {
          inside.document.head.append(Object.assign(inside.document.createElement("script"), { src, onload, onerror }));
        });
        inside.importScripts = (...several) => several.reduce((before, src) => before.then(() => load(src)), Promise.resolve());
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        return load(String(url));
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
