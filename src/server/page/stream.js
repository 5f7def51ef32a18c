// The server as the page sees it: questions, answers that come in pieces, and problems that say
// what to do. Knows no element of the page.

// What went wrong, in words for people. `retryAfterS`: the server said so; `needsKey`: it wants one.
class Problem extends Error {
  constructor(message, { retryAfterS = 0, needsKey = false } = {}) {
    super(message);
    this.retryAfterS = retryAfterS;
    this.needsKey = needsKey;
  }
}

const unreachable = () =>
  new Problem(`The server at ${location.host} does not answer: it was stopped, or the network is away. ` +
              'Start it again, then try again.');

// A reply with status 200; all else is a Problem. An abort stays an abort.
async function request(path, { key, body, signal } = {}) {
  const headers = {};
  if (key) headers['Authorization'] = `Bearer ${key}`;
  if (body) headers['Content-Type'] = 'application/json';
  let reply;
  try {
    reply = await fetch(path, {
      method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable();
  }
  if (reply.ok) return reply;
  throw await problemOf(reply);
}

async function problemOf(reply) {
  let said = `status ${reply.status}`;
  try {
    said = (await reply.json()).error.message;
  } catch {
    // Something between us and the server answered: the status has to do.
  }
  const retryAfterS = Number(reply.headers.get('Retry-After')) || 0;
  if (reply.status === 401)
    return new Problem(`This server asks for a key (${said}). Put it into Settings, then try again.`,
                       { needsKey: true });
  if (reply.status === 429 || reply.status === 503)
    return new Problem(`The server cannot take this now: ${said}.`, { retryAfterS: retryAfterS || 1 });
  return new Problem(`The server refused: ${said}`, { needsKey: reply.status === 403 });
}

// The chunks of an answer. Ends only where the server said that it was whole.
async function* chunks(path, options) {
  const reply = await request(path, options);
  let whole = false;
  try {
    for await (const data of events(reply.body)) {
      if (data === '[DONE]') {
        whole = true;  // read on: a connection that is read to its end can be used again
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(`The server broke off: ${chunk.error.message}. The text so far is kept.`);
      yield chunk;
    }
  } catch (error) {
    if (options.signal?.aborted || error instanceof Problem) throw error;
    throw new Problem('The connection broke while the answer came: the server was stopped, or the network is ' +
                      'away. The text so far is kept.');
  }
  if (!whole) throw new Problem('The answer ended before it was whole. The text so far is kept.');
}

// The data of each event of a stream of bytes.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (held + value).split('\n\n');
    held = blocks.pop();
    for (const block of blocks)
      if (block.startsWith('data: ')) yield block.slice('data: '.length);
  }
}

// [{text, from}] of what a chunk shows. What the model wrote is true; where each token is from is shown only
// if it adds up to that.
function tokensOf(text, speculation) {
  if (!text) return [];
  const tokens = speculation?.tokens ?? [];
  return tokens.map((token) => token.text).join('') === text ? tokens : [{ text, from: 'unknown' }];
}
