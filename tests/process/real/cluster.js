// SPDX-License-Identifier: Apache-2.0
// A node cluster: a primary that hands connections to two workers, and talks to them all the time.
//
// cluster.js PORT-FILE: answers /digest (what must stay as it is), /check (whether what moves fits
// together) and /progress (a number that grows) on the loopback, at a port it leaves in PORT-FILE.
"use strict";
const cluster = require("cluster");
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");

const WORKERS = 2;

// Every worker gets numbers, one after the other, and sends each back.
function primary() {
  const sent = [], back = [];
  let wrong = 0, up = 0;
  for (let i = 0; i < WORKERS; i++) {
    const worker = cluster.fork();
    sent[i] = back[i] = 0;
    worker.on("listening", (address) => {
      if (++up < WORKERS) return;
      fs.writeFileSync(`${process.argv[2]}.new`, `${address.port}`);
      fs.renameSync(`${process.argv[2]}.new`, process.argv[2]);
    });
    worker.on("message", (message) => {
      if (message.number !== back[i]) wrong++;
      back[i]++;
      next();
    });
    const next = () => worker.send({ number: sent[i]++, wrong, least: Math.min(...back) });
    for (let n = 0; n < 4; n++) next();
  }
  cluster.on("exit", () => wrong++);
}

function work() {
  const ballast = Buffer.alloc(8 << 20, "0123456789abcdef-");
  const kept = new Map();
  for (let i = 0; i < 20000; i++) kept.set(`key ${i}`, `value ${i * 7}`);
  let expected = 0, wrong = 0, least = 0;
  process.on("message", (message) => {
    if (message.number !== expected++) wrong++;
    wrong = Math.max(wrong, message.wrong);
    least = message.least;
    setImmediate(() => process.send({ number: message.number }));
  });
  const answers = {
    "/digest": () => {
      const hash = crypto.createHash("sha256").update(ballast);
      for (const [key, value] of kept) hash.update(key + value);
      return hash.digest("hex");
    },
    "/check": () => (wrong ? `${wrong} messages wrong` : "ok"),
    "/progress": () => least,
  };
  http.createServer((request, response) => response.end(`${answers[request.url]()}`))
    .listen(0, "127.0.0.1");
}

if (cluster.isPrimary) primary();
else work();
