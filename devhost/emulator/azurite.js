// The parts of the pinned Azurite package this launcher builds on, and the check that they are the ones it was written for.
"use strict";
const crypto = require("crypto");
const fs = require("fs");
const path = require("path");

const packageFile = find();

function find() {
  try {
    return require.resolve("azurite/package.json", { paths: [__dirname] });
  } catch {
    console.error("emulator: refusing to start: the azurite package is not installed; run 'make setup'");
    return process.exit(3);
  }
}

const pinned = require("./package.json").dependencies.azurite;
const installed = JSON.parse(fs.readFileSync(packageFile, "utf8")).version;

/** Load one of Azurite's own modules: the package has no exports map, so its files are reachable by path. */
const load = (file) => require(path.join(path.dirname(packageFile), "dist", "src", file));

/** Every method this launcher replaces or relies on line by line, by a name a person can find in Azurite's source. */
const watched = {};
function watch(name, owner, key) {
  watched[name] = crypto.createHash("sha256").update(String(owner[key])).digest("hex").slice(0, 16);
}

/** Throw when the package or one of the watched methods is not the one these patches were written against. */
function refuseStrangers(fingerprints) {
  if (installed !== pinned)
    throw new Error(`azurite ${installed} is installed, the patches are written for ${pinned}; run 'npm ci' in devhost/emulator`);
  const changed = Object.keys({ ...watched, ...fingerprints }).filter((name) => watched[name] !== fingerprints[name]);
  if (changed.length)
    throw new Error(`azurite ${installed} differs from the code the patches were written for in: ${changed.join(", ")}; ` +
      "read the new source, adapt devhost/emulator, then run 'node launcher.js --fingerprints > fingerprints.json'");
}

module.exports = { load, watch, watched, refuseStrangers };
