// Full tuning through @google/genai: `node full.mjs BASE EXAMPLES OUTPUT`, signed in by the metadata server.
// Prints what it saw as JSON.
import { GoogleGenAI, JobState, TuningMode } from '@google/genai';

const [baseUrl, examples, outputUri] = process.argv.slice(2);
const ENDED = new Set([JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED]);
const ai = new GoogleGenAI({ vertexai: true, project: 'demo', location: 'us-central1', httpOptions: { baseUrl } });

async function awaited(job) {
  const deadline = Date.now() + 60_000;
  while (!ENDED.has(job.state)) {
    if (Date.now() > deadline) throw new Error(`still ${job.state}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    job = await ai.tunings.get({ name: job.name });
  }
  return job;
}

const tune = (config) =>
  ai.tunings.tune({
    baseModel: 'qwen/qwen3@qwen3-0.6b', trainingDataset: { gcsUri: examples },
    config: { tuningMode: TuningMode.TUNING_MODE_FULL, outputUri, epochCount: 1, ...config },
  });

async function fault(call) {
  try {
    await call();
  } catch (error) {
    return { status: error.status, message: error.message };
  }
  return null;
}

console.log(JSON.stringify({
  job: await awaited(await tune({ batchSize: 4, learningRate: 1e-3 })),
  sized: await fault(() => tune({ adapterSize: 'ADAPTER_SIZE_FOUR' })),
}));
