"""The pictures of the docs, from the last demo of this checkout: `make demo && make pictures`.

`mlflow ui` shows its store on 127.0.0.1; Debian's chromium, driven by chromedriver, opens the pages and takes them.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from browser import Browser, serving
from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURES = Path(__file__).parent
STORE = f"sqlite:///{ROOT / 'mlflow.db'}"
MODEL = "smollm2-135m-qlora"


@dataclass(frozen=True)
class Shot:
    """A picture: what it shows, and what is done before it is taken."""

    name: str
    url: str
    shows: str
    """Words by which the page is known to be complete."""
    size: tuple[int, int]
    """Width and height of the page, in pixels."""
    click: Sequence[str] = ()
    """Words, or names for screen readers, of what is clicked, if it is there."""
    top: str = ""
    """Words that are scrolled to the top."""
    dark: bool = False


def shots(url: str, files: Path, run_id: str, version: str) -> list[Shot]:
    """Pages of the user interface at `url`, and artifacts of the run in the folder `files`."""
    experiment = mlflow.get_run(run_id).info.experiment_id
    run = f"{url}/#/experiments/{experiment}/runs/{run_id}"
    report, mask = ((files / name).as_uri() for name in ("report.html", "data/mask.html"))
    close = "Close assistant panel", "Close"
    return [
        Shot("run", run, "Better than its base", (1200, 600), click=(*close, "Show more"), top="Description"),
        Shot("version", f"{url}/#/models/{MODEL}/versions/{version}", "Parity", (1200, 900), click=close),
        Shot("report", report, "Answers", (1000, 915)),
        Shot("report-dark", report, "Answers", (1000, 915), dark=True),
        Shot("answers", report, "Answers", (1000, 700), top="Answers"),
        Shot("mask", mask, "learned", (1000, 560)),
    ]


def main() -> None:
    mlflow.set_tracking_uri(STORE)
    versions = mlflow.search_model_versions(filter_string=f"name = '{MODEL}'")
    if not versions:
        sys.exit(f"{STORE} has no model {MODEL}: run `make demo` first")
    version = max(versions, key=lambda version: int(version.version))
    interface = (sys.executable, "-m", "mlflow", "ui", "--workers=1", "--backend-store-uri", STORE, "--port=PORT")
    driver = shutil.which("chromedriver") or sys.exit("chromedriver is missing; Debian has it in chromium-driver")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("report.html", "data/mask.html"):
            place = Path(folder) / Path(name).parent
            mlflow.artifacts.download_artifacts(f"runs:/{version.run_id}/{name}", dst_path=str(place))
        with serving(interface, "/health") as url, serving((driver, "--port=PORT"), "/status") as driver_url:
            for shot in shots(url, Path(folder), version.run_id, version.version):
                keep(take(shot, driver_url), PICTURES / f"{shot.name}.png")
    sizes = {file: file.stat().st_size for file in sorted(PICTURES.glob("*.png"))}
    for file, size in sizes.items():
        print(f"{size / 1000:6.0f} kB  {file.relative_to(ROOT)}")


def take(shot: Shot, driver: str) -> bytes:
    with Browser(driver, size=shot.size, dark=shot.dark) as browser:
        browser.open(shot.url, shot.shows)
        for words in shot.click:
            browser.click(words)
        if shot.top:
            browser.scroll_to(shot.top)
        return browser.picture()


def keep(picture: bytes, file: Path) -> None:
    """With 256 colours, which nobody sees in a page and which takes a third of the bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
