// The official JavaScript client against a gateway: node client.mjs BASE_URL BINDING
// Prints one JSON document with what it saw; the test beside it judges.
import { randomUUID } from "node:crypto";
import { verifyAgentCardSignature } from "@a2a-js/sdk";
import { ClientFactory, ClientFactoryOptions, JsonRpcTransportFactory, RestTransportFactory } from "@a2a-js/sdk/client";
import { GrpcTransportFactory } from "@a2a-js/sdk/client/grpc";

const [baseUrl, binding, hookUrl] = process.argv.slice(2);
const seen = {};

const transports = {
  JSONRPC: new JsonRpcTransportFactory(),
  "HTTP+JSON": new RestTransportFactory(),
  GRPC: new GrpcTransportFactory(),
};
const factory = new ClientFactory(
  ClientFactoryOptions.createFrom(ClientFactoryOptions.default, {
    transports: [transports[binding]],
    preferredTransports: [binding],
  }),
);

function message(text, fields = {}) {
  return {
    tenant: "",
    configuration: undefined,
    metadata: undefined,
    ...fields.request,
    message: {
      messageId: randomUUID(),
      contextId: "",
      taskId: "",
      role: 1,
      parts: [{ content: { $case: "text", value: text }, metadata: undefined, filename: "", mediaType: "" }],
      metadata: undefined,
      extensions: [],
      referenceTaskIds: [],
      ...fields.message,
    },
  };
}

const kinds = (events) => events.map((event) => event.payload?.$case);
const collect = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};
const refusal = async (work) => {
  try {
    await work();
    return "nothing was refused";
  } catch (error) {
    return error.constructor.name;
  }
};

const card = await (await fetch(`${baseUrl}/.well-known/agent-card.json`)).json();
const keySet = await (await fetch(new URL("/.well-known/jwks.json", baseUrl))).json();
const client = await factory.createFromUrl(`${baseUrl}/`, ".well-known/agent-card.json");
seen.name = card.name;

const retrieve = async (kid) => keySet.keys.find((key) => key.kid === kid);
const official = await client.getAgentCard(); // the extended one, where the card says that there is one
seen.extended = official.skills.map((skill) => skill.id);
seen.verified = await verifyAgentCardSignature(retrieve)(official).then(() => true, (error) => String(error));
official.supportedInterfaces[0].url = "https://attacker.example";
seen.changedVerified = await verifyAgentCardSignature(retrieve)(official).then(() => true, () => false);

const events = await collect(client.sendMessageStream(message("stream 3")));
seen.stream = kinds(events);
const taskId = events[0].payload.value.id;

const task = await client.getTask({ tenant: "", id: taskId });
seen.parts = task.artifacts[0].parts.map((part) => part.content.value);

const sent = await client.sendMessage(message("message good day"));
seen.message = (sent.payload?.value ?? sent).parts[0].content.value;

const follow = client.sendMessageStream(message("stream 20 0.05"));
const first = await follow[Symbol.asyncIterator]().next();
const followed = first.value.payload.value.id;
await follow.return?.();
const rest = await collect(client.resubscribeTask({ tenant: "", id: followed }));
seen.resubscribed = { first: rest[0].payload.$case, last: rest.at(-1).payload.value.status.state };

const slow = client.sendMessageStream(message("slow 30"));
const slowTask = (await slow[Symbol.asyncIterator]().next()).value.payload.value.id;
await slow.return?.();
const push = await client.createTaskPushNotificationConfig({
  tenant: "", id: "hook", taskId: slowTask, url: hookUrl, token: "the-token", authentication: undefined,
});
seen.push = { id: push.id, token: push.token ?? "" };
seen.canceled = (await client.cancelTask({ tenant: "", id: slowTask, metadata: undefined })).status.state;

seen.notFound = await refusal(() => client.getTask({ tenant: "", id: "nobody" }));
seen.notCancelable = await refusal(() => client.cancelTask({ tenant: "", id: slowTask, metadata: undefined }));

process.stdout.write("\n" + JSON.stringify(seen));
process.exit(0);
