"""Do what the images do, without a container engine: `make check-images`.

The commands are read out of the Dockerfiles, so that what is checked here cannot drift from what is built there. For each
image a clean folder gets exactly what the Dockerfile copies, and a clean environment exactly what it installs. Then the
server is started as its ENTRYPOINT and CMD say, in a folder it may not write to, and asked over HTTP; the learner's environment
opens a store and checks the shipped configs. Not checked here: the base images, the worker's environment (`make
setup` installs the same packages) and anything that only an engine does.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 30.0
# As `cap_drop: [ALL]` does: root, too, then minds the permissions of a folder. Nobody else needs it.
WITHOUT_PRIVILEGES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined."""

    word: str
    rest: str


@dataclass(frozen=True, slots=True)
class Image:
    """A Dockerfile, as far as it can be done without an engine."""

    name: str
    instructions: tuple[Instruction, ...]

    @classmethod
    def read(cls, name: str) -> "Image":
        text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        joined = "\n".join(lines).replace("\\\n", " ")
        words = (line.strip().split(None, 1) for line in joined.splitlines() if line.strip())
        return cls(name, tuple(Instruction(word, rest) for word, rest in words))

    def all(self, word: str) -> list[str]:
        return [each.rest for each in self.instructions if each.word == word]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))

    @property
    def command(self) -> list[str]:
        return exec_form(self.all("ENTRYPOINT")[-1]) + exec_form(self.all("CMD")[-1])

    @property
    def port(self) -> str:
        return self.all("EXPOSE")[-1]

    @property
    def health_command(self) -> list[str]:
        return exec_form(self.all("HEALTHCHECK")[-1].split("CMD", 1)[1])

    def pip_arguments(self, environment: str) -> list[str]:
        """What follows `pip` where the Dockerfile fills /opt/<environment>, but for what only keeps an image small."""
        for run in self.all("RUN"):
            found = re.search(rf"/opt/{environment}/bin/python -m pip (install [^&|;]*)", run)
            if found:
                return [word for word in shlex.split(found[1]) if word != "--no-cache-dir"]
        raise SystemExit(f"{self.name}.Dockerfile installs nothing into /opt/{environment}")

    def copy_into(self, folder: Path) -> None:
        """What its COPY instructions bring, relative to its WORKDIR."""
        for rest in self.all("COPY"):
            *sources, target = rest.split()
            for source in sources:
                place = folder / source if target == "./" else folder / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, place)


def exec_form(rest: str) -> list[str]:
    """["relearnd", "serve"] and no shell around it, so that signals arrive. Raises ValueError for the other form."""
    return [str(word) for word in json.loads(rest)]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="relearnd-images-") as folder:
        Path(folder).chmod(0o755)
        check_server(Image.read("server"), Path(folder) / "server")
        check_learner(Image.read("learner"), Path(folder) / "learner")
    say("the images' own commands work")


def check_server(image: Image, folder: Path) -> None:
    workdir, python = install(image, folder)
    absent(python, "torch", "transformers", "duckdb", "kafka", "evidently", "pandas", "pyarrow", "apscheduler")
    before = files_under(workdir)
    say("server: starting it on an empty registry, in a folder it may not write to")
    with running(image, python, workdir) as (process, port):
        expect(f"http://127.0.0.1:{port}/livez", 200)
        expect(f"http://127.0.0.1:{port}/readyz", 503)
        health = [word.replace(image.port, port) for word in image.health_command]
        subprocess.run([python, *health[1:]], check=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
    require(code == 0, f"SIGTERM ended the server with {code}, not 0")
    require(files_under(workdir) == before, f"the server wrote {sorted(files_under(workdir) - before)}")
    say("server: live 200, ready 503, health check passed, SIGTERM 0, nothing written")


def check_learner(image: Image, folder: Path) -> None:
    workdir, python = install(image, folder)
    absent(python, "torch", "transformers", "peft")
    opens = "import daemon.learner; from daemon.store.duckdb_store import DuckdbStore; from pathlib import Path; "
    opens += "DuckdbStore.open(Path('data/store.duckdb'), memory_limit=2**28, threads=1).close()"
    (workdir / "data").mkdir()
    subprocess.run([python, "-c", opens], cwd=workdir, check=True)
    for config in sorted((workdir / "configs").glob("*.yaml")):
        subprocess.run(
            [python, "-m", "daemon", "config", "check", config.relative_to(workdir)], cwd=workdir, check=True
        )
    say("learner: imports, opens a store, and takes the configs it ships; torch is not there")


def install(image: Image, folder: Path) -> tuple[Path, Path]:
    """The image's folder and its environment, both new; returns them, the latter as its python."""
    workdir, environment = folder / "srv", folder / "opt"
    workdir.mkdir(parents=True)
    image.copy_into(workdir)
    arguments = image.pip_arguments(image.name)
    say(f"{image.name}: python -m pip {shlex.join(arguments)}")
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", *arguments, "--quiet"], cwd=workdir, check=True)
    shutil.rmtree(workdir / "daemon")  # so that what is installed is what is tried
    megabytes = sum(file.lstat().st_size for file in environment.rglob("*")) / 1e6
    say(f"{image.name}: installed in {time.monotonic() - started:.0f} s, {megabytes:.0f} MB")
    return workdir, python


@contextmanager
def running(image: Image, python: Path, workdir: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {
        **image.environment,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(workdir),
        "TMPDIR": str(workdir),
        "RELEARND_REGISTRY__PATH": str(workdir / "registry"),
        "RELEARND_SERVER__HOST": "127.0.0.1",
        "RELEARND_SERVER__PORT": port,
    }
    workdir.chmod(0o555)
    process = subprocess.Popen([*WITHOUT_PRIVILEGES, *image.command], cwd=workdir, env=environment)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()
        workdir.chmod(0o755)


def expect(url: str, code: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (answer := status_of(url)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    require(answer == code, f"{url} answered {answer}, not {code}")


def status_of(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def absent(python: Path, *modules: str) -> None:
    code = f"import importlib.util as u; print(*[m for m in {modules} if u.find_spec(m)])"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    require(not found, f"must not be installed there: {found}")


def files_under(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def require(met: bool, otherwise: str) -> None:
    if not met:
        raise SystemExit(f"check-images: {otherwise}")


def say(sentence: str) -> None:
    print(f"==> {sentence}", flush=True)


if __name__ == "__main__":
    main()
