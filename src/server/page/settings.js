// What a person set, and where it is kept: settings and texts in this browser until they are cleared, a key
// nowhere, or until the tab closes if asked.

const form = document.getElementById('settings-form');
const field = (name) => form.elements[name];

const KEPT = 'tessera', KEPT_KEY = 'tessera-key';
const DEFAULTS = { temperature: '0', max_tokens: '256' };

// Storage that may be forbidden or full: then the page forgets, and works.
function keep(storage, name, value) {
  try {
    if (value) window[storage].setItem(name, value);
    else window[storage].removeItem(name);
  } catch (error) {
    console.warn(`nothing is kept: ${error.message}`);
  }
}
function kept(storage, name) {
  try {
    return window[storage].getItem(name) ?? '';
  } catch {
    return '';
  }
}
function keptJson() {
  try {
    return JSON.parse(kept('localStorage', KEPT) || '{}') ?? {};
  } catch {
    return {};  // another version's, or nobody's
  }
}

const settings = {
  // All but the key, as strings and booleans by name.
  all() {
    const values = {};
    for (const { name, type, value, checked } of form.elements)
      if (name && name !== 'key' && name !== 'keep') values[name] = type === 'checkbox' ? checked : value;
    return values;
  },

  fill(values) {
    for (const [name, value] of Object.entries({ ...DEFAULTS, ...values })) {
      const element = field(name);
      if (!element) continue;
      if (element.type === 'checkbox') element.checked = value === true;
      else element.value = value;
    }
    const key = kept('sessionStorage', KEPT_KEY);
    field('key').value = key;
    field('keep').checked = key !== '';
    this.apply();
  },

  apply() {
    keep('sessionStorage', KEPT_KEY, field('keep').checked ? this.key : '');
    const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
    document.documentElement.dataset.theme = field('theme').value || system;
  },

  get key() { return field('key').value.trim(); },

  // The fields of a request; what is empty is the server's choice.
  fields() {
    const number = (name) => (field(name).value === '' ? undefined : Number(field(name).value));
    const depth = field('speculation').value;
    return {
      temperature: number('temperature'),
      top_p: number('top_p'),
      max_tokens: number('max_tokens'),
      seed: number('seed'),
      speculative: depth === '' ? undefined : depth === '0' ? false : { max_draft: Number(depth) },
      stream: true,
      stream_options: { include_rounds: true },
    };
  },
};

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => settings.apply());
