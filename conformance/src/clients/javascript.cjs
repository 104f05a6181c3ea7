// What programs with the AWS SDK for JavaScript do: `javascript.cjs STORY BUCKET`, with the endpoint and the keys in the
// environment.

"use strict";

const assert = require("node:assert/strict");
const { randomBytes } = require("node:crypto");
const { createReadStream, writeFileSync } = require("node:fs");
const { Readable } = require("node:stream");
const { setTimeout } = require("node:timers/promises");
const {
  S3Client,
  S3ServiceException,
  NoSuchKey,
  PutObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  CopyObjectCommand,
  DeleteObjectCommand,
  DeleteObjectsCommand,
  ListObjectsV2Command,
  ListMultipartUploadsCommand,
  GetObjectTaggingCommand,
  paginateListObjectsV2,
  waitUntilObjectExists,
  waitUntilObjectNotExists,
} = require("@aws-sdk/client-s3");
const { Upload } = require("@aws-sdk/lib-storage");
const { getSignedUrl } = require("@aws-sdk/s3-request-presigner");

const client = new S3Client({ forcePathStyle: true, maxAttempts: 1 });
const [story, Bucket] = process.argv.slice(2);

async function read(Key, rest = {}) {
  const got = await client.send(new GetObjectCommand({ Bucket, Key, ...rest }));
  return Buffer.from(await got.Body.transformToByteArray());
}

async function objects() {
  const Key = "a/ü +%";
  await client.send(
    new PutObjectCommand({ Bucket, Key, Body: "hello", Metadata: { color: "red" }, Tagging: "x=1", ContentType: "text/plain" }),
  );
  const head = await client.send(new HeadObjectCommand({ Bucket, Key, ChecksumMode: "ENABLED" }));
  assert.equal(head.ContentLength, 5);
  assert.equal(head.ContentType, "text/plain");
  assert.deepEqual(head.Metadata, { color: "red" });
  assert.ok(head.ChecksumCRC32);
  assert.equal((await read(Key, { Range: "bytes=1-3" })).toString(), "ell");
  const tags = await client.send(new GetObjectTaggingCommand({ Bucket, Key }));
  assert.deepEqual(tags.TagSet, [{ Key: "x", Value: "1" }]);
  await client.send(new CopyObjectCommand({ Bucket, Key: "b", CopySource: `${Bucket}/${encodeURIComponent(Key)}` }));
  assert.equal((await read("b")).toString(), "hello");
  for (const ChecksumAlgorithm of ["CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"]) {
    await client.send(new PutObjectCommand({ Bucket, Key: ChecksumAlgorithm, Body: "123456789", ChecksumAlgorithm }));
    // The SDK compares while the body is read.
    assert.equal((await read(ChecksumAlgorithm, { ChecksumMode: "ENABLED" })).toString(), "123456789");
  }
  const listed = await client.send(new ListObjectsV2Command({ Bucket }));
  const Objects = listed.Contents.map(({ Key }) => ({ Key }));
  const deleted = await client.send(new DeleteObjectsCommand({ Bucket, Delete: { Objects } }));
  assert.equal(deleted.Deleted.length, 7);
  assert.equal(deleted.Errors, undefined);
}

async function errors() {
  await assert.rejects(client.send(new GetObjectCommand({ Bucket, Key: "missing" })), (error) => {
    assert.ok(error instanceof NoSuchKey);
    assert.ok(error.$metadata.requestId);
    return true;
  });
  const isPrecondition = (error) => error instanceof S3ServiceException && error.name === "PreconditionFailed";
  await client.send(new PutObjectCommand({ Bucket, Key: "k", Body: "1", IfNoneMatch: "*" }));
  await assert.rejects(client.send(new PutObjectCommand({ Bucket, Key: "k", Body: "2", IfNoneMatch: "*" })), isPrecondition);
  await assert.rejects(
    client.send(new ListObjectsV2Command({ Bucket: `${Bucket}-missing` })),
    (error) => error.name === "NoSuchBucket",
  );
}

async function uploads() {
  const partSize = 5 << 20;
  const content = Buffer.concat([randomBytes(12 << 20), Buffer.alloc(partSize), Buffer.from("end")]);
  const seen = [];
  const upload = new Upload({ client, partSize, queueSize: 4, params: { Bucket, Key: "large", Body: content } });
  upload.on("httpUploadProgress", ({ loaded }) => seen.push(loaded));
  const done = await upload.done();
  assert.match(done.ETag, /-4"$/);
  assert.equal(Math.max(...seen), content.length);
  assert.ok((await read("large")).equals(content));
  // From a stream whose length nobody knows, and from one of a file.
  const chunks = Readable.from((function* () {
    for (let at = 0; at < content.length; at += 1_000_003) yield content.subarray(at, at + 1_000_003);
  })());
  await new Upload({ client, partSize, params: { Bucket, Key: "stream", Body: chunks } }).done();
  assert.ok((await read("stream")).equals(content));
  writeFileSync("file", content);
  await client.send(
    new PutObjectCommand({ Bucket, Key: "file", Body: createReadStream("file"), ContentLength: content.length }),
  );
  assert.ok((await read("file")).equals(content));
  // One that is given up leaves nothing.
  const given = new Upload({ client, partSize, params: { Bucket, Key: "given up", Body: content } });
  given.on("httpUploadProgress", () => given.abort());
  await assert.rejects(given.done(), (error) => error.name === "AbortError");
  // `done` does not wait until the parts that were on their way have come back and the upload is aborted.
  for (let tries = 0; ; tries += 1) {
    const left = await client.send(new ListMultipartUploadsCommand({ Bucket }));
    if (left.Uploads === undefined) break;
    assert.ok(tries < 100, "the upload that was given up is still there");
    await setTimeout(100);
  }
}

async function pages() {
  const keys = Array.from({ length: 7 }, (_, n) => `page/${n}`);
  for (const Key of keys) await client.send(new PutObjectCommand({ Bucket, Key, Body: "" }));
  const found = [];
  for await (const page of paginateListObjectsV2({ client, pageSize: 2 }, { Bucket, Prefix: "page/" })) {
    found.push(...page.Contents.map(({ Key }) => Key));
  }
  assert.deepEqual(found, keys);
  const folded = await client.send(new ListObjectsV2Command({ Bucket, Delimiter: "/" }));
  assert.deepEqual(folded.CommonPrefixes, [{ Prefix: "page/" }]);
}

async function waiters() {
  const options = { client, maxWaitTime: 20, minDelay: 1, maxDelay: 1 };
  const put = setTimeout(300).then(() => client.send(new PutObjectCommand({ Bucket, Key: "late", Body: "" })));
  assert.equal((await waitUntilObjectExists(options, { Bucket, Key: "late" })).state, "SUCCESS");
  await put;
  await client.send(new DeleteObjectCommand({ Bucket, Key: "late" }));
  assert.equal((await waitUntilObjectNotExists(options, { Bucket, Key: "late" })).state, "SUCCESS");
}

async function presigned_urls() {
  const Key = "by url/ü+";
  const put = await getSignedUrl(client, new PutObjectCommand({ Bucket, Key }), { expiresIn: 60 });
  assert.equal((await fetch(put, { method: "PUT", body: "by url" })).status, 200);
  const get = await getSignedUrl(client, new GetObjectCommand({ Bucket, Key }), { expiresIn: 60 });
  assert.equal(await (await fetch(get)).text(), "by url");
  const spoiled = get.replace(/X-Amz-Signature=(.)/, (_, digit) => `X-Amz-Signature=${digit === "0" ? "1" : "0"}`);
  assert.equal((await fetch(spoiled)).status, 403);
}

const stories = { objects, errors, uploads, pages, waiters, presigned_urls };
stories[story]().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
