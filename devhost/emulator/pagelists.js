// Get Page Ranges and its two diffs (prevsnapshot, x-ms-previous-snapshot-url).
"use strict";
const { load, watch } = require("./azurite");
const { BLOB_API_VERSION, PAGE, asBlobContext, document, fail, header, requestedRange } = require("./shared");
const { isExport, refuseDiff, served, withoutFooters } = require("./exports");
const { INTERNAL, get } = require("./pages");
const { switches } = require("./switches");
const tracking = require("./tracking");

const PageBlobHandler = load("blob/handlers/PageBlobHandler").default;
const Specifications = load("blob/generated/artifacts/specifications").default;
const { Operation } = load("blob/generated/artifacts/operation");
const { extractStoragePartsFromPath } = load("blob/middlewares/blobStorageContext.middleware");

const RANGES_MAX = 10000;

function install() {
  watch("PageBlobHandler.getPageRanges", PageBlobHandler.prototype, "getPageRanges");
  watch("PageBlobHandler.getPageRangesDiff", PageBlobHandler.prototype, "getPageRangesDiff");
  // Azurite's dispatcher counts required parameters only, so plain and diff listing tie and the plain one wins.
  const spec = Specifications[Operation.PageBlob_GetPageRangesDiff];
  spec.queryParameters = spec.queryParameters.map((parameter) =>
    parameter.mapper.serializedName === "prevsnapshot"
      ? { ...parameter, mapper: { ...parameter.mapper, required: true } } : parameter);

  PageBlobHandler.prototype.getPageRanges = async function (options, context) {
    const target = await checkedTarget(this, options, context);
    const url = header(context, "x-ms-previous-snapshot-url");
    if (url) return answer(context, options, target, await diffToUrl(this, url, target, context));
    const [start, end] = window_(context, target);
    return answer(context, options, target, allocated(target, start, end));
  };

  PageBlobHandler.prototype.getPageRangesDiff = async function (options, context) {
    const target = await checkedTarget(this, options, context);
    const at = asBlobContext(context);
    // Between snapshots of a managed disk, the previous one is named by its own URL.
    if (isExport(at.account)) throw fail(context, 400, "InvalidQueryParameterValue", { extra: { QueryParameterName: "prevsnapshot" } });
    if (options.snapshot && options.prevsnapshot > options.snapshot) throw fail(context, 400, "PreviousSnapshotCannotBeNewer");
    const previous = document(this.metadataStore, at.account, at.container, at.blob, options.prevsnapshot);
    if (!previous) throw fail(context, 409, "PreviousSnapshotNotFound");
    return answer(context, options, target, await diff(this, previous, target, context));
  };
}

/** The blob or snapshot listed, with Azurite's own checks of existence, type, lease and conditions. */
async function checkedTarget(handler, options, context) {
  const at = asBlobContext(context);
  await handler.metadataStore.getPageRanges(context, at.account, at.container, at.blob, options.snapshot,
    options.leaseAccessConditions, options.modifiedAccessConditions);
  return document(handler.metadataStore, at.account, at.container, at.blob, options.snapshot);
}

/** The [start, end) asked for, whole pages, inside the blob. */
function window_(context, target) {
  const size = target.properties.contentLength;
  const [first, last] = requestedRange(context) || [0, Infinity];
  if (first >= size && first > 0) throw fail(context, 416, "InvalidRange");
  return [first - (first % PAGE), Math.min(Math.ceil((last + 1) / PAGE) * PAGE, size)];
}

function allocated(target, start, end) {
  const out = [];
  for (const range of target.pageRangesInOrder || [])
    if (range.end >= start && range.start < end)
      tracking.append(out, Math.max(range.start, start), Math.min(range.end + 1, end), false);
  return out;
}

async function diff(handler, previous, target, context) {
  const created = (doc) => Number(new Date(doc.properties.creationTime));
  if (created(previous) !== created(target)) throw fail(context, 409, "BlobOverwritten");
  const [start, last] = window_(context, target);
  const end = switches.diffEnds ? Math.max(start, Math.min(last, previous.properties.contentLength)) : last;
  if (switches.diff === "writes") return tracking.since(previous, target, start, end);
  return differing(handler, previous, target, start, end, context);
}

/** The managed-disk form: the previous snapshot is named by URL and may belong to another blob. */
async function diffToUrl(handler, url, target, context) {
  let parsed;
  try { parsed = new URL(url); } catch { throw fail(context, 400, "InvalidHeaderValue"); }
  const at = asBlobContext(context);
  if (isExport(at.account)) await requireAuthority(context, parsed);
  parsed = new URL(served(parsed.pathname + parsed.search), parsed);
  const [account, container, blob] = extractStoragePartsFromPath(parsed.hostname, parsed.pathname, at.disableProductStyleUrl);
  const snapshot = parsed.searchParams.get("snapshot") || "";
  const previous = document(handler.metadataStore, account, container, blob, snapshot);
  if (!previous || !snapshot) throw fail(context, 409, "PreviousSnapshotNotFound");
  const sameBlob = previous.accountName === target.accountName && previous.containerName === target.containerName &&
    previous.name === target.name;
  if (isExport(at.account) && !sameBlob) throw fail(context, 403, "AuthenticationFailed"); // of another family
  if (target.snapshot && snapshot > target.snapshot) throw fail(context, 400, "PreviousSnapshotCannotBeNewer");
  if (isExport(at.account)) {
    refuseDiff(context, previous, target);
    return withoutFooters(await diff(handler, previous, target, context), previous, target);
  }
  if (sameBlob) return diff(handler, previous, target, context);
  const [start, end] = window_(context, target);
  return differing(handler, previous, target, start, end, context);
}

/** The previous snapshot's own access is needed as well, for as long as its snapshot is named. */
async function requireAuthority(context, url) {
  const headers = { host: header(context, "host"), "x-ms-range": "bytes=0-0", "x-ms-version": "2021-12-02", [INTERNAL]: "1" };
  const { status } = await get(context.request.getBodyStream().socket, url.pathname + url.search, headers);
  if (status !== 200 && status !== 206) throw fail(context, 403, "AuthenticationFailed");
}

/** Pages whose bytes differ: PageRange where the target holds the page, ClearRange where it does not. */
async function differing(handler, previous, target, start, end, context) {
  const before = previous.pageRangesInOrder || [], after = target.pageRangesInOrder || [];
  const edges = new Set([start, end]);
  for (const list of [before, after])
    for (const range of list)
      for (const edge of [range.start, range.end + 1]) if (edge > start && edge < end) edges.add(edge);
  const cuts = [...edges].sort((a, b) => a - b), out = [];
  let i = 0, j = 0;
  for (let k = 0; k + 1 < cuts.length; k++) {
    while (i < before.length && before[i].end < cuts[k]) i++;
    while (j < after.length && after[j].end < cuts[k]) j++;
    const old = before[i] && before[i].start <= cuts[k] ? before[i] : undefined;
    const fresh = after[j] && after[j].start <= cuts[k] ? after[j] : undefined;
    if (!old && !fresh) continue;
    if (old && fresh && sameBytesOfExtent(old, fresh)) continue;
    await compareInto(out, handler, old, fresh, cuts[k], cuts[k + 1], context);
  }
  return out;
}

const sameBytesOfExtent = (a, b) =>
  a.persistency.id === b.persistency.id && a.persistency.offset - a.start === b.persistency.offset - b.start;

async function compareInto(out, handler, old, fresh, start, end, context) {
  const step = 4 * 1024 * 1024;
  for (let at = start; at < end; at += step) {
    const count = Math.min(step, end - at);
    const left = await bytesOf(handler, old, at, count, context), right = await bytesOf(handler, fresh, at, count, context);
    for (let page = 0; page < count; page += PAGE)
      if (left.compare(right, page, page + PAGE, page, page + PAGE))
        tracking.append(out, at + page, at + page + PAGE, !fresh);
  }
}

async function bytesOf(handler, range, at, count, context) {
  if (!range) return Buffer.alloc(count);
  const stream = await handler.extentStore.readExtent(
    { id: range.persistency.id, offset: range.persistency.offset + at - range.start, count }, context.contextId);
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

/** One page of the listing: at most 10,000 ranges of either kind together, then a marker. */
function answer(context, options, target, ranges) {
  const paging = isExport(target.accountName) ? switches.exports.maxresults : "taken";
  const asked = paging === "ignored" ? undefined : context.request.getQuery("maxresults");
  if (asked !== undefined && !(Number(asked) > 0)) throw fail(context, 400, "OutOfRangeQueryParameterValue");
  const most = paging === "taken" ? RANGES_MAX : Infinity;
  const limit = Math.min(asked === undefined ? most : Number(asked), most);
  const marker = paging === "ignored" ? undefined : context.request.getQuery("marker");
  if (paging === "refused" && (asked !== undefined || marker !== undefined)) throw fail(context, 400, "UnsupportedQueryParameter");
  const from = marker ? decoded(context, marker) : 0;
  const rest = ranges.filter((range) => range.start >= from);
  const page = rest.slice(0, limit);
  const next = rest.length > limit ? encoded(rest[limit].start) : "";
  return {
    statusCode: 200,
    rawXml: xml(page, next, asked !== undefined || marker !== undefined),
    eTag: target.properties.etag,
    blobContentLength: target.properties.contentLength,
    lastModified: target.properties.lastModified,
    requestId: context.contextId,
    version: BLOB_API_VERSION,
    clientRequestId: options.requestId,
    date: context.startTime,
  };
}

function encoded(offset) {
  const text = Buffer.from(String(offset).padStart(20, "0")).toString("base64");
  return `2!${text.length}!${text}`;
}

function decoded(context, marker) {
  const match = /^2!\d+!([A-Za-z0-9+/=]+)$/.exec(marker);
  const offset = match ? Number(Buffer.from(match[1], "base64").toString()) : NaN;
  if (!Number.isSafeInteger(offset)) throw fail(context, 400, "InvalidQueryParameterValue");
  return offset;
}

function xml(page, next, paged) {
  const head = '<?xml version="1.0" encoding="utf-8"?>';
  const body = page.map(({ start, end, cleared }) => {
    const tag = cleared ? "ClearRange" : "PageRange";
    return `<${tag}><Start>${start}</Start><End>${end - 1}</End></${tag}>`;
  }).join("");
  const tail = next ? `<NextMarker>${next}</NextMarker>` : paged ? "<NextMarker/>" : "";
  return head + (body + tail ? `<PageList>${body}${tail}</PageList>` : "<PageList />");
}

module.exports = { install };
