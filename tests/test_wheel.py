"""The wheel, installed where nothing of the checkout can be seen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from packager import __version__
from packager.card import render_card
from tests.card_facts import MERGED

CHECKOUT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)], CHECKOUT
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; it sees our dependencies, but not our own package."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv")
    python = str(folder / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-deps", "--no-index", str(wheel)], folder)
    purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    site = Path(purelib.strip())
    # Each dependency is linked on its own: an editable install of this checkout is not among them.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = entry.name.startswith(("packager", "lorapack", "_lorapack", "_editable"))
        if not ours and entry.suffix != ".pth" and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return folder / "venv" / "bin"


def run(command: list[str], folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_package_templates_and_containers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run(["git", "ls-files", "packager", "templates", "docker"], CHECKOUT).splitlines()
    wanted = {name if name.startswith("packager/") else f"packager/{name}" for name in tracked}
    assert wanted <= names
    roots = {name.split("/")[0] for name in names}
    assert roots == {"packager", f"lorapack-{__version__}.dist-info"}


def test_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    script = "import packager; print(packager.__file__)"
    place = run([str(installed / "python"), "-c", script], tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)


def test_installed_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    assert run([str(installed / "lorapack"), "--version"], tmp_path).split()[-1] == __version__


def test_installed_template_renders_a_card(installed: Path, tmp_path: Path) -> None:
    """The card's template comes out of the wheel and gives the same card as the checkout's."""
    script = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import card_facts\n"
        "from packager.card import render_card; print(render_card(card_facts.MERGED), end='')"
    )
    (tmp_path / "card_facts.py").write_bytes((CHECKOUT / "tests/card_facts.py").read_bytes())
    assert run([str(installed / "python"), "-c", script], tmp_path) == render_card(MERGED)


def test_installed_dockerfile_is_sound(installed: Path, tmp_path: Path) -> None:
    script = (
        "from packager.resource import read_resource\n"
        "print(read_resource('docker/packager.Dockerfile'), end='')"
    )
    text = run([str(installed / "python"), "-c", script], tmp_path)
    assert text == (CHECKOUT / "docker/packager.Dockerfile").read_text(encoding="utf-8")
    (tmp_path / "Dockerfile").write_text(text, encoding="utf-8")
    run([str(SCRIPTS / "hadolint"), "Dockerfile"], tmp_path)
