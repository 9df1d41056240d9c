// SPDX-License-Identifier: Apache-2.0
// A node program at work: an http server, timers, promises, worker threads, garbage.
//
// busy.js PORT-FILE: answers /digest (what must stay as it is), /check (whether what moves fits
// together) and /progress (a number that grows) on the loopback, at a port it leaves in PORT-FILE.
"use strict";
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const { Worker, isMainThread, workerData } = require("worker_threads");

// The two counters of a worker are moved together, so that they never differ by more than one.
function work() {
  const counters = new Int32Array(workerData);
  let garbage = [];
  for (;;) {
    Atomics.add(counters, 0, 1);
    garbage.push({ text: "x".repeat(100), list: Array.from({ length: 50 }, (_, i) => i * i) });
    if (garbage.length > 5000) garbage = [];
    Atomics.add(counters, 1, 1);
  }
}

function main() {
  const kept = new Map();
  for (let i = 0; i < 200000; i++) kept.set(`key ${i}`, { i, text: `value ${i * 7}` });
  const ballast = Buffer.alloc(32 << 20, "0123456789abcdef-");
  const shared = [0, 1].map(() => new SharedArrayBuffer(8));
  const counters = shared.map((buffer) => new Int32Array(buffer));
  for (const buffer of shared) new Worker(__filename, { workerData: buffer });

  let ticks = 0, turns = 0, deflated = 0;
  setInterval(() => ticks++, 5);
  (async () => {
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      turns++;
    }
  })();
  const deflate = () => require("zlib").deflate(ballast.subarray(0, 1 << 20), () => {
    deflated++;
    setTimeout(deflate, 10);
  });
  deflate();

  const digest = () => {
    const hash = crypto.createHash("sha256").update(ballast);
    for (const [key, value] of kept) hash.update(key + JSON.stringify(value));
    return hash.digest("hex");
  };
  const check = () => {
    const apart = counters.map((pair) => Atomics.load(pair, 0) - Atomics.load(pair, 1));
    // The two loads are not one, so a worker may be a little ahead of what we saw first.
    return kept.size === 200000 && apart.every((by) => by <= 1 && by > -100000) ? "ok" : `${apart}`;
  };
  const workers = () => counters.map((pair) => Atomics.load(pair, 0) >>> 0);
  const answers = {
    "/digest": digest,
    "/check": check,
    "/progress": () => Math.min(ticks, turns, deflated, ...workers()),
  };
  const server = http.createServer((request, response) => response.end(`${answers[request.url]()}`));
  server.listen(0, "127.0.0.1", () => {
    fs.writeFileSync(`${process.argv[2]}.new`, `${server.address().port}`);
    fs.renameSync(`${process.argv[2]}.new`, process.argv[2]);
  });
}

if (isMainThread) main();
else work();
