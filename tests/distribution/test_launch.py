"""Launch a script as several processes: their variables, and how they end.

The processes of these tests import no backend.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from backend import BACKEND

from keras_moe.distribution import local_processes as together
from keras_moe.distribution.launching import launch
from keras_moe.distribution.starting import Setup, jobs_of
from keras_moe.distribution.variables import BACKENDS, Job, read_job
from keras_moe_cli.bootstrap import run_command
from keras_moe_cli.startup_settings import with_launch_backend

anywhere = pytest.mark.skipif(
    BACKEND != "torch", reason="no backend is used; torch runs it"
)
# A script that writes its process id; each test appends its own code.
START = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
index, attempt = os.environ["RANK"], os.environ["KERAS_MOE_ATTEMPT"]
def note(name, text):
    (folder / "new").mkdir(exist_ok=True)
    (folder / "new" / name).write_text(text)
    (folder / "new" / name).replace(folder / name)
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
note("pid" + index, str(os.getpid()))
"""


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script after `START` to a path."""

    def write(text):
        path = tmp_path / "script.py"
        path.write_text(START + text)
        return path

    return write


def wait_until(condition, seconds=30):
    """Wait until a condition holds; fail after a number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(folder, name):
    """Return whether the process whose id is in a file has ended."""
    status = pathlib.Path("/proc", (folder / name).read_text(), "stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@anywhere
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_process_receives_its_place(tmp_path, monkeypatch, backend):
    """The variables of three processes are read as `initialize` reads them."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "script.py"
    path.write_text(
        "import json, os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], str(os.getpid())).write_text("
        "json.dumps([dict(os.environ), sys.argv[1:]]))"
    )
    out = tmp_path / "out"
    out.mkdir()
    arguments = (str(out), "--epochs", "3 4")
    assert launch(path, *arguments, backend=backend, processes=3) == 0
    written = [json.loads(p.read_text()) for p in out.iterdir()]
    jobs = [read_job(variables, backend) for variables, _ in written]
    jobs.sort(key=lambda job: job.index)
    assert [job.index for job in jobs] == [0, 1, 2]
    assert len({job.addresses for job in jobs}) == 1
    assert {job.processes for job in jobs} == {3}
    assert all(a.startswith("127.0.0.1:") for a in jobs[0].addresses)
    if backend == "tensorflow":  # every process has its own address
        assert len(set(jobs[0].addresses)) == 3
    if backend == "torch":
        assert [job.local_index for job in jobs] == [0, 1, 2]
    for variables, received in written:
        assert tuple(received) == arguments
        assert variables["KERAS_BACKEND"] == backend
        threads = max(1, len(os.sched_getaffinity(0)) // 3)
        assert variables["OMP_NUM_THREADS"] == str(threads)


def test_several_hosts_have_each_others_addresses():
    """The second of two hosts has processes 2 and 3 of 4."""
    plan = Setup("tensorflow", 2, 700, ("one", "two"), 1, None)
    addresses = ("one:700", "one:701", "two:702", "two:703")
    expected = [Job(2, 4, 0, addresses), Job(3, 4, 1, addresses)]
    assert jobs_of(plan) == expected


@anywhere
def test_virtual_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag=1")
    path = tmp_path / "script.py"
    path.write_text(
        "import os; open(os.environ['OUT'], 'w').write(os.environ['XLA_FLAGS'])"
    )
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert launch(path, backend="jax", processes=1, devices_per_process=4) == 0
    count = "--xla_force_host_platform_device_count=4"
    assert (tmp_path / "out").read_text() == f"--some_flag=1 {count}"


@anywhere
def test_a_failure_stops_the_others(tmp_path, script, monkeypatch, capfd):
    """A process that ignores SIGTERM is stopped, and its child, too."""
    monkeypatch.setattr(together, "GRACE", 0.2)
    path = script("""
if index == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "99"])
    note("child", str(child.pid))
    time.sleep(99)
wait_for("child")
print("why it failed")
sys.exit(3)
""")
    assert launch(path, str(tmp_path), backend="torch") == 3
    assert is_gone(tmp_path, "pid0")
    # The child is killed, but is not our child, so its end may take a moment.
    wait_until(lambda: is_gone(tmp_path, "child"))
    err = capfd.readouterr().err
    assert "[1] why it failed" in err
    assert "process 1 ended with exit code 3; the others were stopped." in err


@anywhere
def test_a_failure_restarts_all(tmp_path, script, capfd):
    path = script("""
note(f"attempt{attempt}-{index}", os.environ["MASTER_PORT"])
if attempt == "0" and index == "1":
    wait_for("attempt0-0")
    os.kill(os.getpid(), signal.SIGKILL)
if attempt == "0":
    time.sleep(99)
print("attempt", attempt)
""")
    logs = tmp_path / "logs"
    options = {"backend": "torch", "logs": logs}
    assert launch(path, str(tmp_path), restarts=1, **options) == 0
    assert (tmp_path / "attempt1-0").exists()
    assert (tmp_path / "attempt1-1").exists()
    assert (logs / "process1.log").read_text() == "attempt 1\n"
    out, err = capfd.readouterr()
    assert out == "attempt 1\n"
    assert "exit code 137" in err and "starting all again, 1 of 1" in err


@anywhere
def test_the_last_failure_is_returned(tmp_path, script):
    path = script("sys.exit(4 + int(attempt))")
    options = {"backend": "torch", "processes": 1}
    assert launch(path, str(tmp_path), restarts=1, **options) == 5


@anywhere
@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_the_processes_end_with_the_launcher(tmp_path, script, number, code):
    path = script("time.sleep(99)")
    command = ["launch", "--backend", "torch", str(path), str(tmp_path)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "keras_moe_cli", *command],
        # A background job of a shell starts with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    names = ("pid0", "pid1")
    wait_until(lambda: all((tmp_path / name).exists() for name in names))
    launcher.send_signal(number)
    assert launcher.wait() == code
    wait_until(lambda: all(is_gone(tmp_path, name) for name in names))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"backend": "numpy"}, "`backend`"),
        ({"processes": 0}, "`processes`"),
        ({"restarts": -1}, "`restarts`"),
        ({"port": 70000}, "`port`"),
        ({"host": 1}, "`host`"),
        ({"hosts": ("a", "b"), "restarts": 1}, "`restarts`"),
        ({"devices_per_process": 2}, "`devices_per_process`"),
        ({"devices_per_process": 0, "backend": "jax"}, "`devices_per_process`"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        launch(__file__, **{"backend": "torch", **arguments})


def test_a_missing_script():
    with pytest.raises(FileNotFoundError, match="`script`.*nowhere.py"):
        launch("nowhere.py", backend="torch")


def test_the_script_receives_the_arguments_after_it(monkeypatch):
    """`--backend` and `--help` after the script belong to the script."""
    received = []
    monkeypatch.setattr(
        "keras_moe_cli.launch_command.launch",
        lambda *a, **k: received.append((a, k)) or 7,
    )
    line = ["launch", "--processes", "3", "x.py", "--backend", "b", "--help"]
    assert run_command(line) == 7
    ((script, *rest), options), *_ = received
    assert str(script) == "x.py" and rest == ["--backend", "b", "--help"]
    assert options["processes"] == 3 and options["backend"] is None


def test_the_backend_is_chosen_before_keras_is_imported(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    given = ["launch", "--backend", "torch", "x.py", "--backend=tensorflow"]
    assert with_launch_backend(given) == given
    without = ["launch", "x.py", "--backend", "torch"]
    chosen = ["launch", "--backend=jax", "x.py", "--backend", "torch"]
    assert with_launch_backend(without) == chosen


@pytest.mark.parametrize(
    "script", [["-m", "package.train"], ["script"], ["--port", "9", "a.py"]]
)
def test_the_backend_of_a_script_is_its_own(script, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    given = [*script, "--backend", "mine"]
    chosen = with_launch_backend(["launch", *given])
    assert chosen == ["launch", "--backend=jax", *given]


def test_a_port_is_refused_with_ray(capsys):
    line = ["launch", "--on", "ray", "--port", "700", "--backend", "torch"]
    assert run_command([*line, "x.py"]) == 2
    assert "--port must be left out with --on ray" in capsys.readouterr().err


@anywhere
def test_a_module_is_run_as_python_runs_it(tmp_path, monkeypatch):
    """The command passes the module's own arguments to it."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "train.py").write_text(
        "import os, pathlib, sys\n"
        "assert __name__ == '__main__' and __package__ == 'package'\n"
        "pathlib.Path(os.environ['RANK']).write_text(' '.join(sys.argv[1:]))\n"
    )
    monkeypatch.chdir(tmp_path)
    command = [
        "launch",
        "--backend",
        "torch",
        "-m",
        "package.train",
        "--a",
        "b",
    ]
    assert run_command(command) == 0
    assert [pathlib.Path(name).read_text() for name in "01"] == ["--a b"] * 2
    with pytest.raises(ValueError, match="`script` must be the name of a modu"):
        launch("package/train.py", module=True)


@anywhere
@pytest.mark.parametrize("joins", [True, False])
def test_a_process_that_never_joins_causes_a_warning(
    script, tmp_path, joins, capfd
):
    """`initialize` records that a process joined; here the script does it."""
    note = "pathlib.Path(os.environ['KERAS_MOE_JOINED']).touch()"
    path = script(note if joins else f"if index == '0': {note}")
    assert launch(path, str(tmp_path), backend="torch") == 0
    words = capfd.readouterr().err
    warned = "process 1 never called keras_moe.distribution.initialize()"
    assert (warned in words) == (not joins)
