// Write tracking: which pages of a blob were written or cleared, and when.
//
// A page-range diff of the real service reports writes, not content: a page rewritten with equal bytes is in it, and a page
// that was empty, written and cleared again is a ClearRange. Azurite keeps neither fact, so every page-blob document gets
//   pkChanges  [[start, end, stamp, cleared], …]  half-open, ascending, disjoint: the last change of each page
//   pkStamp    on snapshots: the stamp that was current when the snapshot was taken
// Entries are never changed in place, so a snapshot may share them with its base.
"use strict";

let stamp = 0;

/** Stamps go on after the largest one in a store that was loaded from disk. */
function resume(documents) {
  for (const doc of documents)
    for (const [, , seen] of doc.pkChanges || []) stamp = Math.max(stamp, seen);
}

const now = () => stamp;

/** Index of the first entry that ends after `position`. */
function firstEndingAfter(changes, position) {
  let low = 0, high = changes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (changes[middle][1] > position) high = middle; else low = middle + 1;
  }
  return low;
}

/** Record that [start, end) of `doc` was written, or cleared, now. */
function record(doc, start, end, cleared) {
  if (start >= end) return;
  const changes = doc.pkChanges || (doc.pkChanges = []);
  const from = firstEndingAfter(changes, start);
  let to = from;
  while (to < changes.length && changes[to][0] < end) to++;
  const fresh = [];
  if (from < to && changes[from][0] < start) fresh.push([changes[from][0], start, changes[from][2], changes[from][3]]);
  fresh.push([start, end, ++stamp, cleared ? 1 : 0]);
  if (from < to && changes[to - 1][1] > end) fresh.push([end, changes[to - 1][1], changes[to - 1][2], changes[to - 1][3]]);
  changes.splice(from, to - from, ...fresh);
}

/** What `doc` is given when its content is replaced as a whole (Put Blob, Copy Blob): every range written now. */
function restart(doc) {
  doc.pkChanges = [];
  for (const { start, end } of doc.pageRangesInOrder || []) record(doc, start, end + 1, false);
}

/** Carry the tracking of `base` over to a snapshot of it. */
function freeze(base, snapshot) {
  snapshot.pkChanges = (base.pkChanges || []).slice();
  snapshot.pkStamp = stamp;
}

/** Ranges of `doc` inside [start, end) changed since `previous`, a snapshot of the same blob; ascending, merged. */
function since(previous, doc, start, end) {
  const out = [], changes = doc.pkChanges || [];
  for (let i = firstEndingAfter(changes, start); i < changes.length && changes[i][0] < end; i++) {
    const [first, last, changed, cleared] = changes[i];
    if (changed > previous.pkStamp)
      append(out, Math.max(first, start), Math.min(last, end), Boolean(cleared));
  }
  return out;
}

/** Append [start, end) to an ascending list, joining it with a touching neighbour of the same kind. */
function append(list, start, end, cleared) {
  const last = list[list.length - 1];
  if (last && last.end === start && last.cleared === cleared) last.end = end;
  else list.push({ start, end, cleared });
}

module.exports = { append, freeze, now, record, restart, resume, since };
