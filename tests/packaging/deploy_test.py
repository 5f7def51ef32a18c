"""What deploy/, the Dockerfile and the unit say, against the server that they start.

Run as: deploy_test.py PROGRAM MODEL [unittest arguments]. Nothing is deployed: the manifests are read and
held against each other, and the server is started with their settings. Proxies are run where they are
installed.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
from pathlib import Path

try:
    import yaml
except ImportError:
    print(f"deploy_test: skipped: {sys.executable} has no yaml: python3-yaml of Debian is for Debian's python3")
    sys.exit(77)

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/server"))
import running  # noqa: E402

LEAVING_S = 5  # from the end of a drain to the end of the process
KUBERNETES, PROXIES = ROOT / "deploy/kubernetes", ROOT / "deploy/proxies"
DEFAULTS = tomllib.loads((ROOT / "docs/serve.toml").read_text())  # config_test holds it against the code


def manifests():
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return {found["kind"]: found for name in names for found in yaml.safe_load_all((KUBERNETES / name).read_text())}


def tessera(*words, environment=None):
    return subprocess.run([running.program, *words], capture_output=True, text=True, timeout=running.DEADLINE_S,
                          env={**os.environ, **(environment or {})})


class Kubernetes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = manifests()
        cls.pod = cls.all["Deployment"]["spec"]["template"]["spec"]
        (cls.container,) = cls.pod["containers"]
        cls.environment = {one["name"]: one["value"] for one in cls.container["env"]}

    def test_every_manifest_is_in_the_kustomization(self):
        listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
        there = {path.name for path in KUBERNETES.glob("*.yaml")}
        self.assertEqual(there - set(listed), {"kustomization.yaml", "prometheus-adapter-values.yaml"})

    def test_labels_and_ports_meet(self):
        labels = self.all["Deployment"]["spec"]["template"]["metadata"]["labels"]
        for selector in (self.all["Deployment"]["spec"]["selector"]["matchLabels"],
                         self.all["Service"]["spec"]["selector"],
                         self.all["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
                         self.all["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]):
            self.assertEqual(selector, labels)
        (port,) = self.container["ports"]
        self.assertEqual(port["containerPort"], int(self.environment["TESSERA_PORT"]))
        for used in (self.all["Service"]["spec"]["ports"][0]["targetPort"],
                     self.container["readinessProbe"]["httpGet"]["port"],
                     self.container["startupProbe"]["httpGet"]["port"],
                     self.all["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"]):
            self.assertEqual(used, port["name"])
        scaled = self.all["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        self.assertEqual((scaled["kind"], scaled["name"]), ("Deployment", self.all["Deployment"]["metadata"]["name"]))
        self.assertNotIn("replicas", self.all["Deployment"]["spec"])  # the autoscaler's

    def test_the_end_has_time_enough(self):
        command = self.container["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(command[0], "sleep")
        drain_s = float(self.environment.get("TESSERA_DRAIN_S", DEFAULTS["limits"]["drain_s"]))
        self.assertLessEqual(float(command[1]) + drain_s + LEAVING_S, self.pod["terminationGracePeriodSeconds"])
        # Whoever balances has seen that the replica leaves before it stops listening.
        probe = self.container["readinessProbe"]
        self.assertLess(probe["periodSeconds"] * probe["failureThreshold"], float(command[1]))

    def test_it_may_do_little(self):
        for key, value in (("runAsNonRoot", True), ("seccompProfile", {"type": "RuntimeDefault"})):
            self.assertEqual(self.pod["securityContext"][key], value)
        self.assertEqual(self.container["securityContext"],
                         {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                          "capabilities": {"drop": ["ALL"]}})
        self.assertFalse(self.pod["enableServiceLinks"])  # a Service named tessera would set TESSERA_PORT

    def test_the_server_takes_these_settings_and_answers_these_probes(self):
        known = set(re.findall(r"--([\w-]+)", tessera("serve", "--help").stdout))
        for name in self.environment:
            self.assertIn(name.removeprefix("TESSERA_").lower().replace("_", "-"), known)
        with running.Server("--host", "127.0.0.1", environment=self.environment) as server:
            for probe in ("startupProbe", "readinessProbe"):
                self.assertEqual(server.get(self.container[probe]["httpGet"]["path"]).status, 200)
            metrics = server.get("/metrics").body.decode()
            (metric,) = self.all["HorizontalPodAutoscaler"]["spec"]["metrics"]
            name = metric["pods"]["metric"]["name"]
            self.assertRegex(metrics, rf"(?m)^{name} \d")  # one series a replica
            values = (KUBERNETES / "prometheus-adapter-values.yaml").read_text()
            self.assertIn(f"seriesQuery: '{name}{{", values)

    def test_metrics_need_no_key_of_the_scraper(self):
        with tempfile.TemporaryDirectory() as folder:
            store = f"{folder}/store.db"
            self.assertEqual(tessera("keys", "create", "--store", store, "--name", "a").returncode, 0)
            with running.Server("--host", "127.0.0.1", "--store", store, environment=self.environment) as server:
                self.assertEqual(server.get("/metrics").status, 200)
                self.assertEqual(server.get("/v1/models").status, 401)


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        cls.lines = [line.split(maxsplit=1) for line in lines]

    def of(self, word):
        return [rest for first, rest in self.lines if first == word]

    def test_what_is_copied_exists(self):
        copied = [part for rest in self.of("COPY") for part in rest.split()[:-1]]
        self.assertTrue(copied)
        for part in copied:
            self.assertTrue((ROOT / part).exists(), part)
        stages = [rest.split()[-1] for rest in self.of("FROM") if " AS " in rest]
        for run in self.of("RUN"):
            for stage in re.findall(r"from=(\w+)", run):
                self.assertIn(stage, stages)
            for script in re.findall(r"scripts/\w+", run):
                self.assertTrue(os.access(ROOT / script, os.X_OK), script)

    def test_it_runs_as_the_pods_user(self):
        user = Kubernetes.pod["securityContext"] if hasattr(Kubernetes, "pod") else \
            manifests()["Deployment"]["spec"]["template"]["spec"]["securityContext"]
        self.assertEqual(self.of("USER")[-1], f"{user['runAsUser']}:{user['runAsGroup']}")

    def test_its_health_check_tells_ready_from_dead(self):
        (check,) = self.of("HEALTHCHECK")
        words = json.loads(check.split("CMD", 1)[1])
        self.assertEqual(words[0], "tessera")
        environment = dict(one.split("=") for rest in self.of("ENV") for one in rest.split())
        with running.Server("--host", "127.0.0.1", environment=environment) as server:
            ready = [word.replace("8080", str(server.port)) for word in words[1:]]
            self.assertNotEqual(ready, words[1:])
            self.assertEqual(tessera(*ready).returncode, 0)
            port = server.port
        self.assertEqual(tessera(*[word.replace("8080", str(port)) for word in words[1:]]).returncode, 1)


# ------------------------------------------------------------------ many replicas


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def certificate(folder):
    """chain.pem, key.pem and both in one file, of a name that nobody trusts."""
    chain, key = f"{folder}/chain.pem", f"{folder}/key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=localhost", "-days", "2", "-out", chain, "-keyout", key], check=True, capture_output=True)
    Path(folder, "chain-and-key.pem").write_text(Path(chain).read_text() + Path(key).read_text())


class Proxies(unittest.TestCase):
    """Two replicas behind each proxy, as deploy/proxies has it: a conversation stays where it began."""

    def test_silence_may_last_longer_than_a_ping(self):
        ping_s = DEFAULTS["limits"]["ping_s"]
        for name, pattern in (("nginx.conf", r"proxy_read_timeout (\d+)s"), ("haproxy.cfg", r"timeout server +(\d+)s"),
                              ("envoy.yaml", r"stream_idle_timeout: (\d+)s")):
            (seconds,) = re.findall(pattern, (PROXIES / name).read_text())
            self.assertGreater(int(seconds), 2 * ping_s, name)
        (mebibytes,) = re.findall(r"client_max_body_size (\d+)m", (PROXIES / "nginx.conf").read_text())
        self.assertEqual(int(mebibytes) << 20, DEFAULTS["limits"]["body_bytes_max"])
        yaml.safe_load((PROXIES / "envoy.yaml").read_text())

    def configured(self, name, folder, servers, port):
        """The snippet with what a machine must fill in: addresses, certificates, the port."""
        text = (PROXIES / name).read_text()
        for address, server in zip(("192.0.2.11:8080", "192.0.2.12:8080"), servers):
            self.assertIn(address, text)
            text = text.replace(address, f"127.0.0.1:{server.port}")
        text = text.replace("/etc/ssl/tessera", folder)
        return re.sub(r"(listen |bind :)443", rf"\g<1>{port}", text)

    def ask(self, port, messages, conversation):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=running.DEADLINE_S)
        body = json.dumps({"model": "tessera-mini", "messages": messages, "temperature": 0, "max_tokens": 8})
        connection.request("POST", "/v1/chat/completions", body,
                           {"Content-Type": "application/json", "x-session-affinity": conversation})
        answer = connection.getresponse()
        reply = json.loads(answer.read())
        connection.close()
        self.assertEqual(answer.status, 200, reply)
        return reply

    def converse(self, port):
        """Seven conversations of three turns each, by turns: so that taking turns would part them. The name is
        the affinity."""
        conversations = {f"conversation-{number}": [] for number in range(7)}
        for turn in range(3):
            for number, (name, messages) in enumerate(conversations.items()):
                # Long and its own: one that is mostly another's beginning would take that one's place.
                topic = f"turn {turn}: " + f"value_{number} = {number}{number}\n" * 20
                messages.append({"role": "user", "content": topic})
                reply = self.ask(port, messages, name)
                if turn > 0:  # what was read before needs no second reading: the same replica
                    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
                    self.assertGreater(cached, 0, f"{name}, turn {turn}")
                messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        return conversations

    def check(self, name, start):
        with tempfile.TemporaryDirectory() as folder, running.Server() as one, running.Server() as two:
            os.chmod(folder, 0o755)
            certificate(folder)
            port = free_port()
            proxy = start(folder, self.configured(name, folder, (one, two), port))
            try:
                until = time.monotonic() + 30
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", port)).close()
                        break
                    except OSError:
                        self.assertIsNone(proxy.poll(), "the proxy ended")
                        self.assertLess(time.monotonic(), until)
                        time.sleep(0.1)
                conversations = self.converse(port)
                served = [server.metric("tessera_request_started_total") for server in (one, two)]
                self.assertGreater(min(served), 0, served)  # both replicas work
                # One goes: its conversations are read again elsewhere, and none fails.
                self.assertEqual(one.stop(), 0)
                for conversation, messages in conversations.items():
                    self.ask(port, messages[:1], conversation)
            finally:
                proxy.send_signal(signal.SIGTERM)
                proxy.wait(30)

    @unittest.skipUnless(shutil.which("nginx"), "nginx is not installed")
    def test_nginx(self):
        def start(folder, text):
            Path(folder, "nginx.conf").write_text(
                f"daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1;\n"
                "events {}\nhttp {\naccess_log off;\n" + "".join(
                    f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
                + text + "\n}\n")
            words = ["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"]
            checked = subprocess.run([*words, "-t"], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stderr)
            return subprocess.Popen(words)

        self.check("nginx.conf", start)

    @unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
    def test_haproxy(self):
        def start(folder, text):
            file = Path(folder, "haproxy.cfg")
            file.write_text(text)
            checked = subprocess.run(["haproxy", "-c", "-f", file], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stderr)
            self.assertNotIn("WARNING", checked.stderr)
            return subprocess.Popen(["haproxy", "-q", "-f", file])

        self.check("haproxy.cfg", start)


if __name__ == "__main__":
    running.program, running.model = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
