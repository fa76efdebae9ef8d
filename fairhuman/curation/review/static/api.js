// What the server answers. Every path is relative to the page's own address, which holds the token.

export class Refusal extends Error {
  constructor(status, body) {
    super(body.error || `the server answered ${status}`);
    this.status = status;
    this.state = body.state;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, options);
  } catch {
    throw new Refusal(0, {error: "the server does not answer: is fairhuman review still running?"});
  }
  const body = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(answer.status, body);
  return body;
}

const json = (method, value) => ({
  method, body: JSON.stringify(value), headers: {"content-type": "application/json"},
});

export const overview = () => ask("session");
export const state = (number) => ask(`images/${number}`);
export const save = (number, edit) => ask(`images/${number}`, json("PUT", edit));
export const goTo = (number) => ask(`at/${number}`, {method: "PUT"});

export async function addMask(number, region, png) {
  const path = `images/${number}/masks/${encodeURIComponent(region)}`;
  return (await ask(path, {method: "POST", body: png})).mask;
}

export const photographUrl = (number, side) => `api/images/${number}/photograph/${side}`;
export const maskUrl = (number, name) => `api/images/${number}/mask?name=${encodeURIComponent(name)}`;

// The trained picture as a blob's URL, or a Refusal that says why there is none.
export async function trainedUrl(number) {
  const answer = await fetch(`api/images/${number}/trained`);
  if (!answer.ok) throw new Refusal(answer.status, await answer.json().catch(() => ({})));
  return URL.createObjectURL(await answer.blob());
}

export function load(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}
