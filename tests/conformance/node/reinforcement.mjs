// Reinforcement tuning through @google/genai: `node reinforcement.mjs BASE PROMPTS`, signed in by the metadata server.
// Prints what it saw as JSON.
import { GoogleGenAI, JobState } from '@google/genai';

const [baseUrl, prompts] = process.argv.slice(2);
const ENDED = new Set([JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED]);
const ai = new GoogleGenAI({ vertexai: true, project: 'demo', location: 'us-central1', httpOptions: { baseUrl } });

async function awaited(job) {
  const deadline = Date.now() + 120_000;
  while (!ENDED.has(job.state)) {
    if (Date.now() > deadline) throw new Error(`still ${job.state}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    job = await ai.tunings.get({ name: job.name });
  }
  return job;
}

const reward = {
  rewardName: 'letter',
  stringMatchRewardScorer: {
    correctAnswerReward: 1.0,
    wrongAnswerReward: -1.0,
    stringMatchExpression: { matchOperation: 'REGEX_CONTAINS', expression: '[a-z]' },
  },
};
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
  method: 'REINFORCEMENT_TUNING', rewardConfig: reward, epochCount: 1, batchSize: 4, samplesPerPrompt: 4,
  maxOutputTokens: 4,
});
console.log(JSON.stringify({
  made,
  job: await awaited(made),
  twoSpecs: await fault(() => tune({ samplesPerPrompt: 4 })),
  withoutReward: await fault(() => tune({ method: 'REINFORCEMENT_TUNING', epochCount: 1 })),
}));
