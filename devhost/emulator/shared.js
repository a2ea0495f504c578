// Small helpers every patch uses: typed service errors, the blob document behind a request, header access.
"use strict";
const { load } = require("./azurite");

const StorageError = load("blob/errors/StorageError").default;
const BlobContext = load("blob/context/BlobStorageContext").default;
const { BLOB_API_VERSION } = load("blob/utils/constants");

const PAGE = 512;
const PUT_BYTES_MAX = 4 * 1024 * 1024;
const COPY_SOURCE_LENGTH_MAX = 2048;
const BLOB_BYTES_MAX = 8 * 1024 ** 4;

const TEXT = {
  AuthenticationFailed: "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature.",
  AuthorizationPermissionMismatch: "This request is not authorized to perform this operation using this permission.",
  BlobOverwritten: "The blob has been recreated since the previous snapshot was taken.",
  CannotVerifyCopySource: "Could not verify the copy source within the specified time.",
  CopySourceCannotBeIncrementalCopyBlob: "Source blob of a copy operation cannot be non-committed incremental copy blob.",
  InvalidHeaderValue: "The value for one of the HTTP headers is not in the correct format.",
  InvalidPageRange: "The page range specified is invalid.",
  InvalidQueryParameterValue: "Value for one of the query parameters specified in the request URI is invalid.",
  InvalidRange: "The range specified is invalid for the current size of the resource.",
  LeaseLost: "A lease ID was specified, but the lease for the blob has expired.",
  LeaseNotPresentWithBlobOperation: "There is currently no lease on the blob.",
  Md5Mismatch: "The MD5 value specified in the request did not match with the MD5 value calculated by the server.",
  NoPendingCopyOperation: "There is currently no pending copy operation.",
  OutOfRangeQueryParameterValue: "One of the query parameters specified in the request URI is outside the permissible range.",
  PendingCopyOperation: "There is currently a pending copy operation.",
  PreviousSnapshotCannotBeNewer: "The prevsnapshot query parameter value cannot be newer than snapshot query parameter value.",
  PreviousSnapshotNotFound: "The previous snapshot is not found.",
  PreviousSnapshotOperationNotSupported: "The operation is not supported against this blob's previous snapshot.",
  RequestBodyTooLarge: "The request body is too large and exceeds the maximum permissible limit.",
  ResourceNotFound: "The specified resource does not exist.",
  SourceConditionNotMet: "The source condition specified using HTTP conditional header(s) is not met.",
  UnsupportedHeader: "One of the HTTP headers specified in the request is not supported.",
  UnsupportedQueryParameter: "One of the query parameters specified in the request URI is not supported.",
};

/** A service error with the documented text of its code; `extra` elements go into the XML body, `headers` into the answer. */
function fail(context, status, code, { extra = {}, headers = {}, text } = {}) {
  const error = new StorageError(status, code, text || TEXT[code], context.contextId, extra);
  Object.assign(error.headers, headers);
  if (status === 304) { error.body = undefined; error.contentType = undefined; }
  return error;
}

const invalidHeader = (context, name, value) =>
  fail(context, 400, "InvalidHeaderValue", { extra: { HeaderName: name, HeaderValue: String(value) } });

/** The source of a copy is a URL of up to 2 KiB, as it is sent (Copy Blob, Put Page From URL). */
function refuseLongSource(context, url) {
  if (String(url).length > COPY_SOURCE_LENGTH_MAX) throw invalidHeader(context, "x-ms-copy-source", url);
}

const asBlobContext = (context) => new BlobContext(context);
const header = (context, name) => context.request.getHeader(name);

/** The stored document of a blob or snapshot, without any check; undefined when there is none. */
function document(store, accountName, containerName, name, snapshot = "") {
  const found = store.db.getCollection(store.BLOBS_COLLECTION).findOne({ accountName, containerName, name, snapshot });
  return found || undefined;
}

/** `[first, last]` of a Range or x-ms-range header (inclusive), or undefined without one. */
function requestedRange(context) {
  const text = header(context, "x-ms-range") || header(context, "range");
  const match = /^bytes=(\d+)-(\d*)$/.exec(text || "");
  return match ? [Number(match[1]), match[2] === "" ? Infinity : Number(match[2])] : undefined;
}

module.exports = {
  BLOB_API_VERSION, BLOB_BYTES_MAX, PAGE, PUT_BYTES_MAX, StorageError,
  asBlobContext, document, fail, header, invalidHeader, refuseLongSource, requestedRange,
};
