#!/usr/bin/env node
// Starts the pinned Azurite with the page-blob behaviour of the real service that it lacks. No file of the package changes:
// the wrong methods are replaced on their prototypes before Azurite's own entry point runs, so all its flags work.
//
//   node launcher.js [azurite flags]      start
//   node launcher.js --fingerprints       print the fingerprints of the methods replaced, for fingerprints.json
"use strict";
const azurite = require("./azurite");

try {
  for (const patch of ["./copies", "./snapshots", "./pages", "./pagelists", "./answers", "./exports", "./control"]) require(patch).install();
} catch (error) {
  refuse(`cannot install the patches on this Azurite: ${error.message}`);
}
if (process.argv.includes("--fingerprints")) {
  console.log(JSON.stringify(azurite.watched, null, 2));
} else {
  try { azurite.refuseStrangers(require("./fingerprints.json")); } catch (error) { refuse(error.message); }
  if (process.env.PAGEKEEPER_TIED) endWithParent();
  azurite.load("azurite");
}

/** The parent holds our standard input open; when it closes, however the parent ended, so do we. */
function endWithParent() {
  process.stdin.on("end", () => process.exit(0));
  process.stdin.resume();
  // Azurite's own shutdown waits for idle connections; everything here is thrown away anyway.
  for (const signal of ["SIGTERM", "SIGINT"]) process.prependListener(signal, () => process.exit(0));
}

function refuse(message) {
  console.error(`emulator: refusing to start: ${message}`);
  process.exit(3);
}
