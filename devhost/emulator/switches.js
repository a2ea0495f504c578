// What tests and people may turn while the emulator runs; reset by DELETE on the control address.
"use strict";

const defaults = () => ({
  // "writes": as the service, every written or cleared page; "content": only pages whose bytes differ.
  diff: "writes",
  // Whether a diff ends where its previous snapshot ended, so that what a disk has grown by is not in it.
  diffEnds: false,
  // Copies of at least `pendingFromBytes` stay pending for `pendingMs`; "hold" keeps every copy pending until told.
  copies: { mode: "timed", pendingFromBytes: 8 * 1024 * 1024, pendingMs: 2000 },
  // Export addresses: what a page list does with `maxresults` ("taken", "refused", "ignored"); whether a diff tells of footers;
  // whether who may write a disk may also read it; whether what is written may have a checksum; whether the address of an
  // upload is gone once it has ended, and not only its SAS; whether what is read may be asked for with a checksum.
  exports: { maxresults: "taken", footerInDiff: true, uploadReads: false, uploadMd5: true, uploadGone: false, rangeMd5: true },
  // Per-blob limits: {requestsPerSecond, bytesPerSecond}; null is unlimited.
  limits: null,
});

const switches = defaults();

/** Set the given switches; an unknown name or value is an error, so that a misspelt switch cannot pass silently. */
function set(values) {
  const checks = {
    diff: (v) => v === "writes" || v === "content",
    diffEnds: (v) => typeof v === "boolean",
    copies: (v) => ["timed", "hold"].includes(v.mode) && v.pendingFromBytes >= 0 && v.pendingMs >= 0,
    exports: (v) => ["taken", "refused", "ignored"].includes(v.maxresults)
      && ["footerInDiff", "uploadReads", "uploadMd5", "uploadGone", "rangeMd5"].every((name) => typeof v[name] === "boolean"),
    limits: (v) => v === null || (v.requestsPerSecond > 0 && v.bytesPerSecond > 0),
  };
  const known = defaults();
  for (const [name, value] of Object.entries(values)) {
    if (!(name in checks)) throw new Error(`unknown switch ${name}; known: ${Object.keys(checks).join(", ")}`);
    const full = ["copies", "exports"].includes(name) ? { ...known[name], ...value } : value;
    if (!checks[name](full)) throw new Error(`switch ${name} does not take ${JSON.stringify(value)}`);
    switches[name] = full;
  }
}

module.exports = { set, reset: () => Object.assign(switches, defaults()), switches };
