"""The files of deploy/ are right: the programs that they are for accept them, their commands serve,
and their times fit together. What test_proxies.py does not show."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Client, Live, wait_until
from test_proxies import find, free_addresses, pair, shipped

DEPLOY = ROOT / "deploy"
PYTHON = "/srv/app/.venv/bin/python"
# After this the supervisor kills its workers.
KILL_TIME = 5
HAMMER_TIME = 60


def unit(name: str) -> dict[str, list[str]]:
    """What a unit file assigns, by section and key."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def supervisord() -> t.Any:
    parser = configparser.ConfigParser()
    parser.read(DEPLOY / "supervisord.conf")
    return parser["program:flask-graceful"]


def manifests() -> list[t.Any]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def pod() -> t.Any:
    return manifests()[0]["spec"]["template"]["spec"]


def image_command() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    # The form in brackets: no shell in between.
    words = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[0])
    return [str(word) for word in words]


COMMANDS: dict[str, t.Callable[[], list[str]]] = {
    "systemd": lambda: shlex.split(unit("flask-graceful.service")["Service.ExecStart"][0]),
    "socket": lambda: shlex.split(unit("flask-graceful-socket.conf")["Service.ExecStart"][1]),
    "supervisord": lambda: shlex.split(supervisord()["command"]),
    "docker": image_command,
    "kubernetes": lambda: pod()["containers"][0]["command"],
}


def flag(words: list[str], name: str, default: float) -> float:
    return float(words[words.index(name) + 1]) if name in words else default


@pytest.mark.parametrize("kind", COMMANDS)
def test_commands_serve(kind: str, live: t.Callable[..., Live]) -> None:
    """Each is for a supervisor, which keeps its pid, and says no to a balancer before it stops."""
    words = COMMANDS[kind]()
    assert words[0] in (PYTHON, "python")
    assert words[-1] == "web:app" and flag(words, "--workers", 0) == 2
    (address,) = free_addresses(1)
    program = [sys.executable]
    if kind == "socket":
        assert words[words.index("--bind") + 1] == "systemd:web"
        (name,) = unit("flask-graceful.socket")["Socket.FileDescriptorName"]
        activate = find_systemd("systemd-socket-activate")
        program = [activate, "--listen", address, f"--fdname={name}", *program]
    else:
        words[words.index(":8000")] = address
    words = ["1" if word == "10" else word for word in words[1:]]
    one = start(live, [*program, *words])
    with at_last(address) as client:
        one.wait_for(rf"^{one.pid} Generation 1 serves with workers")
        assert client.get("/ready")[0] == 200
        os.kill(one.pid, signal.SIGHUP)
        one.wait_for(rf"^{one.pid} Generation 2 serves with workers")
        assert client.get("/ready")[0] == 200
        os.kill(one.pid, signal.SIGTERM)
        if kind == "kubernetes":
            one.wait_for("Serving on for 1 seconds")
            # Once the workers know.
            wait_until(lambda: client.get("/ready")[0] == 503, "not ready")
            assert client.get("/")[0] == 200
    assert one.process.wait(60) == 0


def test_supervisord_sees_one_pid(tmp_path: Path, live: t.Callable[..., Live]) -> None:
    """The program under it is restarted, and stopped, by its own commands."""
    (address,) = free_addresses(1)
    replacements = {
        PYTHON: sys.executable,
        "directory=/srv/app": f"directory={ROOT / 'examples'}",
        "user=app\n": "",
        ":8000": address,
    }
    path = tmp_path / "supervisord.conf"
    path.write_text(
        f"[supervisord]\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={tmp_path}/pid\n"
        f"[unix_http_server]\nfile={tmp_path}/sock\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl=unix://{tmp_path}/sock\n"
        + shipped("supervisord.conf", replacements)
        + f"stdout_logfile={tmp_path}/log\n"
    )
    log = tmp_path / "log"

    def control(*words: str) -> str:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(path), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    def wait_log(text: str) -> None:
        wait_until(lambda: log.exists() and text in log.read_text(), text)

    daemon = live("-m", "supervisor.supervisord", "-n", "-c", str(path))
    wait_log("Generation 1 serves")
    pid = control("pid", "flask-graceful").strip()
    assert int(pid) > 0
    with at_last(address) as client:
        control("signal", "HUP", "flask-graceful")
        wait_log(f"{pid} Generation 2 serves")
        assert client.get("/ready")[0] == 200
    assert control("pid", "flask-graceful").strip() == pid
    assert "stopped" in control("stop", "flask-graceful")
    assert f"{pid} Supervisor ends" in log.read_text()
    assert "Cut" not in log.read_text()
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.process.wait(60) == 0


def start(live: t.Callable[..., Live], command: list[str]) -> Live:
    """By a shell that becomes the command, whatever program that is."""
    become = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    return live("-c", become, *command, cwd=ROOT / "examples", env={"PYTHONUNBUFFERED": "1"})


def at_last(address: str) -> Client:
    def connect() -> Client | None:
        try:
            return Client(pair(address))
        except ConnectionRefusedError:
            return None

    client = wait_until(connect, "somebody listens")
    assert isinstance(client, Client)
    return client


def find_systemd(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        if os.environ.get("REQUIRE_SYSTEMD") == "1":
            pytest.fail(f"REQUIRE_SYSTEMD is set, and {program} is not installed")
        pytest.skip(f"{program} IS NOT TESTED: install systemd for these tests")
    return path


@pytest.mark.parametrize("with_socket", [False, True])
def test_unit_files(with_socket: bool, tmp_path: Path) -> None:
    program = find_systemd("systemd-analyze")
    output = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    version = int(output.split()[1])

    def copy(source: str, target: str) -> None:
        text = (DEPLOY / source).read_text().replace(PYTHON, sys.executable)
        if version < 253:
            text = text.replace("notify-reload", "notify")
        (tmp_path / target).parent.mkdir(exist_ok=True)
        (tmp_path / target).write_text(text)

    copy("flask-graceful.service", "flask-graceful.service")
    if with_socket:
        copy("flask-graceful.socket", "flask-graceful.socket")
        copy("flask-graceful-socket.conf", "flask-graceful.service.d/socket.conf")
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    done = subprocess.run(
        [program, "verify", "--man=no", *names],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "flask-graceful" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_proxies_accept_their_files(tmp_path: Path) -> None:
    (address,) = free_addresses(1)
    (tmp_path / "site.conf").write_text(shipped("nginx.conf", {"listen 80;": f"listen {address};"}))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{ include {tmp_path}/site.conf; }}\n"
    )
    nginx = [find("nginx"), "-t", "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    haproxy = [find("haproxy"), "-c", "-f", str(DEPLOY / "haproxy.cfg")]
    for command in (nginx, haproxy):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "warn" not in (done.stdout + done.stderr).lower(), done.stderr


def test_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^STOPSIGNAL SIGTERM$", text, re.MULTILINE)
    assert re.search(r"^USER app$", text, re.MULTILINE)
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    stop_timeout = float(re.findall(r"--stop-timeout (\d+)", text)[0])
    assert stop_timeout > HAMMER_TIME + KILL_TIME


def test_times_of_service_managers() -> None:
    service = unit("flask-graceful.service")
    assert float(service["Service.TimeoutStopSec"][0]) > HAMMER_TIME + KILL_TIME
    assert float(service["Service.TimeoutStartSec"][0]) > 60  # boot_timeout
    assert float(supervisord()["stopwaitsecs"]) > HAMMER_TIME + KILL_TIME


def test_manifests() -> None:
    deployment, service = manifests()
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = pod()["containers"]
    delay = flag(container["command"], "--shutdown-delay", 0)
    grace = pod()["terminationGracePeriodSeconds"]
    assert grace > delay + HAMMER_TIME + KILL_TIME
    assert "lifecycle" not in container
    probe = container["readinessProbe"]
    assert delay > probe["periodSeconds"] * probe["failureThreshold"] + probe.get(
        "timeoutSeconds", 1
    )
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["command"][container["command"].index("--bind") + 1] == f":{ports['http']}"
    assert service["spec"]["ports"][0]["targetPort"] == probe["httpGet"]["port"] == "http"
