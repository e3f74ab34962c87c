// validateReward through @google/genai: `node reward.mjs BASE`. Prints what it saw as JSON.
import { GoogleGenAI } from "@google/genai";

const ai = new GoogleGenAI({
  vertexai: true, project: "demo", location: "us-central1", httpOptions: { baseUrl: process.argv[2] },
});
const request = {
  parent: "projects/demo/locations/us-central1",
  sampleResponse: { role: "model", parts: [{ text: "<a>42</a>" }] },
  example: { contents: [{ role: "user", parts: [{ text: "6 times 7?" }] }], references: { answer: "42" } },
};
const reward = (expression) => ({
  rewardName: "exact",
  parseResponseConfig: { parseType: "REGEX_EXTRACT", regexExtractExpression: "<a>(.*?)</a>" },
  stringMatchRewardScorer: {
    correctAnswerReward: 0.75, wrongAnswerReward: -1,
    stringMatchExpression: { matchOperation: "REGEX_CONTAINS", expression },
  },
});
const code = {
  rewardName: "code",
  codeExecutionRewardScorer: { pythonCodeSnippet: "def evaluate(example, response):\n  return float('nan')" },
};
const failed = async (config) => {
  try {
    await ai.tunings.validateReward({ ...request, singleRewardConfig: config });
  } catch (error) {
    return { status: error.status, message: error.message };
  }
};
const right = await ai.tunings.validateReward({ ...request, singleRewardConfig: reward("^{{references.answer}}$") });
const both = { weightedRewardConfigs: [{ rewardConfig: reward("4"), weight: 1 }, { rewardConfig: code, weight: 0 }] };
const composite = await ai.tunings.validateReward({ ...request, compositeRewardConfig: both });
console.log(JSON.stringify({ right, composite, fault: await failed(reward("(?=4)")) }));
