// Runs a model by Replicate's client, and prints what it answers as JSON.
import { readFile } from "node:fs/promises";
import Replicate from "replicate";

const [baseUrl, auth, path] = process.argv.slice(2);
const replicate = new Replicate({ auth, baseUrl });
const file = new File([await readFile(path)], "beach.jpg", { type: "image/jpeg" });

const output = await replicate.run("you/sharp", { input: { image: file, times: 2 } });
const polled = await replicate.run("you/sharp:some-version", { input: { image: file }, wait: { mode: "poll" } });
const bytes = async (value) => Buffer.from(await (await value.blob()).arrayBuffer()).toString("base64");

const slow = await replicate.predictions.create({ model: "you/sharp", input: { image: file, seconds: 60 } });
const cancelled = await replicate.predictions.cancel(slow.id);
let failure = null;
try {
  await replicate.run("you/sharp", { input: { image: "http://127.0.0.1:1/nothing" } });
} catch (error) {
  failure = error.message;
}
console.log(JSON.stringify({ output: await bytes(output), polled: await bytes(polled), cancelled, failure }));
