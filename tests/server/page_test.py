"""The page at "/", used in a headless Chromium as a person would: by keyboard, by eye and by ear.

Run as: page_test.py PROGRAM MODEL [unittest arguments].
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import browser
import running

BASE, FAST = "tessera-mini", "tessera-mini-ultraspeed"
COMPLETE = "/v1/completions"
LOOP = "x = 1\n" * 40  # goes on and on
MARKUP = "s = '<img src=x onerror=document.title=1>'\n"
DONE = "document.getElementById('text').getAttribute('aria-busy') === 'false'"
TOKENS = """[...document.querySelectorAll('.passage .token')].map((one) =>
    [one.className.replace('token', '').trim(), one.textContent])"""
PROBLEM = "document.getElementById('problem').innerText"
# Keeps a copy of each answer as it came, before the page reads it.
TAPE = """window.tape = []; const real = window.fetch;
    window.fetch = async (...asked) => {
        const reply = await real(...asked);
        if (asked[1].body) reply.clone().text().then((text) => window.tape.push(text), () => {});
        return reply;
    }"""


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running.Server()
        cls.browser = browser.Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        with cls.server:
            pass

    def setUp(self):
        self.page = browser.Page(self.browser)
        self.expected = ()  # words of complaints that have to be

    def tearDown(self):
        surprises = [one for one in self.page.complaints() if not any(word in one for word in self.expected)]
        strangers = [one for one in self.page.addresses() if not one.startswith(("http://127.0.0.1:", "data:"))]
        self.page.close()
        self.assertEqual(surprises, [])
        self.assertEqual(strangers, [])

    def open(self, server=None, ready=True):
        self.page.open((server or self.server).url + "/")
        if ready:
            self.page.wait_until("document.getElementById('model').value")

    def set(self, **values):
        """Settings, as a person leaves them."""
        for name, value in values.items():
            self.page.value(f"""(() => {{
                const field = document.querySelector('#settings-form [name={name}]');
                if (field.type === 'checkbox') field.checked = {json.dumps(value)};
                else field.value = {json.dumps(str(value))};
                field.dispatchEvent(new Event('change', {{ bubbles: true }}));
            }})()""")

    def write(self, text):
        self.page.value("document.getElementById('input').focus(); document.getElementById('input').select()")
        self.page.type(text)

    def say(self, text):
        """Sends a text and waits for the answer's end; what the model wrote."""
        self.write(text)
        self.page.press("Enter")
        self.page.wait_until(DONE)
        return self.shown()

    def shown(self):
        return "".join(text for _, text in self.page.value(TOKENS))

    def chat(self):
        self.page.click("[name=mode][value=chat] + span")
        self.page.wait_until("document.documentElement.dataset.mode === 'chat'")

    def api(self, **fields):
        reply = self.server.post(COMPLETE, {"model": BASE, "temperature": 0, **fields})
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()["choices"][0]["text"]


class Prompt(Case):
    def test_one_key_writes_the_example(self):
        self.open()
        self.assertEqual(self.page.value("document.activeElement.id"), "input")
        self.assertEqual(self.page.value("document.getElementById('model').value"), FAST)
        self.page.press("Enter")
        self.page.wait_until(DONE)
        self.assertEqual(self.shown(), self.api(prompt="def fibonacci(n):", max_tokens=256))
        self.assertEqual(self.page.value("document.querySelector('.given').textContent"), "def fibonacci(n):")
        self.assertEqual(self.page.value(PROBLEM), "")
        self.assertRegex(self.page.value("document.getElementById('spoken').textContent"), r"whole. \d+ tokens, \d+ a second")

    def test_colours_and_figures_are_those_of_the_rounds(self):
        self.page.call("Page.addScriptToEvaluateOnNewDocument", source=TAPE)
        self.open()
        self.set(max_tokens=120)
        seen = set()
        for text in (LOOP, "def fibonacci(n):", "class Stack:\n    def __init__(self):\n"):
            self.say(text)
            tape = self.page.wait_until("window.tape.length && window.tape.splice(0)")
            chunks = [json.loads(data) for _, data in running.events(tape[0].encode()) if data != "[DONE]"]
            shown = self.page.value(TOKENS)
            told = [(token["from"], token["text"]) for chunk in chunks for token in chunk.get("speculation", {"tokens": []})["tokens"]]
            self.assertEqual([tuple(one) for one in shown], told)
            rounds = [one for chunk in chunks for one in chunk.get("speculation", {"rounds": []})["rounds"]]
            self.assertEqual([origin for origin, _ in told], self.origins(rounds)[:len(told)])
            seen |= {origin for origin, _ in told}

            last = chunks[-1]
            figures = self.page.value("['rate', 'tau', 'count'].map((id) => document.getElementById(id).textContent)")
            speculative = last["metrics"]["speculative_decoding"]
            self.assertEqual(figures, [f"{last['timings']['predicted_per_second']:.0f}",
                                       f"{speculative['mean_acceptance_length']:.2f}", str(last["timings"]["predicted_n"])])
            verified = [sum(one["verified"] > i for one in rounds) for i in range(7)]
            accepted = [sum(one["accepted"] > i for one in rounds) for i in range(7)]
            self.assertEqual(sum(accepted), speculative["num_accepted_draft_tokens"])
            words = "; ".join(f"position {i + 1}: {accepted[i]} of {verified[i]}" for i in range(7) if verified[i])
            self.assertEqual(self.page.value("document.getElementById('chart-text').textContent"), words or "No draft was read yet.")
        self.assertIn("model", seen)

    @staticmethod
    def origins(rounds):
        """What the tokens of a text are, by its rounds alone."""
        found = ["model"]  # the first, chosen from what the prompt left
        for one in rounds:
            found += [one["drafts"]] * one["accepted"]
            found.append("model" if not one["verified"] else "bonus" if one["accepted"] == one["verified"] else "correction")
        return found

    def test_markup_is_text(self):
        self.open()
        self.set(max_tokens=120)
        written = self.say(MARKUP * 12)
        self.assertEqual(written, self.api(prompt=MARKUP * 12, max_tokens=120))
        self.assertIn("<img src=x onerror=", written)
        self.assertEqual(self.page.value("document.images.length"), 0)
        self.assertEqual(self.page.value("document.title"), "Tessera")
        self.expected = ("TrustedHTML",)
        with self.assertRaises(AssertionError):  # and nobody could make it anything else
            self.page.value("document.getElementById('text').innerHTML = '<b>x</b>'")

    def test_escape_stops_and_the_server_stops_too(self):
        self.open()
        self.set(max_tokens=1500)
        self.write(LOOP)
        self.page.press("Enter")
        self.page.wait_until("document.querySelectorAll('.passage .token').length > 5")
        self.assertFalse(self.page.value(DONE))
        self.page.press("Escape")
        self.page.wait_until(DONE)
        self.server.wait_until_idle()
        count = len(self.page.value(TOKENS))
        # What was counted as it came, without the server's last word.
        self.assertEqual(self.page.value("document.getElementById('count').textContent"), str(count))
        self.assertEqual(self.shown(), self.api(prompt=LOOP, max_tokens=count))
        self.assertEqual(self.page.value(PROBLEM), "")
        self.assertIn("Stopped", self.page.value("document.getElementById('spoken').textContent"))
        self.assertEqual(self.page.value("document.activeElement.id"), "input")

    def test_a_reload_keeps_text_and_settings(self):
        self.open()
        self.set(max_tokens=40, seed=7, speculation="3", theme="dark")
        text = self.say("def add(a, b):")
        before = self.page.value(TOKENS)
        self.page.reload()
        self.page.wait_until("document.getElementById('model').value")
        self.assertEqual(self.page.value(TOKENS), before)
        self.assertEqual(self.shown(), text)
        self.assertEqual(self.page.value("document.getElementById('input').value"), "def add(a, b):")
        self.assertEqual(self.page.value("['max_tokens', 'seed', 'speculation'].map((name) => "
                                         "document.querySelector(`#settings-form [name=${name}]`).value)"), ["40", "7", "3"])
        self.assertEqual(self.page.value("document.documentElement.dataset.theme"), "dark")
        self.set(max_tokens=1500)
        self.write(LOOP)
        self.page.press("Enter")
        self.page.wait_until("document.querySelectorAll('.passage .token').length > 5")
        self.page.reload()  # while it writes
        self.assertTrue(self.shown())
        self.server.wait_until_idle()
        self.page.click("#clear")
        self.page.reload()
        self.assertEqual(self.shown(), "")
        self.assertEqual(self.page.value("document.getElementById('input').value"), "def fibonacci(n):")

    def test_a_depth_is_kept(self):
        self.page.call("Page.addScriptToEvaluateOnNewDocument", source=TAPE)
        self.open()
        self.set(max_tokens=60)
        for depth, verified in (("0", 0), ("1", 1)):
            self.set(speculation=depth)
            self.say(LOOP)
            tape = self.page.wait_until("window.tape.length && window.tape.splice(0)")
            rounds = re.findall(r'"verified":(\d)', tape[0])
            self.assertTrue(rounds)
            self.assertLessEqual(max(map(int, rounds)), verified)


class Chat(Case):
    def test_a_conversation(self):
        self.open()
        self.chat()
        self.set(max_tokens=60, system="You write Python.")
        first = self.say("Write a function that adds two numbers.")
        messages = [{"role": "system", "content": "You write Python."},
                    {"role": "user", "content": "Write a function that adds two numbers."}]
        self.assertEqual(first, self.reply(messages))
        self.say("And one that <b>multiplies</b> them.")
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And one that <b>multiplies</b> them."}]
        articles = self.page.value("[...document.querySelectorAll('article')].map((one) => "
                                   "[one.className, one.querySelector(':scope > .passage').textContent])")
        self.assertEqual(articles, [["user", messages[1]["content"]], ["assistant", first],
                                    ["user", messages[3]["content"]], ["assistant", self.reply(messages)]])
        self.page.reload()
        self.assertEqual(self.page.value("document.querySelectorAll('article').length"), 4)
        self.assertEqual(self.page.value("document.documentElement.dataset.mode"), "chat")

    def reply(self, messages):
        reply = self.server.post("/v1/chat/completions", {"model": BASE, "temperature": 0, "max_tokens": 60, "messages": messages})
        return reply.json()["choices"][0]["message"]["content"]

    # What this model does not do by itself comes from a script of ours, in the server's place.
    def scripted(self, *events, status=200, headers=()):
        self.page.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/*completions"}])
        seen = len(self.page.events("Fetch.requestPaused"))
        self.write("Hello")
        self.page.press("Enter")
        paused = self.page.wait_for_event("Fetch.requestPaused", seen + 1)
        body = "".join(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in events)
        self.page.call("Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=status,
                       responseHeaders=[{"name": name, "value": value} for name, value in headers],
                       body=base64.b64encode(body.encode()).decode())
        self.page.wait_until(DONE)
        self.page.call("Fetch.disable")
        return json.loads(paused["request"]["postData"])

    @staticmethod
    def chunk(delta, *tokens):
        return {"choices": [{"index": 0, "delta": delta}],
                "speculation": {"rounds": [], "tokens": [{"text": text, "from": origin} for text, origin in tokens]}}

    def test_thinking_is_folded_apart(self):
        self.open()
        self.chat()
        self.set(thinking=True)
        asked = self.scripted(self.chunk({"reasoning_content": "Hm, "}, ("Hm", "model"), (", ", "drafter")),
                              self.chunk({"content": "<b>So</b>"}, ("<b>", "suffix"), ("So</b>", "correction")),
                              self.chunk({"content": "é!"}, ("e!", "bonus")), "[DONE]")
        self.assertEqual(asked["thinking"], {"type": "enabled"})
        self.assertEqual(self.page.value("document.querySelector('.thinking').open"), False)
        self.assertEqual(self.page.value("document.querySelector('.thinking .passage').textContent"), "Hm, ")
        self.assertEqual(self.page.value("document.querySelector('article.assistant > .passage').textContent"), "<b>So</b>é!")
        # Tokens that are not the text have no say in it.
        self.assertEqual(self.page.value(TOKENS)[-2:], [["correction", "So</b>"], ["", "é!"]])

    def test_what_goes_wrong_is_said(self):
        self.open()
        self.chat()
        self.expected = ("429", "503", "500")
        error = lambda message: '{"error": {"message": "%s"}}' % message
        self.scripted(self.chunk({"content": "half"}, ("half", "model")))
        self.assertIn("ended before it was whole", self.page.value(PROBLEM))
        self.assertEqual(self.shown(), "half")
        self.scripted(self.chunk({"content": "half"}, ("half", "model")), error("the server is shutting down"))
        self.assertIn("shutting down", self.page.value(PROBLEM))
        self.scripted(status=503, headers=[("Retry-After", "7")])
        self.assertIn("Try again in 7 s", self.page.value(PROBLEM))
        self.scripted(status=500)
        self.assertIn("500", self.page.value(PROBLEM))

    def test_a_model_that_loads_is_waited_for(self):
        self.expected = ("503",)
        self.page.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/models"}])
        self.open(ready=False)
        paused = self.page.wait_for_event("Fetch.requestPaused")
        body = b'{"error": {"message": "the model is loading: 40 %"}}'
        self.page.call("Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=503,
                       responseHeaders=[{"name": "Retry-After", "value": "1"}], body=base64.b64encode(body).decode())
        self.page.wait_until(f"{PROBLEM}.includes('loading: 40 %')")
        self.page.call("Fetch.disable")
        self.page.wait_until(f"document.getElementById('model').value && {PROBLEM} === ''")

    def test_a_full_server_says_when(self):
        self.expected = ("429",)
        with running.Server("--sequences-max", "1", "--queue-max", "0") as server:
            self.open(server)
            body = json.dumps({"model": BASE, "prompt": LOOP, "temperature": 0, "max_tokens": 1500, "stream": True}).encode()
            with server.connect(receive_bytes=4096) as sock:
                sock.sendall(running.head("POST", COMPLETE, body, **{"Content-Type": "application/json"}) + body)
                sock.recv(1)
                self.say("def add(a, b):")
                problem = self.page.value(PROBLEM)
            self.assertIn("too many requests are waiting", problem)
            self.assertIn("Try again in 1 s", problem)
            server.wait_until_idle()
            self.page.click("#problem button")
            self.page.wait_until(f"{DONE} && document.querySelectorAll('.passage .token').length > 0")
            self.assertEqual(self.page.value(PROBLEM), "")


class Gone(Case):
    def test_a_server_that_dies_is_missed_and_found_again(self):
        self.expected = ("Failed to load resource",)
        with running.Server() as server:
            port = server.port
            self.open(server)
            self.set(max_tokens=1500)
            self.write(LOOP)
            self.page.press("Enter")
            self.page.wait_until("document.querySelectorAll('.passage .token').length > 5")
            server.stop(signal.SIGKILL)
            self.page.wait_until(DONE)
            self.assertIn("text so far is kept", self.page.value(PROBLEM))
            self.assertEqual(self.shown(), self.api(prompt=LOOP, max_tokens=len(self.page.value(TOKENS))))
            self.page.click("#problem button")  # Try again
            self.page.wait_until(f"{DONE} && {PROBLEM}.includes('does not answer')")
        with running.Server(port=port) as server:
            self.set(max_tokens=9)
            self.page.click("#problem button")
            self.page.wait_until(f"{DONE} && document.querySelectorAll('.passage .token').length > 0")
            self.assertEqual(self.page.value(PROBLEM), "")
            self.assertEqual(self.shown(), self.api(prompt=LOOP, max_tokens=9))

    def test_a_key_is_asked_for_and_kept_only_if_told(self):
        self.expected = ("401",)
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store.db")
            key = subprocess.run([running.program, "keys", "create", "--name", "page", "--modes", "base,ultraspeed", "--store", store],
                                 capture_output=True, text=True, check=True).stdout.strip()
            with running.Server("--store", store) as server:
                self.open(server, ready=False)
                self.page.wait_until(f"{PROBLEM}.includes('asks for a key')")
                self.assertEqual(self.page.value("document.activeElement.name"), "key")
                self.page.type(key)
                self.page.click("#problem button")
                self.page.wait_until("document.getElementById('model').value")
                self.assertTrue(self.say("def add(a, b):"))
                stored = "JSON.stringify([{...localStorage}, {...sessionStorage}])"
                self.assertNotIn(key, self.page.value(stored))
                self.set(keep=True)
                self.assertNotIn(key, self.page.value("JSON.stringify({...localStorage})"))
                self.page.reload()
                self.page.wait_until("document.getElementById('model').value")
                self.set(keep=False)
                self.assertNotIn(key, self.page.value(stored))


# Each text against what lies behind it, as WCAG computes it: [ratio, text] of the least.
CONTRAST = """(() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (one) => {
        for (; one; one = one.parentElement) {
            const colour = channels(getComputedStyle(one).backgroundColor);
            if ((colour[3] ?? 1) === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const measure = (one, text, colour) => {
        const [a, b] = [light(channels(colour)), light(ground(one))];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text]);
    };
    while (walker.nextNode()) {
        const one = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        if (!text || !one.checkVisibility() || one.closest('svg, .unseen, script, noscript, option')) continue;
        measure(one, text, getComputedStyle(one).color);
    }
    for (const one of document.querySelectorAll('input, select, textarea')) measure(one, one.name || one.id, getComputedStyle(one).color);
    for (const one of document.querySelectorAll('#chart text')) measure(one.closest('section'), one.textContent, getComputedStyle(one).fill);
    return [found.length, found.sort((a, b) => a[0] - b[0])[0]];
})()"""


class ForEverybody(Case):
    def test_contrast_in_both_themes(self):
        for system in ("light", "dark"):
            self.page.media(prefers_color_scheme=system)
            self.open()
            self.assertEqual(self.page.value("document.documentElement.dataset.theme"), system)
            self.set(max_tokens=60)
            self.say(LOOP)
            for busy in (False, True):  # and while the buttons look otherwise, and with a problem
                self.page.value(f"busy = {str(busy).lower()}")
                count, least = self.page.value(CONTRAST)
                self.assertGreater(count, 30)
                self.assertGreaterEqual(least[0], 4.5, f"{system}: {least[1]}")
            other = {"light": "dark", "dark": "light"}[system]
            self.set(theme=other)
            self.assertEqual(self.page.value("document.documentElement.dataset.theme"), other)
            self.set(theme="")
            self.page.media(prefers_color_scheme=other)
            self.page.wait_until(f"document.documentElement.dataset.theme === '{other}'")

    def test_every_control_has_a_name(self):
        self.open()
        self.chat()
        self.say("Hi")
        controls = {"button", "textbox", "combobox", "radio", "checkbox", "spinbutton", "DisclosureTriangle", "img", "image"}
        found = {}
        for node in self.page.call("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if role in controls and not node["ignored"]:
                found.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
        self.assertGreater(sum(map(len, found.values())), 12, found)
        for role, names in found.items():
            self.assertTrue(all(names), f"{role}: {names}")
            self.assertEqual(len(names), len(set(names)), f"{role}: {names}")

    def test_by_keyboard_alone(self):
        self.open()
        self.set(max_tokens=30)
        seen, focused = [], """(() => {
            const one = document.activeElement, style = getComputedStyle(one);
            const drawn = one.type === 'radio' ? getComputedStyle(one.nextElementSibling) : style;
            return [one.id || one.name || one.tagName, drawn.outlineStyle];
        })()"""
        for _ in range(40):
            self.page.press("Tab")
            name, outline = self.page.value(focused)
            if name == "BODY":
                continue
            self.assertNotEqual(outline, "none", f"the focus on {name} cannot be seen")
            if name in seen:
                break
            seen.append(name)
        self.assertLessEqual({"mode", "model", "text", "input", "send", "clear", "SUMMARY", "temperature", "seed", "key"}, set(seen))
        while self.page.value(focused)[0] != "mode":
            self.page.press("Tab")
        self.page.press("ArrowRight")
        self.page.wait_until("document.documentElement.dataset.mode === 'chat'")
        while self.page.value(focused)[0] != "input":
            self.page.press("Tab")
        self.page.type("Hi")
        self.page.press("Enter", browser.SHIFT)
        self.assertEqual(self.page.value("document.querySelectorAll('.passage .token').length"), 0)
        self.page.press("Tab")
        self.page.press(" ")  # Send
        self.page.wait_until(f"{DONE} && document.querySelectorAll('.passage .token').length > 0")

    def test_what_is_said_comes_in_pieces(self):
        self.open()
        self.set(max_tokens=200)
        self.page.value("""window.said = []; window.begun = performance.now(); new MutationObserver(() => said.push(document.getElementById('spoken').textContent))
            .observe(document.getElementById('spoken'), { childList: true })""")
        written = self.say(LOOP)
        said, seconds = self.page.value("[said, (performance.now() - begun) / 1000]")
        self.assertEqual("".join(said).rsplit("\n", 1)[0], written)
        self.assertLessEqual(len(said), seconds / 2 + 2)  # one every two seconds, the first and the last
        self.assertEqual(self.page.value("document.querySelector('#text [aria-live]')"), None)

    def test_the_end_is_followed_until_somebody_scrolls_up(self):
        self.open()
        self.set(max_tokens=400)
        self.say(LOOP)
        below = "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)(document.getElementById('text'))"
        self.assertGreater(self.page.value("document.getElementById('text').scrollTop"), 100)
        self.page.wait_until(f"Math.abs({below}) < 2")
        self.write(LOOP)
        self.page.press("Enter")
        self.page.wait_until("document.getElementById('text').scrollTop > 100")
        self.page.value("document.getElementById('text').scrollTop = 0")
        self.page.wait_until(DONE)
        self.assertEqual(self.page.value("document.getElementById('text').scrollTop"), 0)

    def test_narrow_screens_and_still_ones(self):
        self.page.size(360, 740)
        self.page.media(prefers_reduced_motion="reduce")
        self.open()
        self.set(max_tokens=40)
        self.say("def add(a, b):")
        self.assertLessEqual(self.page.value("document.documentElement.scrollWidth"), 360)
        self.say(LOOP)
        self.assertLess(self.page.value("document.querySelector('.talk').offsetHeight"), 740)  # both its ends in sight
        self.page.wait_until("document.getElementById('text').scrollTop > 100")
        still = "(document.getElementById('text').setAttribute('aria-busy', true), getComputedStyle(document.querySelector('.passage'), '::after').animationName)"
        self.assertEqual(self.page.value(still), "none")
        self.page.media(prefers_reduced_motion="no-preference")
        self.assertEqual(self.page.value(still), "blink")


if __name__ == "__main__":
    running.program, running.model = sys.argv[1:3]
    if "TESSERA_NO_BROWSER" in os.environ:
        print("skipped: there is no Chromium to be had (scripts/packages-page.txt)")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
