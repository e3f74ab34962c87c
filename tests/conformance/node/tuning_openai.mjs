// Fine-tuning through the Node client of OpenAI: `node tuning_openai.mjs BASE_URL KEY FILE`. Prints what it saw as JSON.
import fs from 'node:fs';
import OpenAI from 'openai';

const [baseURL, apiKey, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const ENDED = new Set(['succeeded', 'failed', 'cancelled']);
const MODEL = 'gemini-2.0-flash-001';

async function awaited(id) {
  const deadline = Date.now() + 120_000;
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(id);
    if (ENDED.has(job.status)) return job;
    if (Date.now() > deadline) throw new Error(`still ${job.status}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

async function fault(call) {
  try {
    await call();
  } catch (error) {
    return { status: error.status, code: error.code, param: error.param, id: error.requestID };
  }
  return null;
}

const training = await client.files.create({ file: fs.createReadStream(file), purpose: 'fine-tune' });
await client.files.waitForProcessing(training.id);
const made = await client.fineTuning.jobs.create({
  model: MODEL, training_file: training.id, suffix: 'node', metadata: { from: 'node' },
  method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 1, batch_size: 4 } } },
});
const job = await awaited(made.id);
const jobs = [];
for await (const one of client.fineTuning.jobs.list({ limit: 1, metadata: { from: 'node' } })) jobs.push(one.id);
const events = [];
for await (const one of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) events.push(one.message);
const answer = await client.chat.completions.create({
  model: job.fine_tuned_model, messages: [{ role: 'user', content: 'q1' }], max_tokens: 4, temperature: 0,
});
const results = await (await client.files.content(job.result_files[0])).text();
console.log(JSON.stringify({
  job, jobs, events, results, answered: answer.model,
  model: (await client.models.retrieve(job.fine_tuned_model)).id,
  faults: [
    await fault(() => client.fineTuning.jobs.cancel(job.id)),
    await fault(() => client.fineTuning.jobs.create({ model: 'nothing', training_file: training.id })),
  ],
  deleted: await client.files.delete(training.id),
}));
