"""The wheel: what is in it, what it needs of torch, and that it works in an empty environment."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # --no-index: the build step must do without a network.
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel; torch and the rest are lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Behind the environment's own packages in the path, so that it can lend torch but never apar itself.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(own) / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    return folder


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name for name in names if ".dist-info/" not in name}
    modules = {f"apar_ext/{path.name}" for path in (ROOT / "apar_ext").glob("*.py")}
    modules |= {f"apar/{path.relative_to(ROOT / 'python/apar')}" for path in (ROOT / "python/apar").rglob("*.py")}
    extension = f"apar_ext/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert {name for name in packaged if name.endswith((".py", ".so"))} == modules | {extension}
    assert {"apar_ext/py.typed", "apar/py.typed"} <= packaged
    model = ROOT / "python" / "apar" / "assets" / "default"
    assert {f"apar/assets/default/{path.name}" for path in model.iterdir()} <= packaged
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = archive.read(name).decode()
    for requirement in ("torch>=2.10", "transformers>=5", "numpy"):
        assert f"Requires-Dist: {requirement}\n" in metadata
    for extra in ("train", "serve", "bench", "test"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_source_package_holds_what_a_build_needs(tmp_path):
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_needs_the_stable_abi_alone(wheel, tmp_path):
    """No C++ symbol of torch is left undefined: the object serves every torch from 2.10 on."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    extension = zipfile.ZipFile(wheel).extract(name, tmp_path)
    undefined = run("nm", "-D", "--undefined-only", extension, cwd=tmp_path)
    assert "aoti_torch_library_init_impl" in undefined
    assert not re.findall(r"_ZN?K?\d*(?:2at|3c10|5torch)\w+", undefined)


def test_imports_and_runs_an_operator(environment):
    code = """
import torch, apar_ext
k = torch.arange(8.0).view(1, 2, 4)
k_cache = torch.zeros(3, 2, 8, 4); v_cache = torch.zeros(3, 2, 8, 4)
apar_ext.append_kv(k, -k, k_cache, v_cache, torch.tensor([13], dtype=torch.int32))
assert torch.equal(k_cache[1, :, 5], k[0]) and torch.equal(v_cache[1, :, 5], -k[0])
print(apar_ext.__file__)
"""
    place = run(environment / "bin" / "python", "-I", "-c", code, cwd=environment).strip()
    assert Path(place).is_relative_to(environment)


def test_command_line(environment):
    facts = json.loads(run(environment / "bin" / "apar", "info", "--json", cwd=environment))
    assert facts["cpu_level"]
    assert isinstance(facts["cuda_built"], bool)


def test_generates_with_the_model_that_comes_along(environment):
    prompt = "Anna works as a baker and lives in Oslo. Karim works as a pilot and lives in Lima. Describe each person."
    answer = json.loads(run(environment / "bin" / "apar", "generate", prompt, "--json", cwd=environment))
    assert len(answer["branches"]) == 3
