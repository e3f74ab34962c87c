// The tuning documentation's flow through @google/genai: `node flow.mjs WAY BASE DATASET [whole]`.
// WAY is how it signs in: "default" takes what the environment says, "client" a fixed token from TOKEN.
// Prints what it saw as JSON.
import { GoogleGenAI, JobState } from '@google/genai';
import { OAuth2Client } from 'google-auth-library';

const [way, baseUrl, dataset, extent] = process.argv.slice(2);
const BASE_MODEL = 'gemini-2.5-flash';
const ENDED = new Set([JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED]);

function options() {
  const common = { vertexai: true, project: 'demo', location: 'us-central1', httpOptions: { baseUrl } };
  if (way === 'default') return common;
  const authClient = new OAuth2Client();
  authClient.setCredentials({ access_token: process.env.TOKEN });
  return { ...common, apiVersion: 'v1', googleAuthOptions: { authClient } };
}

const ai = new GoogleGenAI(options());

async function all(pager) {
  const found = [];
  for await (const one of await pager) found.push(one);
  return found;
}

async function awaited(job) {
  const deadline = Date.now() + 60_000;
  while (!ENDED.has(job.state)) {
    if (Date.now() > deadline) throw new Error(`still ${job.state}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    job = await ai.tunings.get({ name: job.name });
  }
  return job;
}

const tune = (config) => ai.tunings.tune({ baseModel: BASE_MODEL, trainingDataset: { gcsUri: dataset }, config });

async function fault(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.name, status: error.status, message: error.message };
  }
  return null;
}

// Two questions to a chat that takes whole answers, and to one that takes them in pieces.
async function chat(model, ends = false) {
  const config = { temperature: 0, maxOutputTokens: 12, seed: 1 };
  if (ends) config.stopSequences = [(await ai.models.generateContent({ model, contents: 'q0', config })).text.slice(4, 6)];
  const [one, other] = [ai.chats.create({ model, config }), ai.chats.create({ model, config })];
  const seen = { texts: [], streamed: [], tokens: [], streamedTokens: [] };
  for (const message of ['q0', 'q1']) {
    const answer = await one.sendMessage({ message });
    seen.texts.push(answer.text ?? '');
    seen.tokens.push(answer.usageMetadata.promptTokenCount);
    const pieces = [];
    for await (const piece of await other.sendMessageStream({ message })) pieces.push(piece);
    seen.streamed.push(pieces.map((p) => p.text ?? '').join(''));
    seen.streamedTokens.push(pieces.at(-1).usageMetadata.promptTokenCount);
  }
  return { ...seen, history: [one, other].map((each) => each.getHistory(true).length >= 4) };
}

async function whole() {
  const made = await tune({ epochCount: 2, adapterSize: 'ADAPTER_SIZE_TWO', tunedModelDisplayName: 'from node', labels: { flow: 'node' } });
  const long = await tune({ epochCount: 200 });
  await ai.tunings.cancel({ name: long.name });
  const job = await awaited(made);
  const model = job.tunedModel.endpoint;
  const config = { temperature: 0, maxOutputTokens: 6, seed: 1 };
  const asked = { model, contents: 'q1', config };
  const answer = await ai.models.generateContent(asked);
  const pieces = [];
  for await (const piece of await ai.models.generateContentStream(asked)) pieces.push(piece);
  const registered = await ai.models.get({ model: job.tunedModel.model });
  return {
    made,
    job,
    cancelled: (await awaited(long)).state,
    chosen: (await all(ai.tunings.list({ config: { pageSize: 1, filter: 'labels.flow = "node"' } }))).map((j) => j.name),
    models: (await all(ai.models.list({ config: { queryBase: false } }))).map((m) => m.name),
    base: (await all(ai.models.list({ config: { queryBase: true } }))).map((m) => m.name),
    checkpoints: registered.checkpoints.map((c) => c.checkpointId),
    chats: [await chat(model), await chat(BASE_MODEL, true)],
    text: answer.text,
    streamed: pieces.map((p) => p.text ?? '').join(''),
    promptTokens: answer.usageMetadata.promptTokenCount,
    counted: (await ai.models.countTokens({ model, contents: 'q1' })).totalTokens,
    computed: (await ai.models.computeTokens({ model, contents: 'q1' })).tokensInfo[0].tokenIds.length,
    badAdapter: await fault(() => tune({ adapterSize: 'ADAPTER_SIZE_THIRTY_TWO' })),
    noJob: await fault(() => ai.tunings.get({ name: 'projects/demo/locations/us-central1/tuningJobs/12345' })),
  };
}

const jobs = (await all(ai.tunings.list())).map((job) => job.name);
console.log(JSON.stringify({ jobs, ...(extent === 'whole' ? await whole() : {}) }));
