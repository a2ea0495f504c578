// Copy Blob as the service does it: no range array shared with the source, source conditions with their own code, copies
// that may stay pending, finish, fail or be aborted, and the refusals a pending copy means for its destination.
"use strict";
const { load, watch } = require("./azurite");
const { BLOB_API_VERSION, asBlobContext, document, fail, header, refuseLongSource } = require("./shared");
const { isExport } = require("./exports");
const { switches } = require("./switches");
const tracking = require("./tracking");

const BlobHandler = load("blob/handlers/BlobHandler").default;
const Store = load("blob/persistence/LokiBlobMetadataStore").default;
const LeaseAdapter = load("blob/lease/BlobLeaseAdapter").default;
const WriteLeaseValidator = load("blob/lease/BlobWriteLeaseValidator").default;
const { validateReadConditions } = load("blob/conditions/ReadConditionalHeadersValidator");
const { newEtag } = load("common/utils/utils");

function install() {
  for (const name of ["startCopyFromURL", "copyFromURL", "acquireBlobLease", "setBlobMetadata"]) watch(`Store.${name}`, Store.prototype, name);
  for (const name of ["abortCopyFromURL", "copyFromURL", "setHTTPHeaders", "validateCopySource"]) watch(`BlobHandler.${name}`, BlobHandler.prototype, name);

  const { startCopyFromURL, copyFromURL, acquireBlobLease, setBlobMetadata } = Store.prototype;
  Store.prototype.startCopyFromURL = async function (context, source, destination, copySource, metadata, tier, options = {}) {
    checkSource(this, context, source, options);
    checkDestination(this, context, destination, options);
    await startCopyFromURL.call(this, context, source, destination, copySource, metadata, tier, withoutSourceConditions(options));
    const doc = unshared(this, destination);
    const { mode, pendingFromBytes } = switches.copies;
    if (isExport(destination.account)) return doc.properties; // Resource Manager's own, and no copy of anybody's
    const policy = isExport(source.account) && new URL(copySource).searchParams.get("si");
    const read = policy ? { account: source.account, container: source.container, policy } : undefined;
    if (mode === "hold" || doc.properties.contentLength >= pendingFromBytes) suspend(this, doc, read);
    return doc.properties;
  };
  Store.prototype.copyFromURL = async function (context, source, destination, copySource, metadata, tier, options = {}) {
    checkSource(this, context, source, options);
    await copyFromURL.call(this, context, source, destination, copySource, metadata, tier, withoutSourceConditions(options));
    return unshared(this, destination).properties;
  };
  Store.prototype.acquireBlobLease = function (context, ...rest) {
    refusePending(this, context);
    return acquireBlobLease.call(this, context, ...rest);
  };
  Store.prototype.setBlobMetadata = function (context, ...rest) {
    refusePending(this, context);
    return setBlobMetadata.call(this, context, ...rest);
  };

  // A synchronous copy is read with the source's own authority only, and that is checked first.
  const { copyFromURL: synchronous } = BlobHandler.prototype;
  BlobHandler.prototype.copyFromURL = async function (copySource, options, context) {
    const signed = URL.canParse(copySource) && new URL(copySource).searchParams.get("sig");
    if (!signed && !header(context, "x-ms-copy-source-authorization")) throw fail(context, 401, "CannotVerifyCopySource");
    return synchronous.call(this, copySource, options, context);
  };
  BlobHandler.prototype.abortCopyFromURL = async function (copyId, options, context) {
    const at = asBlobContext(context);
    const doc = await this.metadataStore.getBlobWithLeaseUpdated(at.account, at.container, at.blob, "", context, true, true);
    new WriteLeaseValidator(options.leaseAccessConditions).validate(new LeaseAdapter(doc), context);
    if (!doc.pkPending) throw fail(context, 409, "NoPendingCopyOperation");
    if (doc.properties.copyId !== copyId) throw fail(context, 409, "CopyIdMismatch", { text: "The specified copy ID did not match the copy ID for the pending copy operation." });
    end(this.metadataStore, doc, "aborted");
    return {
      statusCode: 204, requestId: context.contextId, version: BLOB_API_VERSION, date: context.startTime,
      clientRequestId: options.requestId,
    };
  };

  const { setHTTPHeaders, validateCopySource } = BlobHandler.prototype;
  BlobHandler.prototype.setHTTPHeaders = async function (options, context) {
    refusePending(this.metadataStore, context);
    const answer = await setHTTPHeaders.call(this, options, context);
    forget(this.metadataStore, context);
    return answer;
  };
  BlobHandler.prototype.validateCopySource = async function (copySource, ...rest) {
    refuseLongSource(rest[1], copySource);
    try {
      return await validateCopySource.call(this, copySource, ...rest);
    } catch (error) {
      // A private blob without any authority "does not exist" for a stranger.
      const anonymous = !new URL(copySource).searchParams.get("sig");
      if (anonymous && error.statusCode !== 404) throw fail(rest[1], 404, "CannotVerifyCopySource", { text: "The specified resource does not exist." });
      throw error;
    }
  };
}

function checkSource(store, context, source, options) {
  const asked = options.sourceModifiedAccessConditions;
  const doc = document(store, source.account, source.container, source.blob, source.snapshot);
  if (!asked || !doc) return;
  try {
    validateReadConditions(context, {
      ifMatch: asked.sourceIfMatch, ifNoneMatch: asked.sourceIfNoneMatch, ifTags: asked.sourceIfTags,
      ifModifiedSince: asked.sourceIfModifiedSince, ifUnmodifiedSince: asked.sourceIfUnmodifiedSince,
    }, doc, true);
  } catch {
    throw fail(context, 412, "SourceConditionNotMet");
  }
}

const withoutSourceConditions = (options) => ({ ...options, sourceModifiedAccessConditions: undefined });

function checkDestination(store, context, destination, options) {
  const doc = document(store, destination.account, destination.container, destination.blob);
  if (doc && doc.pkPending) throw fail(context, 409, "PendingCopyOperation");
  refuseLeased(context, doc, options.leaseAccessConditions);
  if (!doc && options.leaseAccessConditions && options.leaseAccessConditions.leaseId)
    throw fail(context, 412, "LeaseNotPresentWithBlobOperation");
}

/** The destination with range lists of its own; Azurite lets it share the source's, so that a write shows in both. */
function unshared(store, destination) {
  const doc = document(store, destination.account, destination.container, destination.blob);
  for (const list of ["pageRangesInOrder", "committedBlocksInOrder"]) if (doc[list]) doc[list] = doc[list].slice();
  tracking.restart(doc);
  return doc;
}

// ---- pending copies ------------------------------------------------------------------------------

const CONTENT = ["pageRangesInOrder", "committedBlocksInOrder", "persistency"];

/** Take the content away until the copy ends. A page blob has its full length at once, all zeros; a block blob none. `read` is the
 * export that it reads by. */
function suspend(store, doc, read) {
  const size = doc.properties.contentLength;
  doc.pkPending = { size, read, ...Object.fromEntries(CONTENT.map((key) => [key, doc[key]])) };
  empty(doc);
  Object.assign(doc.properties, { copyStatus: "pending", copyProgress: `0/${size}`, copyCompletionTime: undefined });
  if (doc.properties.blobType !== "PageBlob") doc.properties.contentLength = 0;
  update(store, doc);
  if (switches.copies.mode !== "hold") {
    const { copyId } = doc.properties;
    setTimeout(() => {
      if (doc.pkPending && doc.properties.copyId === copyId) end(store, doc, "success");
    }, switches.copies.pendingMs).unref();
  }
}

function empty(doc) {
  for (const key of CONTENT) doc[key] = Array.isArray(doc[key]) ? [] : undefined;
  doc.pkChanges = [];
}

/** Whether an export is granted still: what is copied of one whose access was ended, or replaced by a second grant, fails. */
function granted(store, { account, container, policy }) {
  const found = store.db.getCollection(store.CONTAINERS_COLLECTION).findOne({ accountName: account, name: container });
  const known = ((found && found.containerAcl) || []).find((one) => one.id === policy);
  return Boolean(known) && new Date(known.accessPolicy.expiry) > new Date();
}

/** End a pending copy as success, failed or aborted; only success leaves content, all change ETag and Last-Modified. */
function end(store, doc, wanted) {
  const { size, read, ...content } = doc.pkPending;
  const status = wanted === "success" && read && !granted(store, read) ? "failed" : wanted;
  delete doc.pkPending;
  if (status === "success") {
    Object.assign(doc, content);
    tracking.restart(doc);
  }
  Object.assign(doc.properties, {
    copyStatus: status, copyCompletionTime: new Date(), lastModified: new Date(), etag: newEtag(),
    contentLength: status === "success" ? size : 0,
    copyProgress: status === "success" ? `${size}/${size}` : `0/${size}`,
    copyStatusDescription: status === "failed" ? "500 InternalServerError \"Copy failed.\"" : undefined,
  });
  update(store, doc);
}

const update = (store, doc) => store.db.getCollection(store.BLOBS_COLLECTION).update(doc);

const OF_COPY = ["copyId", "copySource", "copyStatus", "copyStatusDescription", "copyProgress", "copyCompletionTime"];

/** Set Blob Properties after a concluded copy: no answer has anything of that copy any more (Get Blob Properties, x-ms-copy-id). */
function forget(store, context) {
  const at = asBlobContext(context);
  const doc = document(store, at.account, at.container, at.blob);
  for (const name of OF_COPY) delete doc.properties[name];
  update(store, doc);
}

/** 412 for a blob that is leased, without its lease: looked at before If-None-Match (Azurite#2637 has the service's answer). */
function refuseLeased(context, doc, lease) {
  if (doc && !(lease && lease.leaseId)) new WriteLeaseValidator(lease).validate(new LeaseAdapter(doc), context);
}

/** 409 while the blob of this request is the destination of a pending copy. */
function refusePending(store, context) {
  const at = asBlobContext(context);
  const doc = document(store, at.account, at.container, at.blob);
  if (doc && doc.pkPending) throw fail(context, 409, "PendingCopyOperation");
}

module.exports = { end, forget, install, refuseLeased, refusePending };
