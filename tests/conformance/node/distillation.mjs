// Distillation through @google/genai: `node distillation.mjs BASE PROMPTS TEACHER`, signed in by the metadata server.
// Prints what it saw as JSON.
import { GoogleGenAI, JobState } from '@google/genai';

const [baseUrl, prompts, teacher] = process.argv.slice(2);
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
  ai.tunings.tune({ baseModel: 'gemini-2.5-flash', trainingDataset: { gcsUri: prompts }, config });

async function fault(call) {
  try {
    await call();
  } catch (error) {
    return { status: error.status, message: error.message };
  }
  return null;
}

const made = await tune({
  method: 'DISTILLATION', epochCount: 1, tunedTeacherModelSource: teacher, exportLastCheckpointOnly: true,
});
console.log(JSON.stringify({
  job: await awaited(made),
  noTeacher: await fault(() => tune({ method: 'DISTILLATION' })),
  wrongMethod: await fault(() => tune({ baseTeacherModel: 'gemini-2.5-flash' })),
}));
