// The main job with an unmodified AWS SDK for JavaScript v3, in the protocol that MILLSTREAM_PROTOCOL names.
// Endpoint, Region and keys: the SDK's own variables, as `millstream env` sets them; MILLSTREAM_IMAGE: an image to start from.
import assert from "node:assert/strict";
import * as sdk from "@aws-sdk/client-appstream";
import { AwsSmithyRpcV2CborProtocol } from "@aws-sdk/core/protocols";

const protocol = process.env.MILLSTREAM_PROTOCOL ?? "json";
const client = new sdk.AppStreamClient({
  maxAttempts: 1,
  ...(protocol === "cbor" ? { protocol: AwsSmithyRpcV2CborProtocol } : {}),
});
const spoken = new Set();
client.middlewareStack.add((next) => (call) => { spoken.add(call.request.headers["content-type"]); return next(call); },
  { step: "finalizeRequest" });
const send = (name, input) => client.send(new sdk[`${name}Command`](input));
const Name = `javascript-${protocol}-${process.pid}`;

async function refused(name, input, code, status, message) {
  const error = await send(name, input).then(() => assert.fail(`${name} was not refused`), (error) => error);
  assert.equal(error.name, code, `${name}: ${error.stack}`);
  assert.match(error.message, message);
  assert.equal(error.$metadata.httpStatusCode, status);
  assert.ok(error.$metadata.requestId, "an error carries its request id");
  if (sdk[code]) assert.ok(error instanceof sdk[code], `${code} arrives as the SDK's own class`);
}

async function until(what, limit_s, condition) {
  for (const end = Date.now() + limit_s * 1000; Date.now() < end; await new Promise((r) => setTimeout(r, 50))) {
    if (await condition()) return;
  }
  assert.fail(`${what}: not within ${limit_s} s`);
}

const described = async () => (await send("DescribeImageBuilders", { Names: [Name] })).ImageBuilders[0];
const gone = () => described().then(() => false, (error) => {
  if (error instanceof sdk.ResourceNotFoundException) return true;
  throw error;
});

await refused("DescribeImageBuilders", { Names: [Name] }, "ResourceNotFoundException", 404, /./);
await refused("DeleteImageBuilder", { Name: "-" }, "ValidationException", 400, /^1 validation error detected: Value '-' at 'name'/);
await refused("DeleteImageBuilder", { Name: "x".repeat(102) }, "ValidationException", 400, /regular expression pattern/);

const started = Date.now();
const { ImageBuilder: created } = await send("CreateImageBuilder", {
  Name, InstanceType: "stream.standard.small", ImageName: process.env.MILLSTREAM_IMAGE ?? "AppStream-WinServer2019-10-05-2022",
  Description: "ünï – 文字 😀", EnableDefaultInternetAccess: false, Tags: { Kostenstelle: "Süd 1" },
});
assert.equal(created.Name, Name);
assert.equal(created.State, "PENDING");
assert.equal(created.Description, "ünï – 文字 😀");
assert.equal(created.EnableDefaultInternetAccess, false);
assert.ok(created.CreatedTime instanceof Date && Math.abs(created.CreatedTime - started) < 60_000, `${created.CreatedTime}`);
await refused("CreateImageBuilder", { Name, InstanceType: "stream.standard.small", ImageName: "any" },
  "ResourceAlreadyExistsException", 400, /./);

await until("RUNNING", 120, async () => (await described()).State === "RUNNING");
const { Tags } = await send("ListTagsForResource", { ResourceArn: created.Arn });
assert.deepEqual(Tags, { Kostenstelle: "Süd 1" });
assert.deepEqual(Object.keys(await send("TagResource", { ResourceArn: created.Arn, Tags: { a: "" } })), ["$metadata"]);

const { StreamingURL, Expires } = await send("CreateImageBuilderStreamingURL", { Name, Validity: 60 });
assert.ok(new URL(StreamingURL));
assert.ok(Expires instanceof Date && Expires > Date.now() && Expires < Date.now() + 120_000, `${Expires}`);

const { ImageBuilder: deleted } = await send("DeleteImageBuilder", { Name });
assert.equal(deleted.State, "DELETING");
await until("gone", 60, gone);

assert.deepEqual([...spoken], [protocol === "cbor" ? "application/cbor" : "application/x-amz-json-1.1"]);
console.log(JSON.stringify({ protocol, name: Name, ok: true }));
