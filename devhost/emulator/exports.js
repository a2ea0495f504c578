// Export addresses of managed disks: what an md- account answers through the SAS that Resource Manager (devhost/arm) grants.
//
//   /md-local/CONTAINER/abcd?snapshot=TIME&sv=2018-11-09&sr=bs&si=POLICY&sig=…   a snapshot
//   /md-impexp-local/CONTAINER-DIGITS/abcd?sv=2018-11-09&sr=b&si=POLICY&sig=…    one with private access; DIGITS are of TIME
//   /md-impexp-local/CONTAINER/abcd?…                                           a disk: an upload
//
// One container for a disk, one blob in it, whose blob snapshots are the disk's snapshots: data and a footer of 512 bytes.
"use strict";
const { load } = require("./azurite");
const { PAGE, asBlobContext, fail } = require("./shared");
const { switches } = require("./switches");

const { Operation } = load("blob/generated/artifacts/operation");
const Authentication = load("blob/middlewares/AuthenticationMiddlewareFactory").default;

const PUBLIC = "/md-local/", PRIVATE = "/md-impexp-local/"; // named so in devhost/arm/exports.py
const FULL_COPY_BYTES = 4 * 1024 ** 4;
const TIME = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d{7})$/;

/** What a SAS is good for, reading and writing: nothing that makes, deletes, leases or labels a blob. */
const OPERATIONS = new Set([
  "Blob_Download", "Blob_GetProperties", "PageBlob_GetPageRanges", "PageBlob_GetPageRangesDiff", "PageBlob_UploadPages",
  "PageBlob_ClearPages", "PageBlob_UploadPagesFromURL",
].map((name) => Operation[name]));

/** The policies by which disks are written. */
const UPLOAD = /^upload-/; // named so in devhost/arm/access.py

/** Whether an upload takes any of these is not documented; azcopy sends none. */
const CONDITIONS = [
  "x-ms-lease-id", "x-ms-if-sequence-number-eq", "x-ms-if-sequence-number-le", "x-ms-if-sequence-number-lt",
  "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
];

const isExport = (account) => account.startsWith("md-");

function install() {
  const { authenticate } = Authentication.prototype;
  // Expired, revoked, of another snapshot, without its snapshot: one code for all.
  Authentication.prototype.authenticate = async function (context, request, ...rest) {
    if (!isExport(asBlobContext(context).account || "")) return authenticate.call(this, context, request, ...rest);
    let passed = false;
    try {
      passed = await authenticate.call(this, context, request, ...rest);
    } catch (error) {
      if (error.storageErrorCode !== "AuthorizationFailure") throw error;
    }
    if (!passed && switches.exports.uploadGone && UPLOAD.test(request.getQuery("si") || ""))
      throw fail(context, 404, "ContainerNotFound");
    if (!passed) throw fail(context, 403, "AuthenticationFailed");
    if (request.getQuery("sig") && !OPERATIONS.has(context.operation)) throw fail(context, 403, "AuthorizationPermissionMismatch");
    if (!switches.exports.rangeMd5 && request.getHeader("x-ms-range-get-content-md5")) throw fail(context, 400, "UnsupportedHeader");
    if (UPLOAD.test(request.getQuery("si") || "")) refuseUpload(context, request);
    return passed;
  };
}

function refuseUpload(context, request) {
  if (context.operation === Operation.Blob_Download && !switches.exports.uploadReads)
    throw fail(context, 403, "AuthorizationPermissionMismatch");
  // Neither azcopy nor Add-AzVhd nor Debian's uploader sends a checksum of pages.
  if (!switches.exports.uploadMd5 && request.getHeader("content-md5")) throw fail(context, 400, "UnsupportedHeader");
  if (CONDITIONS.some((name) => request.getHeader(name))) throw fail(context, 400, "UnsupportedHeader");
}

/** The address as it is served: a private one names the snapshot in its container. */
function served(address) {
  if (!address.startsWith(PRIVATE)) return address;
  const [, container, digits, rest] = /^([^/?-]*)(?:-(\d{21}))?(.*)$/.exec(address.slice(PRIVATE.length));
  if (!digits) return PUBLIC + container + rest;
  const [, ...parts] = TIME.exec(digits);
  const time = `${parts.slice(0, 3).join("-")}T${parts.slice(3, 6).join(":")}.${parts[6]}Z`;
  return `${PUBLIC}${container}${rest}${rest.includes("?") ? "&" : "?"}snapshot=${encodeURIComponent(time)}`;
}

function refuseCopySource(context, url) {
  if (url.pathname.startsWith(PRIVATE)) throw fail(context, 409, "CopySourceCannotBeIncrementalCopyBlob");
}

/** What a diff between two snapshots of a disk is refused for, its authority aside. */
function refuseDiff(context, previous, target) {
  const large = (doc) => doc.properties.contentLength - PAGE > FULL_COPY_BYTES;
  if (large(previous) !== large(target)) throw fail(context, 409, "PreviousSnapshotOperationNotSupported");
}

/** The ranges without those of the footers, where a diff does not tell of them. */
function withoutFooters(ranges, previous, target) {
  if (switches.exports.footerInDiff) return ranges;
  let left = ranges;
  for (const doc of [previous, target]) {
    const end = doc.properties.contentLength, start = end - PAGE;
    left = left.flatMap((range) => range.end <= start || range.start >= end ? [range]
      : [{ ...range, end: start }, { ...range, start: end }].filter((part) => part.start < part.end));
  }
  return left;
}

module.exports = { install, isExport, refuseCopySource, refuseDiff, served, withoutFooters };
