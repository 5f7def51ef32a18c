"""A headless Chromium for tests, spoken to over its own DevTools protocol through a pipe: what a person
types and sees, what the page asks, and what its console says. Nothing but Python's library and Debian's
browser."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time

DEADLINE_S = 120
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
KEYS = {  # name: (code, virtual key, text)
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " "),
    "ArrowRight": ("ArrowRight", 39, ""), "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowDown": ("ArrowDown", 40, ""),
}
SHIFT = 8


class Browser:
    def __init__(self):
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            raise SystemExit("no Chromium: scripts/install packages-page.txt brings it")
        self.folder = tempfile.TemporaryDirectory(prefix="tessera-page-")
        theirs, self.into = os.pipe()
        self.outof, their_out = os.pipe()
        flags = ["--headless", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check",
                 "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
                 "--disable-component-update", "--disable-extensions", "--hide-scrollbars", "--mute-audio",
                 # Root has no sandbox to give, nor has a container always; it opens nothing but our own page.
                 "--no-sandbox", "--lang=en", f"--user-data-dir={self.folder.name}"]
        # It reads commands from descriptor 3 and writes to 4.
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{their_out}', "bash", program, *flags, "about:blank"],
            pass_fds=(theirs, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(theirs)
        os.close(their_out)
        self.changed = threading.Condition()
        self.answers, self.events, self.count, self.over = {}, [], 0, False
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        held = b""
        while piece := os.read(self.outof, 1 << 16):
            *whole, held = (held + piece).split(b"\0")
            with self.changed:
                for one in map(json.loads, whole):
                    if "id" in one:
                        self.answers[one["id"]] = one
                    else:
                        self.events.append(one)
                self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def call(self, method, session=None, **parameters):
        """The result of one command; an error of its is an AssertionError."""
        with self.changed:
            self.count += 1
            mine = self.count
        message = {"id": mine, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.into, data):]
        with self.changed:
            if not self.changed.wait_for(lambda: mine in self.answers or self.over, DEADLINE_S) or self.over:
                raise AssertionError(f"the browser does not answer {method}")
            answer = self.answers.pop(mine)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            pass
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join()
        os.close(self.into)
        os.close(self.outof)
        self.folder.cleanup()


class Page:
    """A tab in a context of its own: it shares no storage with others."""

    def __init__(self, browser, width=1200, height=800):
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def events(self, method):
        with self.browser.changed:
            return [one["params"] for one in self.browser.events
                    if one["method"] == method and one.get("sessionId") == self.session]

    def wait_for_event(self, method, count=1):
        """The event's parameters, once there are `count` of its kind."""
        until = time.monotonic() + DEADLINE_S
        while len(found := self.events(method)) < count:
            with self.browser.changed:
                if not self.browser.changed.wait(max(0, until - time.monotonic())):
                    raise AssertionError(f"no {method}")
        return found[count - 1]

    # ------------------------------------------------------------------ what a person does

    def size(self, width, height, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def media(self, **features):
        """prefers_color_scheme="dark" and the like."""
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()])

    def open(self, url):
        before = len(self.events("Page.loadEventFired"))
        self.call("Page.navigate", url=url)
        self.wait_for_event("Page.loadEventFired", before + 1)

    def reload(self):
        before = len(self.events("Page.loadEventFired"))
        self.call("Page.reload")
        self.wait_for_event("Page.loadEventFired", before + 1)

    def press(self, key, modifiers=0):
        code, number, text = KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        box = self.value(f"""(() => {{
            const one = document.querySelector({json.dumps(selector)});
            one.scrollIntoView({{ block: 'center' }});
            const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    # ------------------------------------------------------------------ what is there

    def value(self, expression):
        """Of a JavaScript expression, or what its promise becomes."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_until(self, expression):
        """The expression's value, once it is true."""
        until = time.monotonic() + DEADLINE_S
        while not (value := self.value(expression)):
            if time.monotonic() > until:
                raise AssertionError(f"never true: {expression}; the page says {self.value('document.body.innerText')!r}")
            time.sleep(0.02)
        return value

    def picture(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def addresses(self):
        """All that the page asked for."""
        return [one["request"]["url"] for one in self.events("Network.requestWillBeSent")]

    def complaints(self):
        """What the console shows in red, exceptions included."""
        return ([one["exceptionDetails"].get("exception", {}).get("description", one["exceptionDetails"]["text"])
                 for one in self.events("Runtime.exceptionThrown")] +
                [str(one["args"]) for one in self.events("Runtime.consoleAPICalled") if one["type"] in ("error", "assert")] +
                [f"{one['entry']['text']} {one['entry'].get('url', '')}" for one in self.events("Log.entryAdded")
                 if one["entry"]["level"] == "error"])
