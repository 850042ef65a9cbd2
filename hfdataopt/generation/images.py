"""Images of texts: from a function of the user's, or a pipeline of diffusers (extra ``diffusers``)."""

import hashlib
import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from hfdataopt.console import say
from hfdataopt.errors import DataError, GenerationError, HfDataOptError, MissingDependencyError, OptionError, first_line
from hfdataopt.generation.callables import is_async, name_of
from hfdataopt.generation.endpoint import request_seed
from hfdataopt.generation.generator import Admit, RowId, check_refused
from hfdataopt.options import check_options, check_range, option_names

PIP = "pip install 'hfdataopt[diffusers]'"
OnImage = Callable[[int, int, "ImageCompletion"], None]


@dataclass(frozen=True)
class ImageCompletion:
    """An image (``PIL.Image.Image``) as the answer to a text."""

    image: Any
    text: str = ""

    def to_json(self, folder: Path | str) -> dict[str, Any]:
        """A JSON object with the name of the PNG file, which is written into the folder under a hash of its content."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32] + ".png"
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / f".{name}.part"
        begun.write_bytes(buffer.getvalue())
        begun.replace(folder / name)
        return {"image": name, "text": self.text}

    @classmethod
    def from_json(cls, document: dict[str, Any], folder: Path | str) -> "ImageCompletion":
        """Read what :meth:`to_json` wrote; ``DataError`` for anything else."""
        try:
            name, text = Path(str(document["image"])).name, str(document["text"])
            with _pil().open(
                Path(folder) / name, formats=["PNG"]
            ) as image:  # other formats have readers that run programs
                image.load()
        except (KeyError, TypeError, OSError, _pil().DecompressionBombError) as error:
            raise DataError(
                f"a stored image cannot be read from {str(folder)!r}: {document!r} ({type(error).__name__}: {error})"
            ) from error
        return cls(image, text)


class ImageGenerator(ABC):
    """Draws one image per text. ``batch_size``: texts at a time."""

    batch_size: Any = 1
    who: ClassVar[str] = "images"

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from weights."""

    @abstractmethod
    def images(self, prompts: list[str], seeds: list[int]) -> Any:
        """One ``PIL.Image.Image`` for each text, drawn with its seed (below 2**31)."""

    def draw(
        self,
        prompts: Sequence[str],
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        on_done: OnImage | None = None,
        admit: Admit | None = None,
    ) -> list[Any]:
        """One ``PIL.Image.Image`` for each text, in order.

        Args:
            keys: a unique name of each text; draws depend on (seed, key) only.
            on_done: ``(index, 0, ImageCompletion)``, called as each one is there.
            admit: ``(index, 0)``, asked once for each, right before it is drawn; False leaves it out.

        Raises:
            GenerationError: drawing failed; what was drawn before was handed to ``on_done``.
            DataError: a prompt that is no text, or something else than an image came; the row is named.
            Refused: ``admit`` left some out; the others were handed to ``on_done``.
        """
        if len(keys) != len(prompts):
            raise DataError(f"{self.who}: {len(keys)} keys arrived for {len(prompts)} prompts")
        for prompt, key in zip(prompts, keys, strict=True):
            if not isinstance(prompt, str) or not prompt.strip():
                raise DataError(f"{self.who}: the prompt of row {key!r} must be a text; got {str(prompt)[:80]!r}")
        made: dict[int, Any] = {}
        refused = 0
        for start in range(0, len(prompts), self.batch_size):
            planned = range(start, min(start + self.batch_size, len(prompts)))
            batch = [index for index in planned if admit is None or admit(index, 0)]
            refused += len(planned) - len(batch)
            if not batch:
                continue
            try:
                found = self.images([prompts[x] for x in batch], [request_seed(seed, keys[x], 0) for x in batch])
            except HfDataOptError:
                raise
            except Exception as error:
                raise GenerationError(
                    f"{self.who}: {len(made)} of {len(prompts)} images were drawn; row {keys[batch[0]]!r} failed: "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from error
            if not isinstance(found, list | tuple) or len(found) != len(batch):
                raise DataError(
                    f"{self.who}: one image for each of {len(batch)} texts is needed; got {str(found)[:80]!r}"
                )
            for index, image in zip(batch, found, strict=True):
                if not isinstance(image, _pil().Image):
                    raise DataError(
                        f"{self.who}: the answer to row {keys[index]!r} is {type(image).__name__}, not a PIL image"
                    )
                made[index] = image
                if on_done is not None:
                    on_done(index, 0, ImageCompletion(image))
        check_refused(self.who, refused, len(made))
        return [made[index] for index in range(len(prompts))]


@dataclass
class CallableImages(ImageGenerator):
    """Images from ``function(text) -> PIL.Image.Image``; a parameter called ``seed`` gets a number below 2**31."""

    function: Callable[..., Any] = field(repr=False)

    def __post_init__(self) -> None:
        check_options(self)
        if is_async(self.function):
            raise OptionError(
                f"{self.who}: {name_of(self.function)} is async; hand over a function that returns the image"
            )

    def describe(self) -> dict[str, Any]:
        return {"kind": "callable images", "function": name_of(self.function)}

    def images(self, prompts: list[str], seeds: list[int]) -> Any:
        seeded = "seed" in inspect.signature(self.function).parameters
        return [
            self.function(prompt, **({"seed": seed} if seeded else {}))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@dataclass
class DiffusersImages(ImageGenerator):
    """Images from a text-to-image pipeline of diffusers; options that are None are left to the pipeline.

    Attributes:
        pipeline: hub id or folder, or the pipeline itself.
        steps: of denoising. guidance_scale, height, width, negative_prompt: as the pipeline defines them.
        batch_size: texts at a time.
    """

    pipeline: Any = field(repr=False)
    steps: int | None = field(default=None, kw_only=True)
    guidance_scale: float | None = field(default=None, kw_only=True)
    height: int | None = field(default=None, kw_only=True)
    width: int | None = field(default=None, kw_only=True)
    negative_prompt: str | None = field(default=None, kw_only=True)
    batch_size: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_options(self)
        for option in ("steps", "height", "width", "batch_size"):
            check_range(self, option, at_least=1)
        if isinstance(self.pipeline, str):
            self.pipeline = _load(self.pipeline)
        if not is_pipeline(self.pipeline):
            raise OptionError(
                f"{self.who}: {type(self.pipeline).__name__} is not a text-to-image pipeline of diffusers"
            )
        accepted = inspect.signature(self.pipeline.__call__).parameters
        for option in self._given():
            if option not in accepted:
                raise OptionError(f"{self.who}: {type(self.pipeline).__name__} takes no {option}; leave it out")

    def describe(self) -> dict[str, Any]:
        name = getattr(getattr(self.pipeline, "config", None), "_name_or_path", None)
        return {"kind": "diffusers", "pipeline": type(self.pipeline).__name__, "name": name, **self._given()}

    def images(self, prompts: list[str], seeds: list[int]) -> Any:
        options = self._given()
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]  # the same draws on every device
        output = self.pipeline(prompt=prompts, generator=generators, output_type="pil", **options)
        if any(getattr(output, "nsfw_content_detected", None) or []):
            say(f"{self.who}: the pipeline's safety checker blacked out an image")
        return output.images

    def _given(self) -> dict[str, Any]:
        options = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "negative_prompt": self.negative_prompt,
        }
        return {name: value for name, value in options.items() if value is not None}


def as_image_generator(model: Any, **options: Any) -> ImageGenerator:
    """An id or pipeline of diffusers, a function of a text, or an :class:`ImageGenerator`, which is returned as it is.

    Raises:
        OptionError: something else arrived, or options that it has no use for.
    """
    if isinstance(model, ImageGenerator) or not (isinstance(model, str) or is_pipeline(model)):
        if options:
            raise OptionError(f"images: {type(model).__name__} takes no options; got {', '.join(options)}")
        if isinstance(model, ImageGenerator):
            return model
        if callable(model) and not isinstance(model, type):
            return CallableImages(model)
        raise OptionError(
            f"images: model={model!r}; it takes a hub id or folder, a pipeline of diffusers, or a function of a text"
        )
    known = option_names(DiffusersImages)[1:]
    for option in options:
        if option not in known:
            raise OptionError(f"images: a pipeline has no option {option!r}; it accepts: {', '.join(known)}")
    return DiffusersImages(model, **options)


def is_pipeline(model: Any) -> bool:
    """Whether it is called as the text-to-image pipelines of diffusers are."""
    if isinstance(model, type) or not callable(model):
        return False
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return False
    return {"prompt", "generator", "num_inference_steps", "output_type"} <= set(parameters)


def _pil() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependencyError(f"images need pillow: {PIP}") from error
    return PIL.Image


def _load(where: str) -> Any:
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError as error:
        raise MissingDependencyError(f"a pipeline by its id needs diffusers: {PIP}") from error
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise OptionError(f"images: diffusers cannot load {where!r}: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
