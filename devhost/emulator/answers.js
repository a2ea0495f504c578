// The form of answers: byte-order mark, raw page lists, headers per verb as the service was recorded to send them, and
// what a stranger or a malformed snapshot id is told.
"use strict";
const { load, watch } = require("./azurite");
const { StorageError, fail, requestedRange } = require("./shared");

const serializer = load("blob/generated/utils/serializer");
const xml = load("blob/generated/utils/xml");
const { Operation } = load("blob/generated/artifacts/operation");

const BlobHandler = load("blob/handlers/BlobHandler").default;
const Authentication = load("blob/middlewares/AuthenticationMiddlewareFactory").default;

const ErrorFactory = load("blob/errors/StorageErrorFactory").default;

/** Errors whose text an operator may search for, in the service's words. */
const WORDED = {
  getSequenceNumberConditionNotMet: [412, "SequenceNumberConditionNotMet", "The sequence number condition specified was not met."],
  getSnapshotsPresent: [409, "SnapshotsPresent", "This operation is not permitted because the blob has snapshots."],
};

const BOM = "\ufeff";
const SNAPSHOT_ID = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?Z$/;

function install() {
  watch("serializer.serialize", serializer, "serialize");
  watch("xml.stringifyXML", xml, "stringifyXML");
  watch("xml.jsonToXML", xml, "jsonToXML");
  answerStrangers();
  checkSnapshotIds();
  checkReadRanges();
  const { serialize } = serializer;
  const { stringifyXML, jsonToXML } = xml;

  xml.stringifyXML = (...args) => BOM + stringifyXML(...args);
  xml.jsonToXML = (...args) => BOM + jsonToXML(...args);
  for (const [method, [status, code, text]] of Object.entries(WORDED)) {
    watch(`StorageErrorFactory.${method}`, ErrorFactory, method);
    ErrorFactory[method] = (contextId) => new StorageError(status, code, text, contextId);
  }

  serializer.serialize = async function (context, response, spec, answer, logger) {
    const operation = context.operation;
    const ofSnapshot = Boolean(context.request && context.request.getQuery("snapshot"));
    const headerless = answer.rawXml === undefined ? spec : withoutBody(spec, answer.statusCode);
    await serialize(context, response, headerless, shaped(operation, ofSnapshot, answer), logger);
    for (const [name, value] of Object.entries(added(operation))) response.setHeader(name, value);
    if (answer.rawXml !== undefined) {
      response.setContentType("application/xml");
      response.getBodyStream().write(BOM + answer.rawXml);
    }
  };
}

/** An unsigned read of private data is answered as if there were nothing. */
function answerStrangers() {
  watch("Authentication.authenticate", Authentication.prototype, "authenticate");
  const { authenticate } = Authentication.prototype;
  Authentication.prototype.authenticate = async function (context, request, ...rest) {
    const passed = await authenticate.call(this, context, request, ...rest);
    const signed = request.getHeader("authorization") || request.getQuery("sig");
    if (!passed && !signed && ["GET", "HEAD"].includes(request.getMethod())) throw fail(context, 404, "ResourceNotFound");
    return passed;
  };
}

/** A read that begins at or past the end; Azurite lets one through that begins exactly there. */
function checkReadRanges() {
  watch("BlobHandler.downloadPageBlob", BlobHandler.prototype, "downloadPageBlob");
  const { downloadPageBlob } = BlobHandler.prototype;
  BlobHandler.prototype.downloadPageBlob = async function (options, context, blob) {
    const range = requestedRange(context), size = blob.properties.contentLength;
    if (range && range[0] >= size) throw fail(context, 416, "InvalidRange", { headers: { "content-range": `bytes */${size}` } });
    return downloadPageBlob.call(this, options, context, blob);
  };
}

/** What is refused before any handler: the code of a request Azurite's dispatcher turns down without one. */
function malformed(request) {
  const aborts = /[?&]comp=copy(&|$)/.test(request.url) && request.headers["x-ms-copy-action"];
  return aborts && !/[?&]copyid=/.test(request.url) ? { status: 400, code: "MissingRequiredQueryParameter" } : undefined;
}

function checkSnapshotIds() {
  for (const name of ["download", "getProperties"]) {
    watch(`BlobHandler.${name}`, BlobHandler.prototype, name);
    const original = BlobHandler.prototype[name];
    BlobHandler.prototype[name] = async function (options, context) {
      if (options.snapshot && !SNAPSHOT_ID.test(options.snapshot)) {
        const error = fail(context, 400, "InvalidQueryParameterValue", { extra: { QueryParameterName: "snapshot" } });
        if (context.request.getMethod() === "HEAD") delete error.headers["x-ms-error-code"];
        throw error;
      }
      return original.call(this, options, context);
    };
  }
}

function withoutBody(spec, status) {
  return { ...spec, responses: { ...spec.responses, [status]: { ...spec.responses[status], bodyMapper: undefined } } };
}

/** What the service leaves out: leases of snapshots, an inferred tier's change time, "not incremental". */
function shaped(operation, ofSnapshot, answer) {
  if (operation === Operation.Container_ListBlobFlatSegment) return shapedListing(answer);
  if (![Operation.Blob_Download, Operation.Blob_GetProperties].includes(operation)) return answer;
  const tier = answer.accessTierInferred ? { accessTierChangeTime: undefined } : {};
  const copy = answer.isIncrementalCopy ? {} : { isIncrementalCopy: undefined };
  const lease = ofSnapshot ? { leaseState: undefined, leaseStatus: undefined, leaseDuration: undefined } : {};
  return { ...answer, ...tier, ...copy, ...lease };
}

function shapedListing(answer) {
  const blobItems = answer.segment.blobItems.map((item) => {
    const properties = { ...item.properties };
    if (properties.accessTierInferred) properties.accessTierChangeTime = undefined;
    if (item.snapshot) properties.leaseState = properties.leaseStatus = undefined;
    return { ...item, properties };
  });
  return { ...answer, segment: { ...answer.segment, blobItems } };
}

function added(operation) {
  if (operation === Operation.Blob_CreateSnapshot) return { "x-ms-request-server-encrypted": "false" };
  if (operation === Operation.Blob_Delete) return { "x-ms-delete-type-permanent": "true" };
  return {};
}

module.exports = { install, malformed };
