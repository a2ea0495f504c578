// Snapshots: unique, growing ids; the conditions of a write; tracking frozen with them; complete, ordered listings.
"use strict";
const { load, watch } = require("./azurite");
const { fail } = require("./shared");
const { refusePending } = require("./copies");
const { isExport } = require("./exports");
const tracking = require("./tracking");

const Store = load("blob/persistence/LokiBlobMetadataStore").default;
const LeaseSyncer = load("blob/lease/BlobLeaseSyncer").default;
const LeaseAdapter = load("blob/lease/BlobLeaseAdapter").default;
const ReadLeaseValidator = load("blob/lease/BlobReadLeaseValidator").default;
const WriteLeaseValidator = load("blob/lease/BlobWriteLeaseValidator").default;
const { validateWriteConditions } = load("blob/conditions/WriteConditionalHeadersValidator");
const BlobSasAuthenticator = load("blob/authentication/BlobSASAuthenticator").default;

const NO_LEASE = {
  leaseId: undefined, leaseExpireTime: undefined, leaseDurationSeconds: undefined, leaseBreakTime: undefined,
  leaseDurationType: undefined, leaseState: undefined, leaseStatus: undefined,
};

function install() {
  for (const name of ["createSnapshot", "listBlobs"]) watch(`Store.${name}`, Store.prototype, name);
  watch("WriteLeaseValidator.validate", WriteLeaseValidator.prototype, "validate");
  watch("BlobSasAuthenticator.getBlobSASSignatureValuesFromRequest", BlobSasAuthenticator.prototype, "getBlobSASSignatureValuesFromRequest");
  const { listBlobs } = Store.prototype;

  Store.prototype.createSnapshot = async function (context, account, container, blob, leaseConditions, metadata, conditions) {
    const base = await this.getBlobWithLeaseUpdated(account, container, blob, "", context, true, true);
    validateWriteConditions(context, conditions, base);
    new ReadLeaseValidator(leaseConditions).validate(new LeaseAdapter(base), context);
    refusePending(this, context);
    const snapshot = nextId();
    const { $loki, meta, ...fields } = base;
    const copy = {
      ...fields, snapshot, properties: { ...base.properties }, metadata: { ...(metadata || base.metadata) },
      pageRangesInOrder: base.pageRangesInOrder && base.pageRangesInOrder.slice(),
      committedBlocksInOrder: base.committedBlocksInOrder && base.committedBlocksInOrder.slice(),
      persistency: base.persistency && { ...base.persistency },
    };
    new LeaseSyncer(copy).sync(NO_LEASE);
    if (isExport(account)) Object.assign(copy.properties, { isIncrementalCopy: true, copyStatus: "success" });
    tracking.freeze(base, copy);
    this.db.getCollection(this.BLOBS_COLLECTION).insert(copy);
    return { properties: copy.properties, snapshot };
  };

  // Azurite lists snapshots in any order and loses items between pages: order by name, then snapshots oldest first, base last.
  Store.prototype.listBlobs = async function (context, account, container, delimiter, blob, prefix, limit, marker, snapshots, ...rest) {
    if (!snapshots || delimiter) return listBlobs.call(this, context, account, container, delimiter, blob, prefix, limit, marker, snapshots, ...rest);
    const [all, prefixes] = await listBlobs.call(this, context, account, container, delimiter, blob, prefix, Number.MAX_SAFE_INTEGER, "", true, ...rest);
    const key = (doc) => `${doc.name}\0${doc.snapshot || "\uffff"}`;
    const after = marker ? Buffer.from(marker, "base64").toString() : "";
    const items = all.map((doc) => [key(doc), doc]).filter(([at]) => at > after).sort(([a], [b]) => (a < b ? -1 : 1));
    const page = items.slice(0, limit);
    const next = items.length > page.length ? Buffer.from(page[page.length - 1][0]).toString("base64") : "";
    return [page.map(([, doc]) => doc), prefixes, next];
  };

  // "No lease" and "lease expired" are two codes on the service.
  const { validate } = WriteLeaseValidator.prototype;
  WriteLeaseValidator.prototype.validate = function (lease, context) {
    const given = this.leaseAccessConditions && this.leaseAccessConditions.leaseId;
    if (given && lease.leaseStatus !== "locked")
      throw fail(context, 412, lease.leaseState === "available" ? "LeaseNotPresentWithBlobOperation" : "LeaseLost");
    return validate.call(this, lease, context);
  };

  // A container's or blob's SAS reads snapshots too; Azurite signs the snapshot in for every kind of SAS.
  const { getBlobSASSignatureValuesFromRequest } = BlobSasAuthenticator.prototype;
  BlobSasAuthenticator.prototype.getBlobSASSignatureValuesFromRequest = function (...args) {
    const values = getBlobSASSignatureValuesFromRequest.apply(this, args);
    if (values && values.signedResource !== "bs") values.snapshot = "";
    return values;
  };
}

let last = 0n;

/** A snapshot id later than every other of this process: 100 ns steps within one millisecond. */
function nextId() {
  const now = BigInt(Date.now()) * 10000n;
  last = now > last ? now : last + 1n;
  const millis = Number(last / 10000n);
  return `${new Date(millis).toISOString().slice(0, -1)}${String(last % 10000n).padStart(4, "0")}Z`;
}

module.exports = { install };
