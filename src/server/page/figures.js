// What an answer costs and what speculation brings, counted from its rounds as they come: a round is one
// pass of the model, its drafts a block of the drafter's or a copy from the text. At the end the server's own
// figures take their place.

const SLOTS = 7;

class Figures {
  constructor() {
    this.rounds = 0;
    this.tokens = 0;
    this.verified = new Array(SLOTS).fill(0);
    this.accepted = new Array(SLOTS).fill(0);
    this.from = Object.fromEntries(ORIGINS.map((origin) => [origin, 0]));
    this.firstAt = 0;
    this.firstTokens = 0;
    this.final = null;
    this.show();
  }

  add(chunk, tokens) {
    for (const { verified, accepted } of chunk.speculation?.rounds ?? []) {
      ++this.rounds;
      this.tokens += accepted + 1;
      for (let i = 0; i < verified; ++i) ++this.verified[i];
      for (let i = 0; i < accepted; ++i) ++this.accepted[i];
    }
    for (const { from } of tokens)
      if (from in this.from) ++this.from[from];
    if (!this.firstAt && tokens.length > 0) {
      ++this.tokens;  // the first has no round: what the prompt left said it
      this.firstAt = performance.now();
      this.firstTokens = this.tokens;
    }
    if (chunk.timings) this.final = chunk;
  }

  // Tokens a second since the first ones came, and for each pass of the model.
  get rate() {
    if (this.final) return this.final.timings.predicted_per_second;
    const seconds = (performance.now() - this.firstAt) / 1000;
    return this.firstAt && seconds > 0 ? (this.tokens - this.firstTokens) / seconds : 0;
  }
  get tau() {
    if (this.final) return this.final.metrics.speculative_decoding.mean_acceptance_length;
    return this.rounds > 0 ? this.tokens / this.rounds : 0;
  }
  get count() { return this.final ? this.final.timings.predicted_n : this.tokens; }

  show() {
    const put = (id, value, digits) => {
      document.getElementById(id).textContent = value > 0 ? value.toFixed(digits) : '–';
    };
    put('rate', this.rate, 0);
    put('tau', this.tau, 2);
    put('count', this.count, 0);
    for (const output of document.querySelectorAll('.legend output')) {
      const of = this.tokensShown;
      const count = this.from[output.dataset.from];
      output.textContent = of > 0 ? `${count} (${Math.round(100 * count / of)} %)` : '0';
    }
    this.draw(document.getElementById('chart'));
  }

  get tokensShown() { return Object.values(this.from).reduce((sum, count) => sum + count, 0); }

  // Of each position in a block: how many drafts the model read, and how many of them stood.
  draw(chart) {
    const WIDTH = 40, HEIGHT = 62, TOP = 14;
    const parts = [];
    const said = [];
    for (let i = 0; i < SLOTS; ++i) {
      const share = this.verified[i] > 0 ? this.accepted[i] / this.verified[i] : 0;
      const left = i * WIDTH + 5;
      const box = { x: left, width: WIDTH - 10 };
      const kind = this.verified[i] > 0 ? 'whole' : 'unread';
      parts.push(shape('rect', { ...box, class: kind, y: TOP, height: HEIGHT }),
                 shape('rect', { ...box, y: TOP + HEIGHT * (1 - share), height: HEIGHT * share }),
                 shape('text', { x: left + (WIDTH - 10) / 2, y: TOP + HEIGHT + 14 }, String(i + 1)));
      if (this.verified[i] === 0) continue;
      parts.push(shape('text', { x: left + (WIDTH - 10) / 2, y: TOP - 4 }, `${Math.round(100 * share)} %`));
      said.push(`position ${i + 1}: ${this.accepted[i]} of ${this.verified[i]}`);
    }
    const words = document.getElementById('chart-text');
    words.textContent = said.length > 0 ? said.join('; ') : 'No draft was read yet.';
    chart.replaceChildren(words, ...parts);
  }

  sentence() {
    return `${this.count} tokens, ${this.rate.toFixed(0)} a second, ${this.tau.toFixed(2)} for each pass of the model.`;
  }
}

function shape(tag, attributes, text = '') {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
