// Writes to page blobs: create, Put Page, clear, Put Page From URL, resize; each leaves its trace in the write tracking.
"use strict";
const crypto = require("crypto");
const http = require("http");
const { load, watch } = require("./azurite");
const { BLOB_BYTES_MAX, PAGE, PUT_BYTES_MAX, asBlobContext, document, fail, header, invalidHeader, refuseLongSource } = require("./shared");
const { forget, refuseLeased, refusePending } = require("./copies");
const { refuseCopySource } = require("./exports");
const tracking = require("./tracking");

const PageBlobHandler = load("blob/handlers/PageBlobHandler").default;
const RangesManager = load("blob/handlers/PageBlobRangesManager").default;
const Store = load("blob/persistence/LokiBlobMetadataStore").default;
const LeaseAdapter = load("blob/lease/BlobLeaseAdapter").default;
const WriteLeaseSyncer = load("blob/lease/BlobWriteLeaseSyncer").default;
const WriteLeaseValidator = load("blob/lease/BlobWriteLeaseValidator").default;
const { validateWriteConditions, validateSequenceNumberWriteConditions } = load("blob/conditions/WriteConditionalHeadersValidator");
const { Operation } = load("blob/generated/artifacts/operation");
const { newEtag } = load("common/utils/utils");
const { deserializePageBlobRangeHeader } = load("blob/utils/utils");
const blobSas = load("blob/authentication/OperationBlobSASPermission");
const accountSas = load("blob/authentication/OperationAccountSASPermission").default;
const commonUtils = load("common/utils/utils");

/** Marks the loopback read of a Put Page From URL, which is part of that request and not one of its own. */
const INTERNAL = "x-pagekeeper-internal";

function install() {
  for (const name of ["create", "uploadPages", "clearPages", "uploadPagesFromURL", "resize", "updateSequenceNumber"])
    watch(`PageBlobHandler.${name}`, PageBlobHandler.prototype, name);
  for (const name of ["uploadPages", "clearRange", "resizePageBlob", "createBlob"]) watch(`Store.${name}`, Store.prototype, name);
  for (const name of ["locateFirstImpactedRange", "locateLastImpactedRange"]) watch(`RangesManager.${name}`, RangesManager.prototype, name);
  watch("utils.computeTransactionalChecksums", commonUtils, "computeTransactionalChecksums");
  guardHandlers();
  trackStore();
  searchRanges();
  spareChecksums();
  permitFromUrl();
}

// ---- limits the service documents and Azurite does not check -----------------------------------

function guardHandlers() {
  const { create, uploadPages, clearPages, resize, updateSequenceNumber } = PageBlobHandler.prototype;

  PageBlobHandler.prototype.create = async function (contentLength, size, options, context) {
    checkSize(context, size);
    refusePending(this.metadataStore, context);
    return create.call(this, contentLength, size, options, context);
  };
  PageBlobHandler.prototype.uploadPages = async function (body, length, options, context) {
    await checkedWrite(this, context, length);
    return uploadPages.call(this, body, length, options, context);
  };
  PageBlobHandler.prototype.clearPages = async function (length, options, context) {
    await checkedWrite(this, context, 0);
    return clearPages.call(this, length, options, context);
  };
  PageBlobHandler.prototype.resize = async function (size, options, context) {
    refuseSnapshotAddress(context);
    checkSize(context, size);
    refusePending(this.metadataStore, context);
    const answer = await resize.call(this, size, options, context);
    forget(this.metadataStore, context);
    return answer;
  };
  PageBlobHandler.prototype.updateSequenceNumber = async function (action, options, context) {
    refuseSnapshotAddress(context);
    refusePending(this.metadataStore, context);
    const answer = await updateSequenceNumber.call(this, action, options, context);
    forget(this.metadataStore, context);
    return answer;
  };
  PageBlobHandler.prototype.uploadPagesFromURL = async function (sourceUrl, sourceRange, length, range, options, context) {
    const [start, end] = await checkedWrite(this, context, 0);
    const data = await fetchSource(context, sourceUrl, sourceRange, end - start + 1);
    if (data.length !== end - start + 1) throw fail(context, 416, "InvalidRange");
    checkSourceMd5(context, data);
    return uploadPages.call(this, data, data.length, options, context);
  };
}

function checkSize(context, size) {
  if (size % PAGE !== 0 || size > BLOB_BYTES_MAX || size < 0) throw invalidHeader(context, "x-ms-blob-content-length", size);
}

function refuseSnapshotAddress(context) {
  if (context.request.getQuery("snapshot")) throw fail(context, 400, "InvalidQueryParameterValue");
}

/** The [start, end] (inclusive) a put or clear may touch. */
async function checkedWrite(handler, context, length) {
  refuseSnapshotAddress(context);
  if (length > PUT_BYTES_MAX) throw fail(context, 413, "RequestBodyTooLarge");
  let range;
  try {
    range = deserializePageBlobRangeHeader(header(context, "range"), header(context, "x-ms-range"), true);
  } catch {
    throw fail(context, 416, "InvalidPageRange");
  }
  const at = asBlobContext(context);
  const target = document(handler.metadataStore, at.account, at.container, at.blob);
  const isPageBlob = target && target.properties.blobType === "PageBlob"; // another type is refused by Azurite itself
  if (isPageBlob && range[1] >= target.properties.contentLength) throw fail(context, 416, "InvalidPageRange");
  refusePending(handler.metadataStore, context);
  return range;
}

// ---- Put Page From URL: the destination reads the source with the source's own authorisation ----

const SOURCE_CONDITIONS = {
  "x-ms-source-if-match": "if-match",
  "x-ms-source-if-none-match": "if-none-match",
  "x-ms-source-if-modified-since": "if-modified-since",
  "x-ms-source-if-unmodified-since": "if-unmodified-since",
};

async function fetchSource(context, sourceUrl, sourceRange, length) {
  const match = /^bytes=(\d+)-(\d+)$/.exec(sourceRange || "");
  if (!match || match[2] - match[1] + 1 !== length || match[1] % PAGE) throw fail(context, 416, "InvalidPageRange");
  if (length > PUT_BYTES_MAX) throw fail(context, 413, "RequestBodyTooLarge");
  refuseLongSource(context, sourceUrl);
  let url;
  try { url = new URL(sourceUrl); } catch { throw invalidHeader(context, "x-ms-copy-source", sourceUrl); }
  if (url.host !== (header(context, "host") || "").toLowerCase()) throw fail(context, 404, "CannotVerifyCopySource");
  refuseCopySource(context, url);
  const headers = { host: url.host, "x-ms-range": sourceRange, "x-ms-version": "2021-12-02", [INTERNAL]: "1" };
  for (const [from, to] of Object.entries(SOURCE_CONDITIONS)) if (header(context, from)) headers[to] = header(context, from);
  const bearer = header(context, "x-ms-copy-source-authorization");
  if (bearer) headers.authorization = bearer;
  const socket = context.request.getBodyStream().socket;
  const { status, data } = await get(socket, url.pathname + url.search, headers);
  if (status === 200 || status === 206) return data;
  if (status === 416) throw fail(context, 416, "InvalidRange");
  const unauthorised = !bearer && !url.searchParams.get("sig");
  throw fail(context, unauthorised && (status === 403 || status === 404) ? 401 : status, "CannotVerifyCopySource");
}

/** The answer of this very service to a request of its own. */
function get(socket, path, headers) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host: socket.localAddress, port: socket.localPort, path, headers }, (reply) => {
      const parts = [];
      reply.on("data", (part) => parts.push(part));
      reply.on("error", reject);
      reply.on("end", () => resolve({ status: reply.statusCode, data: Buffer.concat(parts) }));
    });
    request.on("error", reject);
  });
}

function checkSourceMd5(context, data) {
  const expected = header(context, "x-ms-source-content-md5");
  if (expected && crypto.createHash("md5").update(data).digest("base64") !== expected) throw fail(context, 400, "Md5Mismatch");
}

/** Azurite names no SAS permission for Put Page From URL; it is the one of Put Page. */
function permitFromUrl() {
  for (const table of [blobSas.OPERATION_BLOB_SAS_BLOB_PERMISSIONS, blobSas.OPERATION_BLOB_SAS_CONTAINER_PERMISSIONS, accountSas])
    table.set(Operation.PageBlob_UploadPagesFromURL, table.get(Operation.PageBlob_UploadPages));
}

// ---- the store: one synchronous step changes ranges and tracking together -----------------------

function trackStore() {
  const { createBlob, resizePageBlob } = Store.prototype;

  async function write(store, context, blob, leaseConditions, conditions, sequenceConditions, change) {
    const doc = await store.getBlobWithLeaseUpdated(blob.accountName, blob.containerName, blob.name, "", context, true, true);
    const lease = new LeaseAdapter(doc);
    new WriteLeaseValidator(leaseConditions).validate(lease, context);
    validateWriteConditions(context, conditions, doc);
    validateSequenceNumberWriteConditions(context, sequenceConditions, doc);
    doc.pageRangesInOrder = doc.pageRangesInOrder || [];
    change(doc);
    new WriteLeaseSyncer(doc).sync(lease);
    doc.properties.etag = newEtag();
    doc.properties.lastModified = context.startTime || new Date();
    store.db.getCollection(store.BLOBS_COLLECTION).update(doc);
    return doc.properties;
  }

  Store.prototype.uploadPages = function (context, blob, start, end, persistency, lease, conditions, sequence) {
    return write(this, context, blob, lease, conditions, sequence, (doc) => {
      this.pageBlobRangesManager.mergeRange(doc.pageRangesInOrder, { start, end, persistency });
      tracking.record(doc, start, end + 1, false);
    });
  };
  Store.prototype.clearRange = function (context, blob, start, end, lease, conditions, sequence) {
    return write(this, context, blob, lease, conditions, sequence, (doc) => {
      this.pageBlobRangesManager.clearRange(doc.pageRangesInOrder, { start, end });
      tracking.record(doc, start, end + 1, true);
    });
  };
  Store.prototype.resizePageBlob = async function (context, account, container, blob, size, ...conditions) {
    const before = document(this, account, container, blob);
    const old = before ? before.properties.contentLength : 0;
    const properties = await resizePageBlob.call(this, context, account, container, blob, size, ...conditions);
    if (size < old) tracking.record(document(this, account, container, blob), size, old, true);
    return properties;
  };
  Store.prototype.createBlob = async function (context, blob, lease, conditions) {
    // The holder of the lease may write over the blob even with If-None-Match: * (recorded on the service).
    const existing = document(this, blob.accountName, blob.containerName, blob.name);
    refuseLeased(context, existing, lease);
    const holder = lease && lease.leaseId && existing && existing.leaseId === lease.leaseId;
    const relaxed = holder && conditions && conditions.ifNoneMatch === "*" ? { ...conditions, ifNoneMatch: undefined } : conditions;
    return createBlob.call(this, context, blob, lease, relaxed);
  };
}

// ---- speed: a true binary search, and CRC64, slow in plain JavaScript, only when the client sent one ----

function searchRanges() {
  RangesManager.prototype.locateFirstImpactedRange = function (ranges, low, high, position) {
    const beyond = high;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ranges[middle].end >= position) high = middle; else low = middle + 1;
    }
    return low < beyond ? low : Infinity;
  };
  RangesManager.prototype.locateLastImpactedRange = function (ranges, low, high, position) {
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ranges[middle].start <= position) low = middle + 1; else high = middle;
    }
    return low - 1;
  };
}

function spareChecksums() {
  const compute = commonUtils.computeTransactionalChecksums;
  commonUtils.computeTransactionalChecksums = async function (stream, expected, force) {
    if (expected.md5 || expected.crc64 || (force && force.md5)) return compute(stream, expected, { ...force, crc64: false });
    if (stream.destroy) stream.destroy();
    return {};
  };
}

module.exports = { INTERNAL, get, install };
