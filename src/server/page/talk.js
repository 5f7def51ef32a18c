// The page at work: one text to continue, or a conversation. One answer at a time.

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

const EXAMPLE = 'def fibonacci(n):';
const HINTS = {
  prompt: 'Type the beginning of a text, or take the one below, and press Enter: the model goes on from there.',
  chat: 'Ask something and press Enter.',
};
const NAMES = { user: 'You', assistant: 'Tessera' };

// What stands on the page. `prompt`: the text that was continued and how; `turns`: {role, text} of a person,
// {role, passage, thinking} of the model.
const state = { mode: 'prompt', prompt: null, turns: [], draft: { prompt: EXAMPLE, chat: '' }, model: '' };

let figures = new Figures();
let running = null;  // the AbortController of the answer that comes
const speaker = new Speaker($('spoken'));

// ------------------------------------------------------------------ what is shown

function show() {
  root.dataset.mode = state.mode;
  document.querySelector(`[name=mode][value=${state.mode}]`).checked = true;
  $('input-label').textContent = state.mode === 'chat' ? 'Message' : 'Text to continue';
  $('send').textContent = state.mode === 'chat' ? 'Send' : 'Continue';
  $('input').value = state.draft[state.mode];
  const parts = state.mode === 'chat' ? state.turns.map(articleOf)
              : state.prompt ? [state.prompt.passage.element] : [];
  $('text').replaceChildren(...(parts.length > 0 ? parts : [make('p', 'hint', HINTS[state.mode])]));
  scrollDown(true);
}

function articleOf(turn) {
  const article = make('article', turn.role, make('h2', '', NAMES[turn.role]));
  if (turn.thinking) article.append(thinkingOf(turn));
  article.append(turn.role === 'user' ? make('div', 'passage', turn.text) : turn.passage.element);
  return article;
}

function thinkingOf(turn) {
  const details = make('details', 'thinking', make('summary', '', 'Thinking'), turn.thinking.element);
  details.hidden = turn.thinking.tokens.length === 0;
  return details;
}

// Follows the end of the text until somebody scrolls up, and again once they are back. Growing text moves
// the end away without any scrolling: so only a place above our own says that it was a person.
let following = true, ownTop = 0;
function scrollDown(always = false) {
  const box = $('text');
  noticeScroll();  // its event may still be on the way
  following ||= always;
  if (!following) return;
  box.scrollTop = box.scrollHeight;
  ownTop = box.scrollTop;
}
function noticeScroll() {
  const box = $('text');
  const NEAR = 40;
  if (box.scrollHeight - box.scrollTop - box.clientHeight < NEAR) following = true;
  else if (box.scrollTop < ownTop) following = false;
}

// Once for all that comes between two frames; a timer, because hidden tabs have no frames.
let refreshing = 0;
function refresh() {
  const FRAME_MS = 33;
  refreshing ||= setTimeout(() => {
    refreshing = 0;
    figures.show();
    scrollDown();
  }, FRAME_MS);
}

function showProblem(problem) {
  const again = make('button', '', 'Try again');
  again.type = 'button';
  again.onclick = retry;
  const when = problem.retryAfterS > 0 ? ` Try again in ${problem.retryAfterS} s.` : '';
  $('problem').replaceChildren(make('p', '', problem.message + when), again);
  if (!problem.needsKey) return;
  $('settings').open = true;
  field('key').focus();
}

function busy(yes) {
  $('text').setAttribute('aria-busy', yes);
  if (!yes && document.activeElement === $('stop')) $('input').focus();  // it goes, the focus stays
  $('send').disabled = yes;
  $('stop').disabled = !yes;
}

// ------------------------------------------------------------------ asking

// The next answer, for what stands on the page.
async function answer() {
  const chat = state.mode === 'chat';
  const target = chat ? state.turns.at(-1) : state.prompt;
  const body = { model: $('model').value, ...settings.fields() };
  if (chat) {
    body.messages = messages();
    body.thinking = { type: field('thinking').checked ? 'enabled' : 'disabled' };
  } else {
    body.prompt = target.given;
  }

  $('problem').replaceChildren();
  figures = new Figures();
  running = new AbortController();
  busy(true);
  let ended = 'Stopped. ';
  try {
    if (!body.model) body.model = await loadModels(running.signal);
    const path = chat ? 'v1/chat/completions' : 'v1/completions';
    for await (const chunk of chunks(path, { key: settings.key, body, signal: running.signal })) take(chunk, target);
    ended = 'The answer is whole. ';
  } catch (error) {
    if (!running.signal.aborted) {
      if (!(error instanceof Problem)) throw error;
      ended = '';
      showProblem(error);
    }
  } finally {
    running = null;
    busy(false);
    figures.show();
    scrollDown();
    speaker.finish(ended && ended + figures.sentence());
    save();
  }
}

function take(chunk, target) {
  const choice = chunk.choices[0];
  const thought = tokensOf(choice?.delta?.reasoning_content, chunk.speculation);
  const said = tokensOf(choice?.delta?.content ?? choice?.text, chunk.speculation);
  if (thought.length > 0) {
    target.thinking.add(thought);
    target.thinking.element.parentElement.hidden = false;
  }
  target.passage.add(said);
  speaker.add(said.map((token) => token.text).join(''));
  figures.add(chunk, [...thought, ...said]);
  refresh();
}

// The conversation up to the answer that is asked for.
function messages() {
  const system = field('system').value.trim();
  const turns = state.turns.slice(0, -1)
    .map((turn) => ({ role: turn.role, content: turn.text ?? turn.passage.text }))
    .filter((turn) => turn.content !== '');  // an answer that never came
  return system ? [{ role: 'system', content: system }, ...turns] : turns;
}

function send() {
  const text = $('input').value;
  if (running || text.trim() === '') return;
  state.draft[state.mode] = text;
  if (state.mode === 'chat') {
    state.turns.push({ role: 'user', text });
    state.draft.chat = '';
    openTurn();
  } else {
    state.prompt = { given: text, passage: new Passage(text) };
  }
  show();
  answer();
}

function openTurn() {
  state.turns.push({ role: 'assistant', passage: new Passage(), thinking: new Passage() });
}

// What broke off gives way to the whole.
function retry() {
  if (running) return;
  if (state.mode === 'chat' && state.turns.length > 0) {
    state.turns.pop();
    openTurn();
  } else if (state.prompt) {
    state.prompt.passage = new Passage(state.prompt.given);
  } else {
    $('problem').replaceChildren();
    start();
    return;
  }
  show();
  answer();
  $('input').focus();
}

// The server ends its work within a step of hearing that nobody listens.
function stop() {
  running?.abort();
  $('input').focus();
}

function clear() {
  stop();
  if (state.mode === 'chat') state.turns = [];
  else state.prompt = null;
  state.draft[state.mode] = state.mode === 'chat' ? '' : EXAMPLE;
  $('problem').replaceChildren();
  figures = new Figures();
  show();
  save();
}

// ------------------------------------------------------------------ what outlives a reload

function save() {
  state.draft[state.mode] = $('input').value;
  state.model = $('model').value || state.model;
  keep('localStorage', KEPT, JSON.stringify({ ...state, settings: settings.all() }));
}

function load() {
  const { settings: values, ...before } = keptJson();
  settings.fill(values);
  try {
    Object.assign(state, before);
    if (state.prompt) state.prompt.passage = new Passage(state.prompt.given, state.prompt.passage);
    state.turns = state.turns.map((turn) => turn.role === 'user' ? turn : {
      role: turn.role, passage: new Passage('', turn.passage), thinking: new Passage('', turn.thinking),
    });
  } catch {
    Object.assign(state, { prompt: null, turns: [] });  // kept by another version of the page
  }
}

// ------------------------------------------------------------------ the beginning

// The ids that the server has; first those that speculate. Returns the one that is chosen.
async function loadModels(signal) {
  const { data } = await (await request('v1/models', { key: settings.key, signal })).json();
  const ids = data.map((model) => model.id).sort((a, b) => b.endsWith('-ultraspeed') - a.endsWith('-ultraspeed'));
  $('model').replaceChildren(...ids.map((id) => new Option(id)));
  if (ids.includes(state.model)) $('model').value = state.model;
  return $('model').value;
}

async function start() {
  try {
    await loadModels();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // While a model loads, ask on; a key or a server that is missing is for people.
    if (error.retryAfterS > 0) {
      $('problem').replaceChildren(make('p', '', error.message));
      setTimeout(start, 1000 * error.retryAfterS);
      return;
    }
    showProblem(error);
    return;
  }
  if (!running) $('problem').replaceChildren();
}

$('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
$('input').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && running) stop();
});
$('text').addEventListener('scroll', noticeScroll);
$('stop').addEventListener('click', stop);
$('clear').addEventListener('click', clear);
for (const radio of document.querySelectorAll('[name=mode]')) {
  radio.addEventListener('change', () => {
    stop();
    state.draft[state.mode] = $('input').value;
    state.mode = radio.value;
    $('problem').replaceChildren();
    show();
    radio.focus();
    save();
  });
}
form.addEventListener('change', () => {
  settings.apply();
  save();
});
form.addEventListener('submit', (event) => event.preventDefault());
$('model').addEventListener('change', save);
window.addEventListener('pagehide', save);

load();
show();
$('input').focus();
start();
