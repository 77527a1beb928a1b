"""Images built and run without a container engine: Debian's buildah on a base of debootstrap's.

Needs Linux and root. No image registry is asked; the base image is kept between runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BASE_IMAGE = "localhost/lorapack-test-base:12"
_PACKAGES = "python3,python3-venv,ca-certificates"

# As a container engine starts a container whose root is read-only: nothing can be written but what
# is mounted, and no right can be had. The shell becomes the program, whose signals are its own.
_CONFINE = """
root=$1 cache=$2 secrets=$3 folder=$4 user=$5; shift 5
mount --bind "$root" "$root"
mount --bind "$cache" "$root/cache"
mount --bind --options ro "$secrets" "$root/run/secrets"
mount --types tmpfs --options mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount --types proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount --options remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all env --ignore-environment --chdir="$folder" "$@"
"""


def run(*command: str, folder: Path | None = None) -> str:
    """Runs a command that has to succeed, and returns what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


def keep_base_image() -> str:
    """Returns the name of a Debian with Python; made on first use."""
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    assert not missing, f"apt-get install {' '.join(missing)}"
    if not _has_image(BASE_IMAGE):
        with tempfile.TemporaryDirectory(prefix="base.") as folder:
            root = str(Path(folder) / "root")
            run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root)
            made = run("buildah", "from", "scratch")
            run("buildah", "add", "--quiet", made, root, "/")
            run("buildah", "commit", "--quiet", made, BASE_IMAGE)
            run("buildah", "rm", made)
    return BASE_IMAGE


def build(folder: Path, dockerfile: str, image: str, *options: str) -> str:
    """Builds an image on the kept base, and returns its name."""
    run(
        "buildah", "build", "--isolation=chroot", "--network=host", "--quiet",
        # Only this format has a place for HEALTHCHECK.
        "--format=docker", f"--build-arg=BASE_IMAGE={keep_base_image()}", *_reach(), *options,
        f"--file={dockerfile}", f"--tag={image}", ".",
        folder=folder,
    )  # fmt: skip
    return image


def image_config(image: str) -> dict[str, Any]:
    """Returns what an image says of itself: user, entry point, labels, health check and so on."""
    described = json.loads(run("buildah", "inspect", "--type", "image", image))
    config: dict[str, Any] = described["Docker"]["config"]
    return config


@contextmanager
def mounted(container: str) -> Iterator[Path]:
    """Gives the root of a container's files, with the places that secrets are mounted at."""
    root = Path(run("buildah", "mount", container))
    (root / "run/secrets").mkdir(parents=True, exist_ok=True)
    try:
        yield root
    finally:
        run("buildah", "umount", container)


def confined(
    root: Path, image: str, command: Sequence[str], *, cache: Path, secrets: Path, **further: str
) -> list[str]:
    """Returns a command that runs one of an image, its root for reading only.

    Args:
        root: Of the container's files.
        image: Whose user, folder and environment it gets.
        command: To run there.
        cache: What is mounted for writing.
        secrets: What is mounted for keys.
        **further: Variables of its environment.
    """
    config = image_config(image)
    uid = config["User"].partition(":")[0]
    shutil.chown(cache, int(uid), int(uid))
    given = [f"{name}={value}" for name, value in further.items()]
    return [
        "unshare", "--mount", "--", "sh", "-euc", _CONFINE, "sh",
        str(root), str(cache), str(secrets), config["WorkingDir"], uid,
        *config["Env"], *given, *command,
    ]  # fmt: skip


def _has_image(name: str) -> bool:
    return not subprocess.run(
        ["buildah", "inspect", "--type", "image", name], capture_output=True, check=False
    ).returncode


def _reach() -> Iterator[str]:
    """What lets pip in the build reach what pip out here reaches."""
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates:
        yield f"--volume={Path(certificates).parent}:/etc/ssl/certs:ro"
    wheels = os.environ.get("PIP_FIND_LINKS")
    if wheels:
        yield from (f"--volume={wheels}:{wheels}:ro", f"--build-arg=PIP_FIND_LINKS={wheels}")
        # The wheels at hand are the CPU build; nothing further has to be asked.
        yield "--build-arg=PIP_EXTRA_INDEX_URL="
