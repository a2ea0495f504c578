// The control address of the blob and table ports: faults, switches, counts. Loopback only, like everything here.
//
//   GET    /__control/            what is set and counted
//   POST   /__control/switches    {"diff": "content", "copies": {"mode": "hold"}, "exports": {"maxresults": "refused"}, "limits": {…}}
//   POST   /__control/faults      [{"verb": "PUT page", "url": "text", "skip": 0, "times": 1, …effect}], replaces the list
//          effects: status (+ code, retryAfter) | reset | delayMs | loseReply | truncateBytes
//   POST   /__control/copies      {"account", "container", "blob", "end": "success" | "failed"}
//   POST   /__control/created     {"account", "container", "blob", "at": "2015-12-31T00:00:00Z"}: rewrite the creation time
//   DELETE /__control/            no faults, switches at their defaults, counts at zero
"use strict";
const { load, watch } = require("./azurite");
const { INTERNAL } = require("./pages");
const { document } = require("./shared");
const { malformed } = require("./answers");
const copies = require("./copies");
const { served } = require("./exports");
const switches = require("./switches");

const BlobListenerFactory = load("blob/BlobRequestListenerFactory").default;
const TableListenerFactory = load("table/TableRequestListenerFactory").default;

const PREFIX = "/__control/";
const HOST_ACCOUNT = "/host/"; // named so in devhost/storage.py
let faults = [];
let counts = {};

function install() {
  for (const [name, factory] of [["blob", BlobListenerFactory], ["table", TableListenerFactory]]) {
    watch(`${name}.createRequestListener`, factory.prototype, "createRequestListener");
    const { createRequestListener } = factory.prototype;
    factory.prototype.createRequestListener = function () {
      const app = createRequestListener.call(this), store = this.metadataStore;
      return (request, response) => {
        if (request.url.startsWith(PREFIX)) return control(store, request, response);
        request.url = served(request.url);
        if (request.headers[INTERNAL]) return app(request, response);
        if (request.url.startsWith(HOST_ACCOUNT)) return disturbed(verbOf(name, request), app, request, response);
        return observed(name, app, request, response);
      };
    };
  }
}

// ---- the control address --------------------------------------------------------------------------

async function control(store, request, response) {
  const reply = (status, value) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  };
  try {
    const parts = [];
    for await (const part of request) parts.push(part);
    const body = parts.length ? JSON.parse(Buffer.concat(parts).toString()) : undefined;
    const action = actions[`${request.method} ${request.url.slice(PREFIX.length)}`];
    if (!action) return reply(404, { error: `no such control: ${request.method} ${request.url}` });
    action(store, body);
    return reply(200, { faults, switches: switches.switches, counts });
  } catch (error) {
    return reply(400, { error: error.message });
  }
}

const actions = {
  "GET ": () => undefined,
  "DELETE ": () => { faults = []; counts = {}; buckets.clear(); switches.reset(); },
  "POST switches": (_, body) => switches.set(body),
  "POST faults": (_, body) => { faults = body.map(checkedFault); },
  "POST copies": (store, body) => {
    const doc = named(store, body);
    if (!doc.pkPending) throw new Error(`${body.blob} is not the destination of a pending copy`);
    if (!["success", "failed"].includes(body.end)) throw new Error(`a copy ends in success or failed, not ${body.end}`);
    copies.end(store, doc, body.end);
  },
  "POST created": (store, body) => { named(store, body).properties.creationTime = new Date(body.at); },
};

function named(store, { account, container, blob }) {
  const doc = document(store, account, container, blob);
  if (!doc) throw new Error(`no blob ${account}/${container}/${blob}`);
  return doc;
}

const FAULT_KEYS = ["verb", "url", "skip", "times", "status", "code", "retryAfter", "reset", "delayMs", "loseReply", "truncateBytes"];

function checkedFault(fault) {
  const unknown = Object.keys(fault).filter((key) => !FAULT_KEYS.includes(key));
  if (unknown.length) throw new Error(`unknown fault field ${unknown.join(", ")}; known: ${FAULT_KEYS.join(", ")}`);
  return { skip: 0, times: 1, ...fault };
}

// ---- every other request: counted, limited, disturbed ------------------------------------------------

/** `METHOD comp`, with clears and copies told apart: "PUT page", "PUT clear", "PUT page-from-url", "GET pagelist", "GET blob". */
function verbOf(service, request) {
  const { method, headers, url } = request;
  if (service === "table") return `${method} table`;
  const comp = (/[?&]comp=([a-z]+)/.exec(url) || [])[1];
  if (comp === "page" && headers["x-ms-page-write"] === "clear") return "PUT clear";
  if (comp === "page" && headers["x-ms-copy-source"]) return "PUT page-from-url";
  if (!comp && method === "PUT" && headers["x-ms-copy-source"]) return "PUT copy";
  return `${method} ${comp || (/[?&]restype=container/.test(url) ? "container" : "blob")}`;
}

function observed(service, app, request, response) {
  const verb = verbOf(service, request);
  const count = counts[verb] || (counts[verb] = { requests: 0, bytesIn: 0, bytesOut: 0, refused: 0 });
  count.requests++;
  const received = Number(request.headers["content-length"] || 0);
  count.bytesIn += received;
  countSent(response, count);
  if (service === "blob" && overLimit(request, received)) {
    count.refused++;
    return refuse(request, response, { status: 503, code: "ServerBusy", retryAfter: "1" });
  }
  const wrong = service === "blob" && malformed(request);
  if (wrong) return refuse(request, response, wrong);
  return disturbed(verb, app, request, response);
}

function meets(rule, verb, url) {
  // What the host keeps for itself is no request of the app: only a rule that names the host's account meets it.
  if (url.startsWith(HOST_ACCOUNT) && !(rule.url || "").startsWith(HOST_ACCOUNT)) return false;
  return (!rule.verb || rule.verb === verb) && (!rule.url || url.includes(rule.url));
}

function disturbed(verb, app, request, response) {
  const fault = faults.find((rule) => rule.times > 0 && meets(rule, verb, request.url));
  if (!fault) return app(request, response);
  if (fault.skip > 0) { fault.skip--; return app(request, response); }
  fault.times--;
  return disturb(fault, app, request, response);
}

function countSent(response, count) {
  const { write, end } = response;
  const add = (chunk) => { if (chunk && chunk.length) count.bytesOut += chunk.length; };
  response.write = function (chunk, ...rest) { add(chunk); return write.call(this, chunk, ...rest); };
  response.end = function (chunk, ...rest) { if (typeof chunk !== "function") add(chunk); return end.call(this, chunk, ...rest); };
}

function disturb(fault, app, request, response) {
  if (fault.delayMs) return setTimeout(() => app(request, response), fault.delayMs);
  if (fault.reset) return request.socket.destroy();
  if (fault.status) return refuse(request, response, fault);
  if (fault.loseReply) {
    // The effect happens, the answer never arrives.
    response.write = response.end = () => { request.socket.destroy(); return true; };
    return app(request, response);
  }
  if (fault.truncateBytes !== undefined) {
    let left = fault.truncateBytes;
    const { write } = response;
    response.write = function (chunk) {
      write.call(this, chunk.subarray(0, left));
      left -= chunk.length;
      if (left <= 0) setImmediate(() => request.socket.destroy());
      return true;
    };
  }
  return app(request, response);
}

function refuse(request, response, { status, code = "ServerBusy", retryAfter }) {
  request.resume();
  const headers = { "x-ms-error-code": code, "content-type": "application/xml" };
  if (retryAfter !== undefined) headers["retry-after"] = retryAfter;
  response.writeHead(status, headers);
  response.end(`<?xml version="1.0" encoding="utf-8"?><Error><Code>${code}</Code><Message>Refused by the emulator.</Message></Error>`);
}

const buckets = new Map();

/** One-second token buckets per blob address, as the service limits a page blob: 500 requests and 60 MiB. */
function overLimit(request, bytes) {
  const { limits } = switches.switches;
  if (!limits) return false;
  const blob = request.url.split("?")[0], now = Date.now() / 1000;
  const bucket = buckets.get(blob) || { at: now, requests: limits.requestsPerSecond, bytes: limits.bytesPerSecond };
  const passed = now - bucket.at;
  bucket.requests = Math.min(limits.requestsPerSecond, bucket.requests + passed * limits.requestsPerSecond);
  bucket.bytes = Math.min(limits.bytesPerSecond, bucket.bytes + passed * limits.bytesPerSecond);
  bucket.at = now;
  buckets.set(blob, bucket);
  if (bucket.requests < 1 || bucket.bytes < bytes) return true;
  bucket.requests -= 1;
  bucket.bytes -= bytes;
  return false;
}

module.exports = { install };
