// Text on the page: passages whose tokens show where they are from, and the same words for those who
// listen. Whatever the model writes becomes text, never markup.

// An element with its class, text and children.
function make(tag, className = '', ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const ORIGINS = ['drafter', 'suffix', 'forced', 'correction', 'bonus', 'model'];

// A text that grows by tokens. `kept` is what toJSON() gave: [[from, text], …].
class Passage {
  constructor(given = '', kept = []) {
    this.element = make('div', 'passage');
    this.tokens = [];
    if (given) this.element.append(make('span', 'given', given));
    this.add(kept.map(([from, text]) => ({ from, text })));
  }

  add(tokens) {
    for (const { from, text } of tokens) {
      this.tokens.push([from, text]);
      this.element.append(make('span', ORIGINS.includes(from) ? `token ${from}` : 'token', text));
    }
  }

  get text() { return this.tokens.map(([, text]) => text).join(''); }

  toJSON() { return this.tokens; }
}

// Says a text that grows in pieces worth hearing: whole lines or sentences, and not many a second.
class Speaker {
  constructor(element) {
    this.element = element;
    this.waiting = '';
    this.saidAt = 0;
  }

  add(text) {
    this.waiting += text;
    const pause = performance.now() - this.saidAt > Speaker.PAUSE_MS;
    const end = Math.max(...['\n', '. ', '! ', '? '].map((mark) => this.waiting.lastIndexOf(mark)));
    if (pause && end >= 0) this.say(this.waiting.slice(0, end + 1), this.waiting.slice(end + 1));
  }

  // The rest, and how it ended.
  finish(sentence) { this.say(`${this.waiting}\n${sentence}`, ''); }

  say(text, rest) {
    this.element.textContent = text;
    this.waiting = rest;
    this.saidAt = performance.now();
  }
}
Speaker.PAUSE_MS = 2000;
