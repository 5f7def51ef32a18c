"""A small Debian root to install into: the system's own Essential packages, and what is added by name.

Made from the files and the dpkg records of the machine that tests, so no network is needed; dpkg inside
knows only what was put there, so a dependency that a package forgot is missing.
"""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

STATUS = Path("var/lib/dpkg/status")


def installed():
    """Package -> its fields, of the machine that tests."""
    found = {}
    for stanza in (Path("/") / STATUS).read_text().split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*(?:\n .*)*)", stanza, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            fields["stanza"] = stanza.strip()
            found[fields["Package"]] = fields
    return found


class CleanRoot:
    """Needs the rights to mount and to chroot, in a mount namespace of the caller's own."""

    def __init__(self, folder):
        self.path = Path(folder)
        self.known = installed()
        self.providers = {}
        for name, fields in self.known.items():
            for provided in re.split(r",\s*", fields.get("Provides", "")):
                self.providers.setdefault(provided.split(" ")[0], name)
        self.packages = set()
        for link in ("bin", "sbin", "lib", "lib64"):
            (self.path / "usr" / link).mkdir(parents=True)
            (self.path / link).symlink_to(f"usr/{link}")
        for name in ("proc", "sys", "dev", "run", "tmp", "root", "srv", "opt", "etc", "var/lib/dpkg/info", "var/lib/dpkg/updates",
                     "var/log"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        (self.path / "tmp").chmod(0o1777)
        self.add(name for name, fields in self.known.items() if fields.get("Essential") == "yes")
        for name in ("passwd", "group"):
            shutil.copy(f"/usr/share/base-passwd/{name}.master", self.path / "etc" / name)
        subprocess.run(["mount", "-t", "proc", "proc", self.path / "proc"], check=True)
        subprocess.run(["mount", "--rbind", "/dev", self.path / "dev"], check=True)
        subprocess.run(["mount", "--rbind", "-o", "ro", "/sys", self.path / "sys"], check=True)

    def needs(self, text):
        """Names of installed packages that fulfil a Depends line."""
        for clause in filter(None, re.split(r",\s*", text.replace("\n", " "))):
            names = [re.split(r"[ :(]", one)[0] for one in re.split(r"\s*\|\s*", clause)]
            there = [self.known[name]["Package"] if name in self.known else self.providers.get(name) for name in names]
            yield next((name for name in there if name), names[0])

    def add(self, names):
        """Adds packages and all they need, as unpacked and configured."""
        fresh, waiting = [], list(names)
        while waiting:
            name = waiting.pop()
            if name in self.packages:
                continue
            if name not in self.known:
                raise AssertionError(f"{name} is not installed on this machine")
            self.packages.add(name)
            fresh.append(name)
            fields = self.known[name]
            waiting += self.needs(fields.get("Pre-Depends", "")) if fields.get("Pre-Depends") else []
            waiting += self.needs(fields.get("Depends", "")) if fields.get("Depends") else []
        files = set()
        for name in fresh:
            for record in Path("/var/lib/dpkg/info").glob(f"{name}[.:]*"):
                if record.name.split(".")[0].split(":")[0] == name or record.name.startswith((f"{name}.", f"{name}:")):
                    shutil.copy(record, self.path / "var/lib/dpkg/info")
                if record.suffix == ".list":
                    files.update(line for line in record.read_text().splitlines() if len(line) > 1)
        there = [f".{file}" for file in sorted(files) if os.path.lexists(file) and not file.startswith("/usr/share/doc/")]
        # Directory links of the machine (/bin to /usr/bin) are this root's too; tar follows them.
        pack = subprocess.Popen(["tar", "-C", "/", "-c", "--no-recursion", "--null", "-T", "-"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)
        unpack = subprocess.Popen(["tar", "-C", self.path, "-x", "--keep-directory-symlink"], stdin=pack.stdout)
        pack.stdin.write(b"\0".join(os.fsencode(name) for name in there))
        pack.stdin.close()
        pack.stdout.close()
        if pack.wait() or unpack.wait():
            raise AssertionError("the root could not be filled")
        text = "\n\n".join(self.known[name]["stanza"] for name in sorted(self.packages)) + "\n"
        (self.path / STATUS).write_text(text)
        self.run("ldconfig")
        for file in Path("/etc/pam.d").glob("common-*"):  # made by a package, listed by none
            if (self.path / "etc/pam.d").exists():
                shutil.copy(file, self.path / "etc/pam.d")
        if "passwd" in fresh:
            self.run("pwconv")
            self.run("grpconv")

    def command(self, *words):
        return ["chroot", str(self.path), *words]

    def run(self, *words, check=True, **more):
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(self.command(*words), capture_output=True, text=True, env=clean, timeout=300, **more)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def listing(self):
        """Path -> what it is, of all that packages may leave: not caches, logs, dpkg's own records."""
        found = {}
        aside = {self.path / name for name in ("proc", "sys", "dev", "run", "tmp", "var/lib/dpkg", "var/log", "var/cache")}
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if Path(folder, name) not in aside]
            for name in folders + files:
                path = Path(folder, name)
                if path.parent == self.path / "etc" and name.endswith("-"):
                    continue  # what adduser keeps of the file before
                info = path.lstat()
                what = [stat.filemode(info.st_mode), info.st_uid, info.st_gid]
                if stat.S_ISREG(info.st_mode) and self.path / "etc" in path.parents:
                    what.append(path.read_bytes())
                found[str(path.relative_to(self.path))] = what
        return found
