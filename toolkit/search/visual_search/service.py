"""The engine behind HTTP: a search page, search by picture, and real-time add, update, remove.

    python -m toolkit.search.visual_search.service --folder ~/shop --port 8000

trains a small model at the first start (a minute), fills the index with the listings of the emoji
shop, and serves. What it acknowledged it still knows after a crash. Needs the extra `serve`.
"""

import argparse
import asyncio
import io
import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from toolkit.search.visual_search.codes import BinaryEncoder
from toolkit.search.visual_search.engine import SearchEngine, load_engine, train_model
from toolkit.search.visual_search.index import BinaryRerankIndex
from toolkit.search.visual_search.live import LiveIndex
from toolkit.search.visual_search.page import PAGE
from toolkit.search.visual_search.recipe import PROFILES
from toolkit.search.visual_search.shards import ShardDown, ShardedIndex

LARGEST_BODY = 2 * 1024 * 1024
"""Bytes of an uploaded picture."""
LARGEST_SIDE = 4096
"""Pixels of a side of a picture, looked at before it is decoded."""
FORMATS = ("PNG", "JPEG", "WEBP")


class BadPicture(ValueError):
    """An upload that is no usable picture."""


def decode_picture(blob: bytes, side: int = 64) -> UInt8[Tensor, "3 side side"]:
    """A picture as red, green, blue, shrunk to a square; what is transparent becomes white.

    Only PNG, JPEG and WebP are opened, and the size is read from the header before any pixel.

    Raises:
        BadPicture: for no, a foreign, a damaged or a too large picture.
    """
    if not blob:
        raise BadPicture("the picture is empty: no bytes were sent")
    try:
        with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
            if max(image.size) > LARGEST_SIDE or min(image.size) < 8:
                raise BadPicture(
                    f"a picture must have 8 to {LARGEST_SIDE} pixels a side, "
                    f"got {image.width}×{image.height}"
                )
            image.load()
            layer = image.convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadPicture(f"send a {', '.join(FORMATS)} picture") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadPicture):
            raise
        raise BadPicture("the picture is damaged") from error
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    small = ground.convert("RGB").resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


class Gallery:
    """Labels, categories and pictures of items, beside the index, one small file an item.

    The picture is written before the index acknowledges, so a known id always has one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, item: int, picture: Tensor, label: str, category: int) -> None:
        """Keep an item; an older one of that id is replaced in one step."""
        about = {"label": label, "category": category}
        stream = io.BytesIO()
        info = _png_text(json.dumps(about))
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(stream, "PNG", pnginfo=info)
        temporary = self.folder / f"{item}.tmp"
        temporary.write_bytes(stream.getvalue())
        temporary.replace(self.folder / f"{item}.png")

    def picture(self, item: int) -> bytes:
        """The PNG file of an item.

        Raises:
            KeyError: if there is none.
        """
        try:
            return (self.folder / f"{item}.png").read_bytes()
        except FileNotFoundError:
            raise KeyError(item) from None

    def about(self, item: int) -> tuple[str, int]:
        """Label and category."""
        with Image.open(self.folder / f"{item}.png") as image:
            note = json.loads(image.text["about"])  # type: ignore[attr-defined]
        return note["label"], note["category"]

    def items(self) -> list[int]:
        """All ids that have a picture."""
        return sorted(int(path.stem) for path in self.folder.glob("*.png"))

    def remove(self, item: int) -> None:
        """Forget an item."""
        (self.folder / f"{item}.png").unlink(missing_ok=True)


def _png_text(text: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("about", text)
    return info


async def body(request: Request) -> bytes:
    """The upload, read no further than `LARGEST_BODY`."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise HTTPException(413, f"a picture may have {LARGEST_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


Upload = Annotated[bytes, Depends(body)]


def create_app(engine: SearchEngine, gallery: Gallery, examples: list[bytes]) -> FastAPI:
    """The web application.

    Args:
        engine: with its index filled.
        gallery: pictures of the items.
        examples: PNG files that the page offers as queries.
    """
    app = FastAPI(title="Visual search", docs_url=None, redoc_url=None)
    writing = threading.Lock()

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE

    @app.get("/health")
    def health() -> dict[str, Any]:
        alive = [sum(shard) for shard in engine.index.alive]
        return {
            "items": len(engine.about),
            "shards": len(alive),
            "replicas alive": alive,
            "categories": engine.categories,
            "examples": len(examples),
        }

    @app.get("/examples/{number}")
    def example(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"examples are 0 … {len(examples) - 1}")
        return Response(examples[number], media_type="image/png")

    @app.post("/search")
    async def search(
        blob: Upload,
        k: Annotated[int, Query(ge=1, le=60)] = 12,
        category: Annotated[int | None, Query(ge=-1)] = None,
    ) -> dict[str, Any]:
        return await _run(lambda: asdict(engine.search(decode_picture(blob), k, category)))

    @app.get("/items/{item}")
    def picture(item: int) -> Response:
        try:
            return Response(gallery.picture(item), media_type="image/png")
        except KeyError:
            raise HTTPException(404, f"there is no item {item}") from None

    def store(item: int, blob: bytes, label: str, category: int | None, known: bool) -> dict:
        image = decode_picture(blob)
        with writing:
            if (item in engine.about) != known:
                raise HTTPException(
                    404 if known else 409,
                    f"item {item} {'does not exist' if known else 'exists already; use PUT'}",
                )
            chosen = None if category is None else [category]
            change = engine.update if known else engine.add
            prepared = engine.prepare(image[None], chosen)
            gallery.put(item, image, label, prepared.categories[0])
            change([item], prepared, [label])
        return {"id": item, "category": engine.categories[engine.about[item][1]]}

    @app.post("/items/{item}", status_code=201)
    async def add(
        item: int,
        blob: Upload,
        label: Annotated[str, Query(max_length=200)] = "",
        category: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        return await _run(lambda: store(item, blob, label, category, known=False))

    @app.put("/items/{item}")
    async def update(
        item: int,
        blob: Upload,
        label: Annotated[str, Query(max_length=200)] = "",
        category: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        return await _run(lambda: store(item, blob, label, category, known=True))

    @app.delete("/items/{item}")
    def remove(item: int) -> dict[str, int]:
        with writing:
            if item not in engine.about:
                raise HTTPException(404, f"item {item} does not exist")
            try:
                engine.remove([item])
            except ShardDown as error:
                raise HTTPException(503, str(error)) from error
            gallery.remove(item)
        return {"id": item}

    return app


async def _run(work: Callable[[], Any]) -> Any:
    """Work in a thread; errors of the caller become 422, those of the shards 503."""
    try:
        return await asyncio.to_thread(work)
    except BadPicture as error:
        raise HTTPException(415, str(error)) from error
    except (ValueError, TypeError) as error:
        raise HTTPException(422, str(error)) from error
    except ShardDown as error:
        raise HTTPException(503, str(error)) from error


def open_shop(folder: Path, shards: int = 2, products: int = 300) -> tuple[FastAPI, SearchEngine]:
    """The application over a folder: model, durable shards and gallery; made if missing.

    Args:
        folder: where all is kept.
        shards: of the index; a folder keeps the number it was made with.
        products: of the emoji shop.
    """
    from dataclasses import replace

    from toolkit.data import load_emoji_shop

    if not (folder / "model.safetensors").is_file():
        train_model(folder, replace(PROFILES["quick"], products=products))

    def make_index(encoder: BinaryEncoder) -> ShardedIndex:
        def empty() -> BinaryRerankIndex:
            return BinaryRerankIndex(encoder, candidates=200)

        kept = len(list(folder.glob("shard-*"))) or shards
        parts = [LiveIndex(empty, folder=folder / f"shard-{n}") for n in range(kept)]
        return ShardedIndex([[part] for part in parts])

    engine, gallery = load_engine(folder, make_index), Gallery(folder / "gallery")
    shop = load_emoji_shop(engine.recipe.products)
    if not (folder / "filled").exists():
        _fill(engine, gallery, folder)
    for item in gallery.items():
        if _has(engine, item):
            engine.about[item] = gallery.about(item)
    queries = shop.queries["test"].image
    picked = torch.linspace(0, len(queries) - 1, 24).long().tolist()
    return create_app(engine, gallery, [_png(queries[n]) for n in picked]), engine


def _fill(engine: SearchEngine, gallery: Gallery, folder: Path) -> None:
    """The listings of the shop; a start that was killed half-way goes on where it was."""
    from toolkit.data import load_emoji_shop

    shop = load_emoji_shop(engine.recipe.products)
    missing = [n for n in range(len(shop.product)) if not _has(engine, n)]
    for begin in range(0, len(missing), 200):
        part = missing[begin : begin + 200]
        images = shop.catalogue[part]
        leaves = shop.leaf[shop.product[part]].tolist()
        names = [shop.labels[p] for p in shop.product[part].tolist()]
        for item, image, name, leaf in zip(part, images, names, leaves, strict=True):
            gallery.put(item, image, name, leaf)
        engine.add(part, engine.prepare(images, leaves), names)
    (folder / "filled").touch()


def _has(engine: SearchEngine, item: int) -> bool:
    shards: Any = engine.index.replicas
    return bool(shards[item % len(shards)][0].contains([item])[0])


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve visual search over the emoji shop.")
    parser.add_argument("--folder", type=Path, required=True, help="where model and index are kept")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--products", type=int, default=300)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    app, engine = open_shop(chosen.folder.expanduser(), chosen.shards, chosen.products)
    try:
        uvicorn.run(app, host=chosen.host, port=chosen.port, log_level="warning")
    finally:
        for shard in engine.index.replicas:
            for replica in shard:
                replica.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
